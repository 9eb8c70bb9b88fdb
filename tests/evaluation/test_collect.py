"""What a pass over a part collects, and that broken scores are named."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from prerank.cascade import Cascade, Tier
from prerank.errors import InputError
from prerank.evaluation import evaluate
from prerank.evaluation.cascades import CascadeScorer
from prerank.evaluation.collect import collect
from prerank.evaluation.scoring import score_part


def test_collects_the_raw_candidates(flat: Any, given: Any) -> None:
    score = np.random.default_rng(0).normal(size=len(flat.request))
    data = collect(flat.log["test"], {"x": given(score, flat.offsets, "score")}, batch_size=13)
    test, rows = flat.within("test"), flat.world.splits()["test"]
    np.testing.assert_array_equal(data.row, rows)
    np.testing.assert_array_equal(data.lengths, np.diff(flat.offsets)[rows])
    np.testing.assert_array_equal(data.shown, flat.shown[test])
    np.testing.assert_array_equal(data.positive, flat.clicked[test])
    np.testing.assert_array_equal(data.engaged, flat["labels.click"][test])
    np.testing.assert_array_equal(data.scores["x"][:, 0], score[test])
    clicks = [flat.clicked[s].any() for s in flat.requests("test")]
    np.testing.assert_array_equal(data.has_positive, clicks)
    assert 0 in data.lengths  # requests without candidates are there
    raw = flat.log.vocabulary("user").decode(data.user).to_numpy()
    np.testing.assert_array_equal(raw, flat.table["user"].to_numpy()[rows])


def broken(model: Any, value: float) -> Any:
    model = copy.deepcopy(model)
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "item_tower" in name).fill_(value)
    return model


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damaged_weights_give_one_clear_error(
    flat: Any, runs: Any, tmp_path: Any, value: float
) -> None:
    part, bad = flat.log["test"], broken(runs.two_tower, value)
    first = next(r for r in flat.world.splits()["test"] if flat.offsets[r] < flat.offsets[r + 1])
    named = rf"'bad' gives a score that is not finite for request row {first};.*weights are damaged"
    with pytest.raises(InputError, match=named):
        evaluate({"good": runs.mlp, "bad": bad}, part)
    for tiers in ([Tier(bad, forward=2), Tier(runs.mlp)], [Tier(runs.mlp, forward=2), Tier(bad)]):
        with pytest.raises(InputError, match=r"cascade: tier \d \(TwoTower\) gives a value"):
            evaluate({"bad": Cascade(tiers)}, part)
    with pytest.raises(InputError, match=r"'TwoTower' gives a score that is not finite"):
        score_part(bad, part, tmp_path / "scores.parquet")
    assert not list(tmp_path.iterdir())


def test_the_request_of_a_broken_score_is_named(flat: Any, given: Any) -> None:
    rows = flat.world.splits()["test"]
    row = next(r for r in rows[30:] if flat.offsets[r] < flat.offsets[r + 1])
    score = np.zeros(len(flat.request))
    score[flat.offsets[row + 1] - 1] = np.inf
    with pytest.raises(InputError, match=f"'x' gives .* request row {row};"):
        collect(flat.log["test"], {"x": given(score, flat.offsets)}, batch_size=11)


def test_ties_of_a_cascade_depend_on_the_seed_and_not_on_batches(flat: Any, runs: Any) -> None:
    model = copy.deepcopy(runs.two_tower)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    cascade = Cascade([Tier(model, forward=5), Tier(model)])
    first, again, other = (
        collect(flat.log["test"], {"c": CascadeScorer(cascade, seed=seed)}, batch_size=size)
        for seed, size in ((0, 256), (0, 9), (1, 256))
    )
    np.testing.assert_array_equal(first.scores["c"], again.scores["c"])
    assert not np.array_equal(first.scores["c"], other.scores["c"])
