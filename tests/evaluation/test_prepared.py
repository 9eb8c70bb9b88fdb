"""A part prepared once, metrics chosen, no intervals, values per request."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prerank.cascade import Cascade, Tier
from prerank.errors import InputError
from prerank.evaluation import Units, evaluate, load_units, prepare, save_units
from prerank.evaluation.chosen import Chosen
from prerank.evaluation.statistics import bootstrap_mean

OPTIONS: dict[str, Any] = {"num_resamples": 20, "ks": (3, 10), "cost": False}


def plain(result: Any) -> str:
    return json.dumps(result.to_json(), allow_nan=False)


def test_a_prepared_part_gives_the_same_results_again_and_again(flat: Any, runs: Any) -> None:
    prepared = prepare(flat.log["test"], seed=3, batch_size=16)
    cascade = Cascade([Tier(runs.two_tower, forward=0.3), Tier(runs.mlp)])
    for scorers in ({"mlp": runs.mlp}, {"cascade": cascade, "two_tower": runs.two_tower}):
        once = evaluate(scorers, flat.log["test"], seed=3, batch_size=16, **OPTIONS)
        seen: list[int] = []
        for _ in range(2):
            again = prepared.evaluate(scorers, progress=seen.append, **OPTIONS)
            assert plain(once) == plain(again)
        assert sum(seen) == 2 * once.counts["requests"]
    with pytest.raises(InputError, match="a run is named 'random' like a baseline"):
        prepared.evaluate({"random": runs.mlp})


def test_chosen_metrics_are_those_of_all(flat: Any, runs: Any) -> None:
    part = flat.log["test"]
    everything = evaluate({"mlp": runs.mlp}, part, baselines=["random"], **OPTIONS)
    for asked in (["recall@", "auc/source:rank"], ["gauc/T1"], ["kendall", "regret@10/U"]):
        some = evaluate({"mlp": runs.mlp}, part, baselines=["random"], metrics=asked, **OPTIONS)
        chosen = Chosen(tuple(asked))
        for name, run in some.runs.items():
            whole = everything.runs[name]
            expected = {k: v for k, v in whole.metrics.items() if chosen.wants(k)}
            expected = {k: v for k, v in expected.items() if len(asked) > 1 or "cold" not in k}
            assert list(run.metrics) == list(expected)
            for key, estimate in expected.items():
                numbers = [[e.value, e.low, e.high] for e in (estimate, run.metrics[key])]
                np.testing.assert_allclose(*numbers, rtol=1e-12, atol=1e-14)
            assert set(run.skipped) <= set(whole.skipped)
            assert all(chosen.wants(key) for key in run.skipped)
    asked_for = ["recall@7/T1"]
    one = evaluate({"mlp": runs.mlp}, part, baselines=(), metrics=asked_for, **OPTIONS)
    assert list(one.runs["mlp"].metrics) == asked_for


def test_groups_follow_the_keys() -> None:
    groups = ("T1", "T2", "T3", "T4", "T5", "U", "ranker", "macro", "cold")

    def needed(*keys: str) -> tuple[str, ...]:
        return Chosen(keys).groups(groups)

    assert Chosen().groups(groups) == groups
    assert needed("recall") == needed("recall@") == ("T1", "T2", "T3", "T5", "U", "cold")
    assert needed("recall@100/T1", "gauc/T1") == ("T1",)
    assert needed("survival@50/T1") == ("T1", "ranker")
    assert needed("regret") == ("T1", "U")
    assert needed("gauc/T1:cold_item") == ("T1", "cold")
    assert needed("auc_min/sources", "ndcg@10/T4") == ("T1", "T4", "macro")
    assert not Chosen(("recall@1",)).wants("recall@10/T1")
    for wrong in ([], "recall", [""]):
        with pytest.raises(InputError, match="expected keys or beginnings of keys"):
            Chosen.of(wrong)


def test_no_resamples_means_no_intervals(flat: Any, runs: Any) -> None:
    part = flat.log["test"]
    scorers = {"a": runs.mlp, "b": runs.two_tower}
    points = evaluate(scorers, part, **{**OPTIONS, "num_resamples": 0})
    whole = evaluate(scorers, part, **OPTIONS)
    values = json.loads(plain(points))
    for name, run in values["runs"].items():
        for key, estimate in run["metrics"].items():
            assert (estimate["low"], estimate["high"]) == (None, None)
            assert estimate["value"] == whole.value(name, key)
            assert estimate["num_clusters"] == whole.runs[name].metrics[key].num_clusters
    for pair, found in points.differences.items():
        for key, d in found.items():
            assert math.isnan(d.p_value)
            assert d.value == whole.differences[pair][key].value


def test_values_per_request_have_the_mean_and_its_interval(
    flat: Any, runs: Any, tmp_path: Path
) -> None:
    part = flat.log["test"]
    result = evaluate({"mlp": runs.mlp}, part, per_request=True, **OPTIONS)
    run = result.runs["mlp"]
    assert {"mrr/T1", "gauc/T1", "ne/T1", "kendall/ranker", "recall@10/T3"} <= set(run.units)
    assert not {"auc/T1", "auc_min/sources", "ece/T1"} & set(run.units)
    save_units(tmp_path / "units.npz", run.units)
    stored = load_units(tmp_path / "units.npz")
    assert set(stored) == set(run.units)
    for key, units in run.units.items():
        assert units is run.per_request(key)
        assert units.user.shape == units.row.shape == units.value.shape
        assert units.mean() == pytest.approx(run.metrics[key].value, rel=1e-12)
        assert stored[key].mean() == pytest.approx(units.mean(), rel=1e-6)
        estimate = bootstrap_mean(units.value, units.weight, units.user, num_resamples=20)
        np.testing.assert_allclose(
            [estimate.low, estimate.high],
            [run.metrics[key].low, run.metrics[key].high],
            rtol=1e-9,
        )
    rows = run.per_request("mrr/T1").row
    assert len(rows) == result.counts["requests"] == len(set(rows.tolist()))
    assert "units" not in result.to_json()["runs"]["mlp"]
    with pytest.raises(InputError, match="'auc/T1' is no mean over requests or users"):
        run.per_request("auc/T1")
    without = evaluate({"mlp": runs.mlp}, part, **OPTIONS)
    with pytest.raises(InputError, match="was not kept; evaluate with per_request=True"):
        without.runs["mlp"].per_request("mrr/T1")


def test_files_of_units_are_checked(tmp_path: Path) -> None:
    user, row = np.array([5, 2, 5]), np.array([30, 10, 20])
    users = np.array([2, 5])
    units = {
        "a": Units(user, row, np.array([1.0, np.nan, 3.0])),
        "b": Units(users, np.array([-1, -1]), np.array([0.5, 0.25]), np.array([3.0, 1.0])),
        "c": Units(users[1:], np.array([-1]), np.array([0.125]), np.array([2.0])),
    }
    path = tmp_path / "units.npz"
    save_units(path, units)
    found = load_units(path)
    np.testing.assert_array_equal(found["a"].row, [10, 20, 30])
    np.testing.assert_array_equal(found["a"].user, [2, 5, 5])
    np.testing.assert_array_equal(found["a"].value, [np.nan, 3.0, 1.0])
    assert found["a"].weight is None
    assert {key: u.mean() for key, u in found.items()} == {
        key: u.mean() for key, u in units.items()
    }
    path.write_bytes(path.read_bytes()[:100])
    for wrong in (path, tmp_path / "none.npz"):
        with pytest.raises(InputError, match="not a file of units"):
            load_units(wrong)
