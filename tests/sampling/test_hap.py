"""HAP's sampler: quotas, floors, what is kept, what is drawn, and what it says of its chances."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from prerank.config import from_values, to_values
from prerank.errors import InputError
from prerank.log import Columns, Transforms
from prerank.log.format.vocab import UNKNOWN_ROW
from prerank.sampling import HAPSampler, sampled
from prerank.sampling.base import knowing
from prerank.sampling.counts import SamplingCounts

STAGES = ("pool", "retrieval", "prerank", "rank", "exposed")
SMALL = {"quotas": {"rank": 4, "prerank": 6, "random": 2.0}, "floors": {}, "alive": False}


def config(**options: Any) -> HAPSampler.Config:
    return from_values(HAPSampler.Config, {**SMALL, **options}, where="test")


def sample(funnel: Any, options: Any = None, *, seed: int = 0, epoch: int = 0) -> Columns:
    """Sample the training part at once."""
    part = funnel.log["train"]
    sampler = (options or config()).build(part)
    return next(sampled(part.columns(10**6), sampler, seed=seed, epoch=epoch))


def in_source(candidates: dict[str, np.ndarray], *stages: str) -> np.ndarray:
    codes = [STAGES.index(stage) for stage in stages]
    return np.isin(candidates["stage"], codes)


def test_the_defaults_are_the_authors_numbers() -> None:
    options = HAPSampler.Config()
    assert options.quotas == {"rank": 10, "prerank": 10, "random": 2.0}
    assert options.floors == {"rank": 50, "prerank": 200}
    again = msgspec.json.decode(msgspec.json.encode(to_values(options)))
    assert from_values(HAPSampler.Config, again, where="test") == options
    assert isinstance(again["quotas"]["random"], float)
    assert isinstance(again["quotas"]["rank"], int)


def test_quotas_of_every_source(funnel: Any, split: Any) -> None:
    for k, mine in enumerate(split(sample(funnel))):
        positives = int((mine["labels.click"] == 1).sum())
        assert positives == funnel.click[k].sum()
        assert in_source(mine, "exposed").sum() == 10
        assert in_source(mine, "rank", "prerank").sum() == 4
        assert in_source(mine, "retrieval").sum() == 6
        assert in_source(mine, "pool").sum() == 2 * positives


def test_all_that_was_shown_is_kept_unchanged_and_in_order(
    funnel: Any, split: Any, whole: Any
) -> None:
    before, after = split(whole(funnel.log["train"])), split(sample(funnel))
    for stored, mine in zip(before, after, strict=True):
        drawn = in_source(mine, "pool")
        assert not drawn[: len(drawn) - drawn.sum()].any()  # drawn ones come last
        place = {item: k for k, item in enumerate(stored["item"].tolist())}
        at = np.array([place[item] for item in mine["item"][~drawn].tolist()])
        assert (np.diff(at) > 0).all()
        assert set(stored["item"][in_source(stored, "exposed")]) <= set(mine["item"])
        for name, values in stored.items():
            np.testing.assert_array_equal(mine[name][~drawn], values[at])


@pytest.mark.parametrize(
    ("share", "rank_floor", "prerank_floor"), [(1.0, 15, 40), (0.5, 15, 30), (0.0, 0, 0)]
)
def test_floors_and_how_they_shrink(
    funnel: Any, split: Any, share: float, rank_floor: int, prerank_floor: int
) -> None:
    """Ranking ordered 30 candidates (ranks 0 to 29), pre-ranking 60; ranking cut ranks 10 to 29."""
    options = config(
        floors={"rank": 15, "prerank": 40},
        floor_share=share,
        quotas={"rank": None, "prerank": None},
    )
    for mine in split(sample(funnel, options)):
        cut_by_rank = in_source(mine, "rank", "prerank")
        cut_by_prerank = in_source(mine, "retrieval")
        assert sorted(mine["rank.rank"][cut_by_rank]) == list(range(max(rank_floor, 10), 30))
        assert sorted(mine["rank.prerank"][cut_by_prerank]) == list(
            range(max(prerank_floor, 30), 60)
        )


def test_the_floor_can_count_in_another_order(funnel: Any, split: Any) -> None:
    options = config(
        floors={"rank": 25}, floor_share=1.0, orders={"rank": "prerank"}, quotas={"rank": None}
    )
    for mine in split(sample(funnel, options)):
        ranks = mine["rank.prerank"][in_source(mine, "rank", "prerank")]
        assert sorted(ranks) == [25, 26, 27, 28, 29]


def test_what_has_no_rank_is_not_below_the_floor(funnel: Any, split: Any, whole: Any) -> None:
    columns = whole(funnel.log["train"])
    columns.candidates.values["rank.rank"][:] = -1
    sampler = config(floors={"rank": 5}, quotas={"rank": 4}).build(funnel.log)
    for mine in split(sampler.sample(columns, seed=0, epoch=0, key=0)):
        assert in_source(mine, "rank", "prerank").sum() == 0


def test_sources_that_are_not_named_give_nothing_but_the_shown_ones(
    funnel: Any, split: Any
) -> None:
    for mine in split(sample(funnel, config(quotas={}))):
        assert in_source(mine, "exposed").all()
        assert len(mine["item"]) == 10


def test_shown_negatives_can_have_a_quota_too(funnel: Any, split: Any) -> None:
    for k, mine in enumerate(split(sample(funnel, config(quotas={"exposed": 3})))):
        assert (mine["labels.click"] == 1).sum() == funnel.click[k].sum()
        assert (mine["labels.click"] == 0).sum() == 3


def test_a_shown_candidate_of_unknown_engagement_is_kept(
    funnel: Any, split: Any, whole: Any
) -> None:
    columns = whole(funnel.log["train"])
    columns.candidates.values["labels.click"][:] = np.nan
    sampler = config(quotas={"exposed": 0, "rank": 1.0}).build(funnel.log)
    for mine in split(sampler.sample(columns, seed=0, epoch=0, key=0)):
        assert len(mine["item"]) == 10
        assert np.isnan(mine["labels.click"]).all()


def test_quotas_per_positive_are_rounded_up(funnel: Any, split: Any) -> None:
    for k, mine in enumerate(split(sample(funnel, config(quotas={"rank": 0.5, "random": 1.1})))):
        positives = funnel.click[k].sum()
        assert in_source(mine, "rank", "prerank").sum() == -(-positives // 2)
        assert in_source(mine, "pool").sum() == -(-11 * positives // 10)


def test_no_random_item_is_a_candidate_of_its_request(funnel: Any, split: Any) -> None:
    for k, mine in enumerate(split(sample(funnel, config(quotas={"random": 100})))):
        drawn = mine["item"][in_source(mine, "pool")]
        assert len(set(drawn.tolist())) == 100
        assert not np.isin(drawn, funnel.item[k] + 2).any()


@pytest.mark.parametrize("pool", ["request", "shared"])
def test_negative_control_without_the_removal_there_are_hits(
    funnel: Any, split: Any, pool: str
) -> None:
    """Blind draws of this size do hit candidates, so the test above says something."""
    sampler = config(quotas={"random": 100}, pool=pool).build(funnel.log)
    counts = SamplingCounts()
    columns = next(funnel.log["train"].columns(100))
    sampler.sample(columns, seed=0, epoch=0, key=0, counts=counts)
    assert counts.of("random").hits > 10


def test_histories_can_be_left_out(funnel: Any, split: Any, whole: Any) -> None:
    options = {"quotas": {"random": 150}}
    history = whole(funnel.log["train"]).groups["history.clicks"]
    met = []
    for leave_out in (False, True):
        mine = split(sample(funnel, config(**options, leave_out_history=leave_out)))
        met.append(
            sum(
                np.isin(m["item"][in_source(m, "pool")], history.slice(k, k + 1).values["item"])
                .sum()
                .item()
                for k, m in enumerate(mine)
            )
        )
    assert met[0] > 20
    assert met[1] == 0


def test_only_items_seen_before_the_request_are_drawn(funnel: Any, split: Any) -> None:
    mine = split(sample(funnel, config(quotas={"random": 50}, alive=True)))
    first_seen = np.full(402, 10**9)
    for k in range(59, -1, -1):
        first_seen[funnel.item[k] + 2] = k
    past = funnel.log["train"].columns(60)
    history = next(past).groups["history.clicks"]
    for k in range(59, -1, -1):
        items = history.slice(k, k + 1).values["item"]
        first_seen[items] = np.minimum(first_seen[items], k)
    for k, m in enumerate(mine):
        assert (first_seen[m["item"][in_source(m, "pool")]] < k).all()
    assert in_source(mine[0], "pool").sum() == 0
    assert in_source(mine[-1], "pool").sum() == 50


def test_popularity_draws_more_of_what_was_shown_more(funnel: Any) -> None:
    shown = np.zeros(402)
    for columns in funnel.log["train"].columns(60):
        values = columns.candidates.values
        np.add.at(shown, values["item"][values["stage"] == 4], 1)
    found = np.zeros(402)
    options = config(quotas={"random": 1}, distribution="popularity", power=1.0)
    for epoch in range(40):
        columns = sample(funnel, options, epoch=epoch)
        values = columns.candidates.values
        np.add.at(found, values["item"][values["stage"] == 0], 1)
    assert found[shown == 0].sum() == 0
    per_group = [found[shown == n].mean() for n in (1, 2, 3)]
    assert per_group[1] / per_group[0] == pytest.approx(2, rel=0.25)
    assert per_group[2] / per_group[0] == pytest.approx(3, rel=0.3)


def test_popularity_to_the_power_of_zero_is_even_among_the_counted(funnel: Any) -> None:
    sampler = config(distribution="popularity", power=0.0).build(funnel.log["train"])
    columns = next(sampled(funnel.log["train"].columns(60), sampler, seed=0))
    values = columns.candidates.values
    chance = values["sample_prob"][values["stage"] == 0]
    num_positives = funnel.click[:60].sum(axis=1)
    expected = np.repeat(2 * num_positives, 2 * num_positives)
    assert (chance > expected / 400).all()  # fewer than all items have been shown


def test_dividing_by_the_chance_counts_what_could_have_been_there(funnel: Any, split: Any) -> None:
    """Horvitz and Thompson: within each request the sum of 1 / chance is exact."""
    options = config(floors={"rank": 15}, floor_share=1.0)
    for k, mine in enumerate(split(sample(funnel, options))):
        weight = 1 / mine["sample_prob"].astype(np.float64)
        assert weight[in_source(mine, "exposed")].tolist() == [1.0] * 10
        assert weight[in_source(mine, "rank", "prerank")].sum() == pytest.approx(15, rel=1e-6)
        assert weight[in_source(mine, "retrieval")].sum() == pytest.approx(30, rel=1e-6)
        if funnel.click[k].any():
            assert weight[in_source(mine, "pool")].sum() == pytest.approx(340, rel=1e-6)


def test_every_member_comes_equally_often(funnel: Any) -> None:
    """6 of 30 over 60 requests and 60 epochs: counts by rank are binomial (3600, 0.2)."""
    found = np.zeros(60)
    for epoch in range(60):
        values = sample(funnel, epoch=epoch).candidates.values
        np.add.at(found, values["rank.prerank"][values["stage"] == 1], 1)
    assert found[:30].sum() == 0
    assert found[30:].sum() == 60 * 60 * 6
    deviation = np.sqrt(3600 * 0.2 * 0.8)
    assert (abs(found[30:] - 720) < 5 * deviation).all()


def test_stored_pool_rows_give_way_to_fresh_ones(rich: Any, split: Any, whole: Any) -> None:
    before = split(whole(rich.log["train"]))
    first, second = (split(sample(rich, config(), epoch=epoch)) for epoch in (0, 1))
    same, num = 0, 0
    for stored, one, two in zip(before, first, second, strict=True):
        drawn = one["item"][in_source(one, "pool")]
        wanted = 2 * int((stored["labels.click"] == 1).sum())
        assert len(drawn) == wanted
        num += wanted
        same += len(set(drawn) & set(two["item"][in_source(two, "pool")]))
        assert not np.isin(drawn, stored["item"][~in_source(stored, "pool")]).any()
    # an item of one epoch is in the other with probability wanted / 340
    assert 0 < same < 0.05 * num


def test_stored_pool_rows_can_be_used_instead(rich: Any, split: Any, whole: Any) -> None:
    options = config(drawn=None, quotas={"random": 2})
    for stored, mine in zip(
        split(whole(rich.log["train"])), split(sample(rich, options)), strict=True
    ):
        drawn = in_source(mine, "pool")
        assert set(mine["item"][drawn]) < set(stored["item"][in_source(stored, "pool")])
        # half of the four that were drawn from 340
        assert mine["sample_prob"][drawn] == pytest.approx([2 / 340] * 2)


def test_requests_without_positive_can_be_left_out(funnel: Any, split: Any) -> None:
    options = config(requests="with_positive")
    everything, some = sample(funnel), sample(funnel, options)
    has = funnel.click[:60].any(axis=1)
    assert 0 < has.sum() < 60
    assert some.scalars["row"].tolist() == np.flatnonzero(has).tolist()
    kept = [m for m, h in zip(split(everything), has, strict=True) if h]
    for a, b in zip(kept, split(some), strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_other_groups_and_scalars_stay(rich: Any, whole: Any) -> None:
    before, after = whole(rich.log["train"]), sample(rich)
    for name, values in before.scalars.items():
        np.testing.assert_array_equal(after.scalars[name], values)
    assert set(after.groups) == set(before.groups)
    np.testing.assert_array_equal(
        after.groups["history.clicks"].values["item"],
        before.groups["history.clicks"].values["item"],
    )


def test_a_batch_of_it_says_what_the_columns_say(rich: Any) -> None:
    part = rich.log["train"]
    transforms = Transforms.fit(part, min_count=1)
    sampler = config().build(part)
    columns = sample(rich)
    (batch,) = part.batches(transforms, 10**6, sampler=sampler)
    group, evidence, inputs = columns.candidates, batch.evidence, batch.inputs
    assert inputs.offsets.tolist() == group.offsets.tolist()
    assert evidence.item.tolist() == group.values["item"].tolist()
    # the item feature is the item's own id: inputs and evidence name the same item
    ids = inputs.items.categorical[inputs.item_of, 0]
    known = transforms.rows["item"][group.values["item"]]
    assert ids.tolist() == known.tolist()
    source = rich.log.schema.source_names.index("random")
    drawn = group.values["stage"] == 0
    assert ((evidence.source == source).numpy() == drawn).all()
    assert evidence.engaged[drawn].isnan().all()
    assert evidence.ranks["rank"][drawn].eq(-1).all()
    assert evidence.weight.eq(1).all()
    assert evidence.propensity.eq(1).all()
    np.testing.assert_allclose(evidence.sample_prob.numpy(), group.values["sample_prob"])


def _presence(mine: list[dict[str, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return whether each candidate was drawn, whether its score is missing, and its score."""
    drawn = np.concatenate([in_source(m, "pool") for m in mine])
    score = np.concatenate([m["score_r"] for m in mine])
    return drawn, np.isnan(score), np.nan_to_num(score)


def test_borrowed_features_do_not_give_the_source_away(rich: Any, split: Any) -> None:
    """A feature that only retrieved candidates have tells random items from the others."""
    options = {"quotas": {"prerank": 10, "random": 10}}
    drawn, missing, score = _presence(split(sample(rich, config(**options))))
    assert not missing.any()
    # drawn evenly from retrieval, as the source `prerank` is here but for the deeper stages
    assert abs(roc_auc_score(drawn, score) - 0.5) < 0.03
    drawn, missing, _ = _presence(
        split(sample(rich, config(**options, candidate_features="missing")))
    )
    assert roc_auc_score(drawn, missing) == 1.0  # the leak


def test_features_are_borrowed_whole_from_one_retrieved_candidate(
    rich: Any, split: Any, whole: Any
) -> None:
    before = split(whole(rich.log["train"]))
    for stored, mine in zip(before, split(sample(rich)), strict=True):
        retrieved = ~in_source(stored, "pool")
        pairs = set(
            zip(stored["score_r"][retrieved], stored["tag"][retrieved].tolist(), strict=True)
        )
        drawn = in_source(mine, "pool")
        assert set(zip(mine["score_r"][drawn], mine["tag"][drawn].tolist(), strict=True)) <= pairs


def test_without_a_retrieved_candidate_features_are_missing(
    rich: Any, split: Any, whole: Any
) -> None:
    columns = whole(rich.log["train"])
    group = columns.candidates
    only = np.flatnonzero(group.values["stage"] == 0)
    offsets = np.arange(len(columns.scalars["row"]) + 1) * 4
    pool = dataclasses.replace(
        group, offsets=offsets, values={name: v[only] for name, v in group.values.items()}
    )
    columns = Columns(columns.scalars, {**columns.groups, "candidates": pool})
    sampler = config(quotas={"random": 3}).build(rich.log)
    for mine in split(sampler.sample(columns, seed=0, epoch=0, key=0)):
        assert len(mine["item"]) == 3
        assert np.isnan(mine["score_r"]).all()
        assert (mine["tag"] == 0).all()


def test_popularity_needs_a_part(funnel: Any) -> None:
    with pytest.raises(InputError, match="build the sampler from the training part"):
        config(distribution="popularity").build(funnel.log)


def test_the_description_tells_what_popularity_was_counted_in(funnel: Any) -> None:
    options = config(distribution="popularity")
    train, valid = (options.build(funnel.log[name]).describe() for name in ("train", "valid"))
    assert train != valid
    assert train["fitted_on"]["part"] == "train"
    plain = config().build(funnel.log).describe()
    assert plain == to_values(config())


def test_unknown_items_can_be_left_undrawn(funnel: Any, split: Any) -> None:
    part = funnel.log["train"]
    is_known = Transforms.fit(part, min_count=10).knows(funnel.log)
    assert 0.2 < is_known[2:].mean() < 0.8
    options = config(unknown="skip", alive=True)
    before = options.build(part)
    sampler = knowing(before, Transforms.fit(part, min_count=10), funnel.log)
    assert sampler is not None
    columns = next(sampled(part.columns(10**6), sampler, seed=0))
    fresh = columns.candidates.values["stage"] == 0
    assert is_known[columns.candidates.values["item"][fresh]].all()
    # What is stored is chosen as before, and what knows nothing draws from all.
    plain = next(sampled(part.columns(10**6), before, seed=0))
    stored = plain.candidates.values["stage"] != 0
    for name in ("item", "sample_prob"):
        kept = columns.candidates.values[name][~fresh]
        np.testing.assert_array_equal(kept, plain.candidates.values[name][stored])
    assert not is_known[plain.candidates.values["item"][~stored]].all()


def test_the_chance_of_known_items_counts_them(funnel: Any, split: Any) -> None:
    part = funnel.log["train"]
    transforms = Transforms.fit(part, min_count=10)
    is_known = transforms.knows(funnel.log)
    sampler = knowing(config(unknown="skip").build(part), transforms, funnel.log)
    assert sampler is not None
    columns = next(sampled(part.columns(10**6), sampler, seed=0))
    listed = next(part.columns(10**6)).candidates
    for row, values in enumerate(split(columns)):
        chance = values["sample_prob"][values["stage"] == 0]
        if len(chance):
            own = listed.values["item"][listed.offsets[row] : listed.offsets[row + 1]]
            left = is_known[2:].sum() - is_known[own].sum()
            assert (1 / chance).sum() == pytest.approx(left, rel=1e-5)


def test_batches_of_a_model_hold_no_unknown_random_item(funnel: Any) -> None:
    part = funnel.log["train"]
    transforms = Transforms.fit(part, min_count=10)
    shares = {}
    for unknown in ("keep", "skip"):
        sampler = knowing(config(unknown=unknown).build(part), transforms, funnel.log)
        batch = next(part.batches(transforms, 60, sampler=sampler))
        rows = batch.inputs.items.categorical[:, 0][batch.inputs.item_of]
        shares[unknown] = float((rows == UNKNOWN_ROW)[batch.evidence.stage == 0].double().mean())
    assert shares["keep"] > 0.2  # negative control
    assert shares["skip"] == 0.0


def test_runs_from_before_unknown_was_a_choice_go_on(funnel: Any) -> None:
    part = funnel.log["train"]
    sampler = config(unknown="keep").build(part)
    assert "unknown" not in sampler.describe()
    assert config().build(part).describe()["unknown"] == "skip"
    assert knowing(sampler, Transforms.fit(part, min_count=10), funnel.log) is sampler
