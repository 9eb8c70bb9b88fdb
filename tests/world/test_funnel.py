from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from prerank.world import WorldConfig
from prerank.world.funnel import STAGES

RANKS = ("prerank", "rank", "exposed")


def _auc(positive: np.ndarray, negative: np.ndarray) -> float:
    label = np.r_[np.ones(positive.size), np.zeros(negative.size)]
    return float(roc_auc_score(label, np.r_[positive, negative]))


def _source_aucs(flat: Any) -> dict[str, float]:
    """AUC of the true utility: clicked exposures against the members of each source."""
    positive = flat.utility[flat["labels.click"] == 1]
    stage = flat["candidates.stage"]
    members = {
        "exposed": flat["labels.click"] == 0,
        "rank": (stage == "rank") | (stage == "prerank"),
        "prerank": stage == "retrieval",
    }
    return {name: _auc(positive, flat.utility[which]) for name, which in members.items()}


def test_every_request_obeys_the_quotas(flat: Any) -> None:
    config = flat.world.config
    kept = {
        "prerank": config.num_preranked,
        "rank": config.num_ranked,
        "exposed": config.num_exposed,
    }
    depth = np.array([STAGES.index(s) for s in flat["candidates.stage"]])
    for row in range(config.num_requests):
        own = flat.request == row
        ranks = {name: flat[f"candidates.rank.{name}"][own] for name in RANKS}
        deep = depth[own]
        retrieved = deep >= STAGES.index("retrieval")
        assert 0.9 * config.num_retrieved <= retrieved.sum() <= config.num_retrieved
        for name, quota in kept.items():
            assert (deep >= STAGES.index(name)).sum() == quota
        # Each list is a permutation of exactly the candidates that its stage scored.
        scored = {
            "prerank": retrieved,
            "rank": deep >= STAGES.index("prerank"),
            "exposed": deep == STAGES.index("exposed"),
        }
        for name, rank in ranks.items():
            np.testing.assert_array_equal(~np.isnan(rank), scored[name])
            places = np.sort(rank[scored[name]])
            np.testing.assert_array_equal(places, np.arange(places.size))
        # Kept means: within the first places of the list; the screen shows the ranked order.
        np.testing.assert_array_equal(
            deep >= STAGES.index("prerank"), ranks["prerank"] < kept["prerank"]
        )
        np.testing.assert_array_equal(deep >= STAGES.index("rank"), ranks["rank"] < kept["rank"])
        shown = scored["exposed"]
        np.testing.assert_array_equal(ranks["exposed"][shown], ranks["rank"][shown])


def test_the_ranker_scored_online_what_pre_ranking_kept_and_is_logged_for_all(flat: Any) -> None:
    score, online = flat["candidates.score.ranker"], flat["candidates.scored_online"]
    stage, rank = flat["candidates.stage"], flat["candidates.rank.rank"]
    np.testing.assert_array_equal(np.isnan(score), stage == "pool")
    np.testing.assert_array_equal(online, ~np.isnan(rank))
    for row in range(0, flat.world.config.num_requests, 50):
        own = (flat.request == row) & online.astype(bool)
        assert (np.diff(score[own][np.argsort(rank[own])]) <= 0).all()
    noise = score - flat.utility
    known = ~np.isnan(noise)
    assert noise[known].std() == pytest.approx(flat.world.config.noise_rank, rel=0.05)
    assert noise[known].mean() == pytest.approx(0.0, abs=0.02)


def test_labels_exist_for_exposures_only(flat: Any) -> None:
    shown = flat["candidates.stage"] == "exposed"
    for name in ("labels.click", "labels.watch_ms"):
        np.testing.assert_array_equal(~np.isnan(flat[name]), shown)
    click, watch = flat["labels.click"][shown], flat["labels.watch_ms"][shown]
    assert set(click) == {0.0, 1.0}
    assert (watch[click == 0] == 0).all()
    assert (watch[click == 1] > 0).all()


def test_clicks_occur_as_often_as_their_probability_says(flat: Any) -> None:
    shown = flat["candidates.stage"] == "exposed"
    click = flat["labels.click"][shown]
    chance = flat.world.click_probability(flat.request[shown], flat["candidates.item"][shown])
    assert click.mean() == pytest.approx(flat.world.config.ctr, abs=0.05)
    order = np.argsort(chance)
    for part in np.array_split(order, 8):
        spread = np.sqrt((chance[part] * (1 - chance[part])).sum()) / part.size
        assert abs(click[part].mean() - chance[part].mean()) < 4 * spread
    # The control: probabilities of other candidates do not fit these clicks.
    wrong = np.random.default_rng(0).permutation(chance)
    high = np.argsort(wrong)[-len(wrong) // 8 :]
    spread = np.sqrt((wrong[high] * (1 - wrong[high])).sum()) / high.size
    assert abs(click[high].mean() - wrong[high].mean()) > 4 * spread


def test_click_probability_is_the_documented_formula(tiny_config: WorldConfig) -> None:
    config = msgspec.structs.replace(tiny_config, click_noise=0.25, beta=0.7, ctr=0.3)
    world = config.build()
    rows, items = np.arange(50), world.item_ids[:50]
    slope = 0.7 * (world.utility(rows, items) - world.offset)
    wanted = 0.75 / (1 + np.exp(-slope)) + 0.25 * 0.3
    np.testing.assert_allclose(world.click_probability(rows, items), wanted, rtol=1e-12)


def test_sources_get_easier_from_exposed_to_random(flat: Any) -> None:
    stage = flat["candidates.stage"]
    means = [flat.utility[stage == s].mean() for s in ("exposed", "rank", "prerank", "retrieval")]
    means.append(flat.utility[stage == "pool"].mean())
    assert (np.diff(means) < -0.2).all()
    aucs = _source_aucs(flat)
    positive = flat.utility[flat["labels.click"] == 1]
    aucs["random"] = _auc(positive, flat.utility[stage == "pool"])
    assert 0.6 < aucs["exposed"] < aucs["rank"] < aucs["prerank"] < aucs["random"]


def test_the_gap_knob_moves_the_sources_apart(tiny_config: WorldConfig, flatten: Any) -> None:
    aucs = []
    for gap in (0.2, 1.0, 5.0):
        config = msgspec.structs.replace(tiny_config, gap=gap, num_requests=400)
        aucs.append(_source_aucs(flatten(config.build())))
    for easy, hard in (("rank", "exposed"), ("prerank", "exposed")):
        gaps = [auc[easy] - auc[hard] for auc in aucs]
        assert gaps[0] + 0.02 < gaps[1] < gaps[2] - 0.005


def test_leaks_are_off_by_default_and_show_when_on(tiny_config: WorldConfig, flatten: Any) -> None:
    def probe(**knobs: float) -> tuple[float, float]:
        config = msgspec.structs.replace(tiny_config, num_requests=300, **knobs)
        flat = flatten(config.build())
        score, click = flat["candidates.retrieval_score"], flat["labels.click"]
        kept, lost = (flat["candidates.stage"] == s for s in ("rank", "prerank"))
        return _auc(score[click == 1], score[click == 0]), _auc(score[kept], score[lost])

    off, by_click, by_stage = probe(), probe(leak_click=8.0), probe(leak_stage=8.0)
    assert off[0] < 0.6
    assert off[1] < 0.65
    assert by_click[0] > 0.99
    assert by_click[1] == pytest.approx(off[1], abs=1e-4)
    assert by_stage[1] > 0.99
    assert by_stage[0] == pytest.approx(off[0], abs=1e-4)
