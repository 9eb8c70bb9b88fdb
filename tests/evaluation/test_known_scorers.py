"""Scorers whose results are known before evaluating: the labels, chance, the truth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from prerank.evaluation import Evaluation, TruthOptions, evaluate
from prerank.evaluation.baselines import make_baselines
from prerank.evaluation.collect import collect
from prerank.evaluation.measures import measure

KS = (1, 4, 8, 20)
ONLY_T1 = TruthOptions(groups=("T1",))
BEST = {"auc": 1, "gauc": 1, "request_auc": 1, "recall": 1, "ndcg": 1, "mrr": 1}
BEST |= {"logloss": 0, "ne": 0, "ece": 0}


def evaluated(flat: Any, scorers: dict[str, Any], **options: Any) -> Evaluation:
    options = {"baselines": (), "num_resamples": 50, "ks": KS, "truths": ONLY_T1, **options}
    return evaluate(scorers, flat.log["test"], **options)


def requests(flat: Any) -> list[tuple[int, int]]:
    """Candidates and clicks of each test request with a click."""
    found = [(s.stop - s.start, int(flat.clicked[s].sum())) for s in flat.requests("test")]
    return [(n, p) for n, p in found if p]


def test_the_labels_themselves_reach_the_best_of_every_metric(flat: Any, given: Any) -> None:
    logit = np.where(flat.clicked, 40.0, -40.0)
    result = evaluated(flat, {"oracle": given(logit, flat.offsets)})
    run = result.runs["oracle"]
    assert not run.skipped
    assert {key.split("/")[0].split("@")[0] for key in run.metrics} == set(BEST)
    for key, estimate in run.metrics.items():
        name, _, k = key.split("/")[0].partition("@")
        best = float(BEST[name])
        if name == "recall":  # k places hold at most k positives
            best = np.mean([min(int(k), p) / p for _, p in requests(flat)])
        assert estimate.value == pytest.approx(best, abs=1e-9), key
    assert result.value("oracle", "recall@8/T1") == 1.0


def test_the_labels_turned_round_reach_the_worst(flat: Any, given: Any) -> None:
    logit = np.where(flat.clicked, -9.0, 9.0)
    result = evaluated(flat, {"fool": given(logit, flat.offsets)})
    for key, estimate in result.runs["fool"].metrics.items():
        if "auc" in key or key.startswith(("recall@1/", "ndcg@1/")):
            assert estimate.value == 0.0, key
    last = np.mean([1 / (n - p + 1) for n, p in requests(flat)])
    assert result.value("fool", "mrr/T1") == pytest.approx(last)
    assert result.value("fool", "logloss/T1") == pytest.approx(9, abs=1e-3)


def by_chance(metric: str, k: int, n: int, p: int) -> float:
    """Expectation of a metric of one request when every order is equally likely."""
    gain = [1 / math.log2(i + 2) for i in range(n)]
    match metric:
        case "recall":
            return min(k, n) / n
        case "ndcg":
            return p / n * sum(gain[:k]) / sum(gain[: min(k, p)])
        case "mrr":
            first = [math.comb(n - 1 - i, p - 1) / math.comb(n, p) for i in range(n - p + 1)]
            assert sum(first) == pytest.approx(1)
            return sum(share / (i + 1) for i, share in enumerate(first))
    return 0.5


def test_chance_is_met_within_its_error(flat: Any) -> None:
    part = flat.log["test"]
    draws: dict[str, list[float]] = {}
    for seed in range(40):
        scorers = make_baselines(["random"], None, flat.log, seed)
        found, skipped = measure(collect(part, scorers), "random", KS, seed)
        assert all(why == "there are no probabilities" for why in skipped.values())
        for key, m in found.items():
            draws.setdefault(key, []).append(m.estimate(1, 0).value)
    assert len(draws) == 2 + 3 * 4 + 2 * len(KS) + 1
    for key, values in draws.items():
        name, _, k = key.split("/")[0].partition("@")
        expected = np.mean([by_chance(name, int(k or 0), n, p) for n, p in requests(flat)])
        error = np.std(values, ddof=1) / math.sqrt(len(values))
        assert abs(np.mean(values) - expected) < 4 * error, key
        assert error < 0.1 * expected, key


def test_equal_scores_are_chance_too_and_cannot_profit_from_the_log(flat: Any, given: Any) -> None:
    """The log lists exposed candidates in places of its own; a constant must not inherit them."""
    draws: dict[str, list[float]] = {}
    for seed in range(40):
        zeros = given(np.zeros(len(flat.request)), flat.offsets)
        result = evaluated(flat, {"zero": zeros}, seed=seed, num_resamples=1)
        for key, estimate in result.runs["zero"].metrics.items():
            draws.setdefault(key, []).append(estimate.value)
    for key, values in draws.items():
        name, _, k = key.split("/")[0].partition("@")
        if name in ("recall", "ndcg", "mrr"):
            expected = np.mean([by_chance(name, int(k or 0), n, p) for n, p in requests(flat)])
            error = np.std(values, ddof=1) / math.sqrt(len(values))
            assert abs(np.mean(values) - expected) < 4 * error, key
        elif "auc" in name:
            assert set(values) == {0.5}, key


def test_the_true_probability_is_the_best_forecast(flat: Any, given: Any) -> None:
    """Its log loss is its entropy within chance; noise added to it only does harm."""
    p = flat.world.click_probability(flat.request, flat["candidates.item"])
    logit = np.log(p) - np.log1p(-p)
    draw = np.random.default_rng(0)
    scorers = {"truth": given(logit, flat.offsets)}
    for scale in (1.0, 3.0):
        noisy = logit + scale * draw.normal(size=len(logit))
        scorers[f"noise {scale:g}"] = given(noisy, flat.offsets)
    scorers["too sure"] = given(3 * logit, flat.offsets)
    result = evaluated(flat, scorers, baselines=("random",), num_resamples=500)

    chosen = flat.within("test") & flat.shown
    q, x = p[chosen], logit[chosen]
    entropy = -(q * np.log(q) + (1 - q) * np.log1p(-q)).mean()
    error = math.sqrt((q * (1 - q) * x**2).sum()) / len(q)
    assert abs(result.value("truth", "logloss/T1") - entropy) < 3 * error
    assert result.value("truth", "ne/T1") < 1
    for name in ("noise 1", "noise 3", "too sure"):
        found = result.differences[f"truth - {name}"]
        assert found["ne/T1"].high < 0, name
        assert found["ece/T1"].value < 0, name
    for key in ("auc/T1", "gauc/T1", "mrr/T1", "auc/source:random", "recall@8/T1"):
        assert result.differences["truth - random"][key].low > 0, key
        worse = [result.value(name, key) for name in ("noise 1", "noise 3", "random")]
        assert result.value("truth", key) > max(worse), key
    # What only rescales logits keeps the order.
    assert result.differences["truth - too sure"]["gauc/T1"].value == 0


def test_utility_orders_as_its_probability(flat: Any, given: Any) -> None:
    items = flat["candidates.item"]
    utility = flat.world.utility(flat.request, items)
    p = flat.world.click_probability(flat.request, items)
    scorers = {
        "utility": given(utility, flat.offsets, "score"),
        "probability": given(p, flat.offsets, "score"),
    }
    result = evaluated(flat, scorers)
    for found in result.differences["utility - probability"].values():
        assert found.value == 0
        assert found.p_value == 1
