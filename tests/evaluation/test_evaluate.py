"""The table of results: its shape, counts, differences, and what must not change it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from prerank.cascade import Cascade, Tier
from prerank.errors import InputError
from prerank.evaluation import (
    DEFAULT_BASELINES,
    Difference,
    Estimate,
    Evaluation,
    TruthOptions,
    evaluate,
)
from prerank.evaluation.cascades import CascadeScorer
from prerank.evaluation.collect import ModelScorer, collect
from prerank.evaluation.show import as_text, cost_table, shown_keys
from prerank.log import Log, open_log, write_log
from prerank.models import TwoTower

KS = (3, 10)
DETAILS = ("quota", "top_m", "ranker")


def evaluated(flat: Any, scorers: Any, **options: Any) -> Evaluation:
    options = {"num_resamples": 30, "ks": KS, "cost": False, **options}
    return evaluate(scorers, flat.log["test"], **options)


@pytest.fixture(scope="module")
def result(flat: Any, runs: Any) -> Evaluation:
    cascade = Cascade([Tier(runs.two_tower, forward=0.3), Tier(runs.mlp)])
    scorers = {"two_tower": runs.two_tower, "mlp": runs.mlp, "cascade": cascade}
    return evaluated(flat, scorers, cost=True, seed=3)


def test_json_has_the_promised_shape(result: Evaluation, flat: Any) -> None:
    text = json.dumps(result.to_json(), allow_nan=False)
    values = json.loads(text)
    assert set(values) == {"runs", "differences", "counts", "log", "part", "seed", *DETAILS}
    assert (values["log"], values["part"], values["seed"]) == (str(flat.log.path), "test", 3)
    assert list(values["runs"]) == ["two_tower", "mlp", "cascade", *DEFAULT_BASELINES]
    for name, run in values["runs"].items():
        more = {"tiers"} if name == "cascade" else set()
        assert set(run) == {"metrics", "cost", "skipped", *more}
        for key, metric in run["metrics"].items():
            assert set(metric) == {"value", "low", "high", "num_clusters"}
            if not key.startswith("ece"):
                assert metric["low"] <= metric["value"] <= metric["high"], (name, key)
        if name in ("two_tower", "mlp"):
            assert set(run["cost"]) == {
                "us_per_request",
                "us_per_item",
                "us_per_candidate",
                "flops_per_candidate",
                "params_dense",
                "params_table",
                *("num_candidates", "num_requests", "peak_mb", "device", "threads"),
            }
            numbers = [v for v in run["cost"].values() if not isinstance(v, str)]
            assert all(number > 0 for number in numbers)
            assert run["cost"]["device"]
            assert run["cost"]["num_requests"] == 1
        else:
            assert run["cost"] is None
    assert values["runs"]["mlp"]["metrics"]["ece/T1"]["low"] is None
    assert "within a request" in values["runs"]["cascade"]["skipped"]["auc/T1"]


def test_counts_equal_the_raw_tables(result: Evaluation, flat: Any) -> None:
    test, stage = flat.within("test"), flat["candidates.stage"]
    shown, clicked = flat.shown & test, flat.clicked & test
    users = [flat.clicked[shown & (flat.user == u)] for u in np.unique(flat.user[shown])]
    rows = flat.world.splits()["test"]
    expected = {
        "requests": len(rows),
        "candidates": int(test.sum()),
        "users": len(np.unique(flat.table["user"].to_numpy()[rows])),
        "positives": int(clicked.sum()),
        "requests_without_positive": len(rows) - len(np.unique(flat.request[clicked])),
        "users_of_one_class": sum(c.all() or not c.any() for c in users),
        "negatives:random": int((test & (stage == "pool")).sum()),
        "negatives:prerank": int((test & (stage == "retrieval")).sum()),
        "negatives:rank": int((test & np.isin(stage, ["prerank", "rank"])).sum()),
        "negatives:exposed": int((shown & ~clicked).sum()),
    }
    assert result.counts == expected
    assert expected["requests_without_positive"] > 1
    gauc = result.runs["random"].metrics["gauc/T1"]
    assert gauc.num_clusters == len(users) - expected["users_of_one_class"]


def same(a: Any, b: Any) -> bool:
    """Whether two estimates are equal bit for bit, NaN included."""
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in fields(a)]
    return all(x == y or (x != x and y != y) for x, y in pairs)


def test_the_same_seed_gives_the_same_numbers(flat: Any, runs: Any) -> None:
    first, again, other = (
        evaluated(flat, {"mlp": runs.mlp}, seed=seed, num_resamples=200) for seed in (1, 1, 2)
    )
    a, b, c = (r.runs["mlp"].metrics for r in (first, again, other))
    assert all(same(a[key], b[key]) for key in a)
    assert a["gauc/T1"].value == c["gauc/T1"].value
    assert (a["gauc/T1"].low, a["gauc/T1"].high) != (c["gauc/T1"].low, c["gauc/T1"].high)
    assert first.value("random", "gauc/T1") == again.value("random", "gauc/T1")
    assert first.value("random", "gauc/T1") != other.value("random", "gauc/T1")


def test_differences_are_paired_and_antisymmetric(flat: Any, runs: Any) -> None:
    forth = evaluated(flat, {"a": runs.two_tower, "b": runs.mlp})
    back = evaluated(flat, {"b": runs.mlp, "a": runs.two_tower})
    assert set(forth.differences) == {
        "a - b",
        *(f"{run} - {b}" for run in "ab" for b in DEFAULT_BASELINES if b != "retrieval"),
    }
    assert set(forth.differences["a - b"]) == set(forth.runs["a"].metrics)
    for key, d in forth.differences["a - b"].items():
        mirrored = back.differences["b - a"][key]
        assert d.value == pytest.approx(-mirrored.value, abs=1e-15)
        np.testing.assert_allclose([d.low, d.high], [-mirrored.high, -mirrored.low], atol=1e-12)
        assert same(d, Difference(d.value, d.low, d.high, d.num_clusters, mirrored.p_value))
        values = forth.value("a", key) - forth.value("b", key)
        assert d.value == pytest.approx(values, abs=1e-12)
    shared = {k for k in forth.runs["a"].metrics if not k.startswith(("ne", "ece", "logloss"))}
    assert set(forth.differences["a - random"]) == shared


def test_batch_size_does_not_change_results(flat: Any, runs: Any) -> None:
    cascade = Cascade([Tier(runs.two_tower, forward=0.3), Tier(runs.mlp)])
    scorers = {"mlp": runs.mlp, "cascade": cascade}
    whole, small = (evaluated(flat, scorers, batch_size=size) for size in (256, 7))
    for name, run in whole.runs.items():
        assert set(run.metrics) == set(small.runs[name].metrics)
        for key, estimate in run.metrics.items():
            other = small.runs[name].metrics[key]
            if key.startswith(("ne", "ece", "logloss")):  # sums of float32 in another order
                assert other.value == pytest.approx(estimate.value, rel=1e-5)
            else:
                assert same(estimate, other), (name, key)


def test_a_cascade_of_one_tier_is_its_model_ties_included(flat: Any, runs: Any) -> None:
    model = TwoTower.Config(width=2).build(flat.log.schema)
    model.transforms = runs.two_tower.transforms
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    for scored in (model, runs.mlp):
        scorers = {"model": scored, "cascade": Cascade([Tier(scored)])}
        for seed in (0, 1):
            found = evaluated(flat, scorers, baselines=(), seed=seed)
            metrics = found.runs["cascade"].metrics
            assert {"mrr/T1", "recall@3/T1", "ndcg@10/T1"} <= set(metrics)
            for key, estimate in metrics.items():
                pairs = ("request_auc", "kendall", "consistency")
                if scored is model and key.startswith(pairs):
                    continue  # the model's ties count one half, the cascade drew an order
                assert same(estimate, found.runs["model"].metrics[key]), key


def test_the_cascade_is_the_two_models_sorted_by_hand(flat: Any, runs: Any) -> None:
    """Each model with its own transforms; scores of every candidate, sorted per request."""
    assert runs.two_tower.transforms.max_history != runs.mlp.transforms.max_history
    cascade = Cascade([Tier(runs.two_tower, forward=0.3), Tier(runs.mlp)])
    scorers = {
        "a": ModelScorer(runs.two_tower),
        "b": ModelScorer(runs.mlp),
        "cascade": CascadeScorer(cascade),
    }
    data = collect(flat.log["test"], scorers, batch_size=16)
    a, b, found = (data.scores[name][:, 0] for name in ("a", "b", "cascade"))
    for start, stop in zip(data.offsets, data.offsets[1:], strict=False):
        order = sorted(range(start, stop), key=lambda i: -a[i])
        num = -(-3 * (stop - start) // 10)
        order[:num] = sorted(order[:num], key=lambda i: -b[i])
        assert [-found[i] for i in order] == list(range(stop - start))


def test_another_log_is_mapped_by_raw_value(flat: Any, runs: Any, tmp_path: Path) -> None:
    """Only the test requests, items in another order: every index is another one."""
    rows = flat.world.splits()["test"]
    items = flat.world.items()
    items = items.take(np.random.default_rng(1).permutation(items.num_rows))
    write_log(tmp_path / "log", flat.log.schema, [flat.table.take(pa.array(rows))], items)
    other = open_log(tmp_path / "log")
    ids = [log.items.ids.values.to_pylist() for log in (flat.log, other)]
    assert ids[0] != ids[1]
    scorers = {"mlp": runs.mlp, "two_tower": runs.two_tower}
    # Later requests and the training part are not in the other log.
    truths = TruthOptions(groups=("T1", "T2", "T3", "T4", "ranker", "macro"))
    there = evaluate(
        scorers, other.all(), baselines=(), ks=KS, truths=truths, num_resamples=2, cost=False
    )
    here = evaluated(flat, scorers, baselines=(), truths=truths)
    assert there.counts == here.counts
    for name in scorers:
        for key, estimate in here.runs[name].metrics.items():
            assert there.value(name, key) == pytest.approx(estimate.value, rel=1e-5), key


def test_cuts_baselines_and_parts_are_as_asked(flat: Any, given: Any) -> None:
    scorer = given(np.arange(len(flat.request), dtype=float), flat.offsets)
    seen: list[int] = []
    result = evaluated(
        flat, {"run": scorer}, baselines=["slot"], ks=(2,), batch_size=30, progress=seen.append
    )
    assert list(result.runs) == ["run", "slot"]
    cuts = {key for key in result.runs["run"].metrics if key.endswith("/T1") and "@" in key}
    quota = result.quota
    assert quota is not None
    asked = {
        f"{name}@{k}/T1" for name in ("recall", "ndcg") for k in (2, quota // 2, quota, 2 * quota)
    }
    assert {key for key in cuts if not key.startswith("survival")} <= asked
    assert {f"recall@{quota}/T1", "ndcg@2/T1"} <= cuts
    assert seen == scorer.calls
    assert sum(seen) == result.counts["requests"]
    assert max(seen) == 30
    assert np.isnan(result.value("slot", "ne/T1"))


def test_text_for_people_shows_what_was_found(result: Evaluation, two_tasks: Any) -> None:
    text = as_text(result)
    for name in ("two_tower", "cascade", "popularity", "gauc/T1", "recall@10/T1", "mlp - random"):
        assert name in text
    assert f"{result.value('mlp', 'gauc/T1'):.4f}" in text
    assert str(result) == text
    assert cost_table(result).row_count == 2
    assert {"ne/T1", "recall@3/T1"} <= set(shown_keys(result))
    baselines = evaluate({}, two_tasks.log["test"], num_resamples=2)
    assert {"gauc/T1/click", "auc/T1/long"} <= set(shown_keys(baselines))


def test_bad_calls_are_refused(
    flat: Any, two_tasks: Any, runs: Any, given: Any, small_log: Callable[..., Log]
) -> None:
    untrained = TwoTower.Config().build(flat.log.schema)
    with pytest.raises(InputError, match="TwoTower was not trained; fit it"):
        evaluated(flat, untrained)
    with pytest.raises(InputError, match="TwoTower was not trained"):
        evaluated(flat, Cascade([Tier(runs.mlp, forward=1), Tier(untrained)]))
    with pytest.raises(InputError, match=r"'mlp' predicts engaged, but .* declares click, long"):
        evaluated(two_tasks, {"mlp": runs.mlp})
    with pytest.raises(InputError, match="a run is named 'random' like a baseline"):
        evaluated(flat, {"random": runs.mlp})
    for wrong in ({"ks": (0,)}, {"num_resamples": -1}):
        with pytest.raises(InputError, match="start at 1"):
            evaluated(flat, runs.mlp, **wrong)
    with pytest.raises(InputError, match="baseline 'nothing' is not known"):
        evaluated(flat, runs.mlp, baselines=["nothing"])
    for shape in ((1, 2), (2, 1)):
        values = np.zeros((len(flat.request) * shape[0], shape[1]))
        scorer = given(values, flat.offsets * shape[0])
        with pytest.raises(InputError, match=r"'x' gives scores of shape \(\d+, \d\); expected"):
            evaluated(flat, {"x": scorer})
    rows = [
        {
            "request_id": 0,
            "user": 1,
            "time": 1_700_000_000_000,
            "candidates.item": [1],
            "candidates.stage": ["exposed"],
            "labels.click": [1.0],
        }
    ]
    schema = flat.log.schema.__class__(labels=flat.log.schema.labels[:1])
    empty = small_log(schema, rows, {"test": np.zeros(0, np.int64), "train": np.arange(1)})
    with pytest.raises(InputError, match="part 'test' has no request to evaluate"):
        evaluate({}, empty["test"], baselines=["random"])


def test_estimates_are_plain_values(result: Evaluation) -> None:
    assert isinstance(result.runs["mlp"].metrics["auc/T1"], Estimate)
    assert isinstance(result.differences["mlp - random"]["auc/T1"], Difference)
