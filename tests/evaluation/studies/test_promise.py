"""Samples of a part against its raw columns; promises and budgets judged on another part."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from prerank.cascade import Cascade, Gap, Mass, Share, Threshold, Tier
from prerank.errors import InputError
from prerank.evaluation.cascades import CascadeScorer
from prerank.evaluation.collect import collect
from prerank.evaluation.studies import budget
from prerank.evaluation.studies.promise import Sample, calibrate, read_sample, realised


@pytest.fixture(scope="module")
def samples(flat: Any, runs: Any) -> dict[str, Sample]:
    tier = Tier(runs.two_tower)
    return {
        name: read_sample(tier, flat.log[name], top_m=4, batch_size=50)
        for name in ("valid", "test")
    }


def by_hand(flat: Any, runs: Any, part: str, top_m: int, cut: Any) -> tuple[float, float]:
    """Mean loss and count of a cascade that drops what it does not forward."""
    cascade = Cascade([Tier(runs.two_tower, cut, tail="drop"), Tier(runs.mlp)])
    score = collect(flat.log[part], {"c": CascadeScorer(cascade)}).scores["c"][:, 0]
    lost, counts, start = [], [], 0
    for row in flat.world.splits()[part]:
        block = slice(int(flat.offsets[row]), int(flat.offsets[row + 1]))
        n = block.stop - block.start
        heavy = flat["candidates.score.ranker"][block].astype(float)
        kept = np.isfinite(score[start : start + n])
        start += n
        counts.append(kept.sum())
        known = np.flatnonzero(~np.isnan(heavy))
        best = known[np.argsort(-heavy[known], kind="stable")[:top_m]]
        if len(best):
            lost.append(1.0 - kept[best].mean())
    return float(np.mean(lost)), float(np.mean(counts))


RULES = (Share(share=0.4), Threshold(score=-0.2), Mass(mass=0.6), Gap(within=0.3, place=4))


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
def test_realised_loss_is_what_a_cascade_loses(
    flat: Any, runs: Any, samples: Any, rule: Any
) -> None:
    found = realised(rule, samples["test"], num_windows=3, num_resamples=50)
    loss, count = by_hand(flat, runs, "test", 4, rule)
    assert found.loss.value == pytest.approx(loss, abs=1e-12)
    assert found.forwarded.value == pytest.approx(count, abs=1e-12)
    assert found.loss.low <= loss <= found.loss.high
    assert len(found.windows) == 3
    sizes = [len(x) for x in np.array_split(np.arange(samples["test"].ladder.num_requests), 3)]
    mean = np.average([w[2] for w in found.windows], weights=sizes)
    assert mean == pytest.approx(count, abs=1e-9)
    assert [w[0] for w in found.windows] == sorted(w[0] for w in found.windows)


@pytest.mark.parametrize("unit", ["request", "user"])
def test_a_promise_is_kept_on_the_part_it_was_made_on(samples: Any, unit: Any) -> None:
    for rule in RULES:
        found = calibrate(rule, samples["valid"], 0.25, unit=unit)
        promise = found.promise
        assert promise is not None
        assert (promise.unit, promise.part, promise.top_m) == (unit, "valid", 4)
        n = promise.num_units
        assert (n * promise.risk + 1) / (n + 1) <= 0.25 + 1e-9
        stricter = calibrate(rule, samples["valid"], 0.1, unit=unit)
        more = realised(stricter, samples["test"], num_resamples=2)
        less = realised(found, samples["test"], num_resamples=2)
        assert more.forwarded.value > less.forwarded.value
        assert more.loss.value < less.loss.value


def test_only_the_rankers_own_candidates_are_judged(flat: Any, samples: Any) -> None:
    sample = samples["test"]
    scored = ~np.isnan(flat["candidates.score.ranker"][flat.within("test")].astype(float))
    assert sample.scored_share == pytest.approx(scored.mean())
    assert 0 < sample.scored_share < 1
    number = np.bincount(sample.ladder.request.numpy(), weights=sample.needed.numpy())
    assert number.max() == 4


def test_budgets_are_kept_and_compared_at_equal_cost(flat: Any, runs: Any, samples: Any) -> None:
    mean = 8.0
    rules = {"threshold": Threshold(score=0.0), "mass": Mass(mass=0.0), "twin": Share(share=0.0)}
    valid, test = samples["valid"], samples["test"]
    spent = budget.compare_budgets(rules, valid, test, mean, num_resamples=100)
    assert list(spent) == ["share", *rules]
    for name in rules:
        rule = budget.calibrate(rules[name], valid, mean)
        assert rule.budget is not None
        assert mean - 0.5 < rule.budget.realised <= mean
        loss, count = by_hand(flat, runs, "test", 4, rule)
        assert spent[name].realised.loss.value == pytest.approx(loss, abs=1e-12)
        assert spent[name].realised.forwarded.value == pytest.approx(count, abs=1e-12)
    # A fixed share against itself at the same mean: no difference at all.
    twin = spent["twin"].difference
    assert twin is not None
    assert (twin.value, twin.low, twin.high) == pytest.approx((0.0, 0.0, 0.0), abs=1e-9)
    assert spent["share"].difference is None


def test_a_budget_needs_no_ranker(flat: Any, runs: Any) -> None:
    tier = Tier(runs.two_tower)
    rule = budget.calibrate(Mass(mass=0.0), flat.log["valid"], 6.0, tier=tier)
    sample = read_sample(tier, flat.log["valid"])
    assert not sample.needed.any()
    assert rule == budget.calibrate(Mass(mass=0.0), sample, 6.0)
    with pytest.raises(InputError, match="a part needs the tier"):
        budget.calibrate(Mass(mass=0.0), flat.log["valid"], 6.0)
    with pytest.raises(InputError, match="top_m is -1"):
        read_sample(tier, flat.log["valid"], top_m=-1)
