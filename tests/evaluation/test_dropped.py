"""Candidates without a place: lost to recall, last in whole orders, and no invented places."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from prerank.cascade import Cascade, Tier
from prerank.evaluation import evaluate
from prerank.evaluation.cascades import CascadeScorer
from prerank.evaluation.collect import collect


@pytest.fixture(scope="module")
def results(flat: Any, runs: Any) -> Any:
    part = flat.log["test"]
    cascades = {
        tail: Cascade([Tier(runs.two_tower, 0.4, tail=tail), Tier(runs.mlp)])
        for tail in ("append", "drop")
    }
    options: Any = {"baselines": (), "num_resamples": 5, "ks": (2, 5, 15), "cost": False}
    return cascades, part, evaluate(cascades, part, **options)


def test_recall_counts_dropped_ones_as_lost(flat: Any, results: Any) -> None:
    cascades, part, result = results
    score = collect(part, {"c": CascadeScorer(cascades["drop"])}).scores["c"][:, 0]
    rows = flat.world.splits()["test"]
    values: dict[int, list[float]] = {2: [], 5: [], 15: []}
    rank = []
    start = 0
    for row in rows:
        block = slice(int(flat.offsets[row]), int(flat.offsets[row + 1]))
        n = block.stop - block.start
        mine, clicked = score[start : start + n], flat.clicked[block]
        start += n
        kept = int(np.isfinite(mine).sum())
        assert kept == int(np.ceil(0.4 * n - 1e-9))
        assert sorted(-mine[np.isfinite(mine)]) == list(range(kept))
        if clicked.any():
            for k, found in values.items():
                found.append(float((clicked & (mine > -k)).sum() / clicked.sum()))
            best = mine[clicked].max()
            rank.append(1.0 / (1.0 - best) if np.isfinite(best) else 0.0)
    for k, found in values.items():
        assert result.value("drop", f"recall@{k}/T1") == pytest.approx(np.mean(found), abs=1e-12)
    assert result.value("drop", "mrr/T1") == pytest.approx(np.mean(rank), abs=1e-12)
    # Appending finds at least as many, and more behind the cut.
    assert result.value("append", "recall@15/T1") > result.value("drop", "recall@15/T1")


def test_places_that_nothing_stands_in_are_not_judged(results: Any) -> None:
    _, _, result = results
    append, drop = result.runs["append"], result.runs["drop"]
    gone = set(append.metrics) - set(drop.metrics)
    assert {"ndcg@15/T1", "ndcg@15/T4", "overlap@15/ranker", "dislike@15/T2"} <= gone
    assert {"ndcg@2/T1", "ndcg@5/T4", "overlap@2/ranker"} <= set(drop.metrics)
    assert not {key for key in gone if key.startswith(("recall", "mrr", "request_auc"))}
    for key in gone:
        assert "keep fewer than k" in drop.skipped[key]
    assert {key for key in drop.metrics if key.startswith("recall")} == {
        key for key in append.metrics if key.startswith("recall")
    }


def test_all_dropped_ones_are_tied_behind_the_kept_ones(flat: Any, results: Any) -> None:
    cascades, part, result = results
    data = collect(part, {name: CascadeScorer(c) for name, c in cascades.items()})
    append, drop = data.scores["append"][:, 0], data.scores["drop"][:, 0]
    kept = np.isfinite(drop)
    np.testing.assert_array_equal(drop[kept], append[kept])
    offsets = data.offsets
    values = []
    for r in range(len(offsets) - 1):
        block = slice(offsets[r], offsets[r + 1])
        p, n = drop[block][data.positive[block]], drop[block][data.source[block] == 1]
        if len(p) and len(n):
            wins = (p[:, None] > n) + 0.5 * (p[:, None] == n)
            values.append(wins.mean())
    name = data.schema.source_names[1]
    found = result.value("drop", f"request_auc/source:{name}")
    assert found == pytest.approx(np.mean(values), abs=1e-12)


def test_dropping_nothing_is_appending(flat: Any, runs: Any) -> None:
    part = flat.log["test"]
    cascades = {
        tail: Cascade([Tier(runs.two_tower, 1.0, tail=tail), Tier(runs.mlp)])
        for tail in ("append", "drop")
    }
    result = evaluate(cascades, part, baselines=(), num_resamples=5, ks=(5,), cost=False)
    assert result.runs["append"] == result.runs["drop"]
