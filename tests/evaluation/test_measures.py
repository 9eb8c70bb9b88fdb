"""Every number against scikit-learn or plain loops over the raw tables; every reason for none."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import log_loss, ndcg_score, roc_auc_score

from prerank.evaluation import Evaluation, TruthOptions, evaluate
from prerank.log import Log
from prerank.schema import Feature, Label, Schema, Task

KS = (3, 10)
ONLY_T1 = TruthOptions(groups=("T1",))
STAGES = {
    "random": ("pool",),
    "prerank": ("retrieval",),
    "rank": ("prerank", "rank"),
    "exposed": ("exposed",),
}


def noisy(flat: Any, seed: int = 0) -> np.ndarray:
    """Logits that know something of the clicks, all different."""
    draw = np.random.default_rng(seed)
    return 1.5 * flat.clicked - 1.0 + draw.normal(size=len(flat.request))


def evaluated(flat: Any, values: np.ndarray, given: Any, kind: str = "logit") -> Evaluation:
    scorer = given(values, flat.offsets, kind)
    return evaluate(
        {"run": scorer},
        flat.log["test"],
        baselines=(),
        ks=KS,
        truths=ONLY_T1,
        num_resamples=2,
        cost=False,
    )


def gauc(score: np.ndarray, label: np.ndarray, user: np.ndarray) -> float:
    total = weight = 0.0
    for u in set(user.tolist()):
        mine = user == u
        if 0 < label[mine].sum() < mine.sum():
            total += mine.sum() * roc_auc_score(label[mine], score[mine])
            weight += mine.sum()
    return total / weight


def test_order_metrics_equal_scikit_learn(flat: Any, given: Any) -> None:
    score = noisy(flat)
    result = evaluated(flat, score, given)
    test, stage = flat.within("test"), flat["candidates.stage"]
    expected = {}
    groups = {f"source:{name}": np.isin(stage, names) for name, names in STAGES.items()}
    for key, negative in {"T1": flat.shown, **groups}.items():
        chosen = test & (flat.clicked | (negative & ~flat.clicked))
        x, y = score[chosen], flat.clicked[chosen]
        expected[f"auc/{key}"] = roc_auc_score(y, x)
        expected[f"gauc/{key}"] = gauc(x, y, flat.user[chosen])
        if key != "T1":
            within = []
            for one in flat.requests("test"):
                mine = chosen[one]
                y = flat.clicked[one][mine]
                if 0 < y.sum() < len(y):
                    within.append(roc_auc_score(y, score[one][mine]))
            expected[f"request_auc/{key}"] = np.mean(within)
    lists = [(score[s], flat.clicked[s]) for s in flat.requests("test") if flat.clicked[s].any()]
    expected["mrr/T1"] = np.mean([1 / (1 + y[np.argsort(-x)].argmax()) for x, y in lists])
    for k in KS:
        hits = [y[np.argsort(-x)[:k]].sum() / y.sum() for x, y in lists]
        expected[f"recall@{k}/T1"] = np.mean(hits)
        expected[f"ndcg@{k}/T1"] = np.mean([ndcg_score([y], [x], k=k) for x, y in lists])
    metrics = result.runs["run"].metrics
    found = {key: metrics[key].value for key in expected}
    assert found == pytest.approx(expected, rel=1e-9)
    assert set(metrics) - set(expected) == {"logloss/T1", "ne/T1", "ece/T1"}


def test_probabilities_are_judged_over_exposures(flat: Any, given: Any) -> None:
    logit = noisy(flat)
    result = evaluated(flat, logit, given)
    chosen = flat.within("test") & flat.shown
    y, p = flat.clicked[chosen], 1 / (1 + np.exp(-logit[chosen]))
    loss = log_loss(y, p)
    assert result.value("run", "logloss/T1") == pytest.approx(loss, rel=1e-12)
    constant = log_loss(y, np.full(len(y), y.mean()))
    assert result.value("run", "ne/T1") == pytest.approx(loss / constant, rel=1e-12)
    bins = np.array_split(np.argsort(p), 20)
    gaps = [abs((p[b] - y[b]).sum()) for b in bins]
    # Bins of equal mass; where the size is no multiple of 20, edges may differ by a candidate.
    assert result.value("run", "ece/T1") == pytest.approx(sum(gaps) / len(y), abs=0.02)
    elsewhere = np.where(flat.shown, logit, logit + 100)
    again = evaluated(flat, elsewhere, given)
    for key in ("logloss/T1", "ne/T1", "ece/T1", "auc/T1", "auc/source:exposed"):
        assert again.value("run", key) == result.value("run", key), key
    assert again.value("run", "auc/source:rank") == 0


def test_two_tasks_have_keys_of_their_own(two_tasks: Any, given: Any) -> None:
    flat = two_tasks
    click, long = noisy(flat, 1), noisy(flat, 2)
    result = evaluated(flat, np.stack([click, long], axis=1), given)
    chosen = flat.within("test") & flat.shown
    y = flat["labels.watch_ms"][chosen] >= 20_000
    assert 0 < y.sum() < flat.clicked[chosen].sum()
    loss = log_loss(y, 1 / (1 + np.exp(-long[chosen])))
    expected = {
        "auc/T1": roc_auc_score(flat.clicked[chosen], click[chosen]),
        "auc/T1/click": roc_auc_score(flat.clicked[chosen], click[chosen]),
        "auc/T1/long": roc_auc_score(y, long[chosen]),
        "gauc/T1/long": gauc(long[chosen], y, flat.user[chosen]),
        "logloss/T1/long": loss,
        "ne/T1/long": loss / log_loss(y, np.full(len(y), y.mean())),
    }
    found = {key: result.value("run", key) for key in expected}
    assert found == pytest.approx(expected, rel=1e-9)
    metrics = set(result.runs["run"].metrics)
    assert {f"{m}/T1/{t}" for m in ("ne", "ece", "logloss") for t in ("click", "long")} <= metrics
    assert "ne/T1" not in metrics
    # A baseline has one score for all tasks.
    result = evaluated(flat, long, given, "score")
    assert result.value("run", "auc/T1/long") == pytest.approx(expected["auc/T1/long"])
    assert result.runs["run"].skipped["ne/T1/long"] == "there are no probabilities"


def test_orders_have_no_pooled_metrics(flat: Any, given: Any) -> None:
    score = noisy(flat)
    whole = evaluated(flat, score, given, "score").runs["run"].metrics
    order = evaluated(flat, score, given, "order").runs["run"]
    pooled = {key for key in whole if key.startswith(("auc/", "gauc/"))}
    assert len(pooled) == 2 * (1 + len(STAGES))
    for key in pooled:
        assert "within a request only" in order.skipped[key]
    assert order.metrics == {key: m for key, m in whole.items() if key not in pooled}


def test_every_key_is_there_or_has_a_reason(flat: Any, given: Any) -> None:
    """The same keys for every kind of scorer, found and skipped together."""
    keys = set()
    for kind in ("logit", "score", "order"):
        run = evaluated(flat, noisy(flat), given, kind).runs["run"]
        assert not set(run.metrics) & set(run.skipped)
        keys.add(frozenset({*run.metrics, *run.skipped}))
        assert all(math.isfinite(e.value) for e in run.metrics.values())
    assert len(keys) == 1


def schema(**more: Any) -> Schema:
    item = Feature(name="item", owner="item", kind="categorical")
    return Schema(features=(item,), labels=(Label(name="click"), Label(name="buy")), **more)


def rows(clicks: list[list[float | None]], stages: list[list[str]] | None = None) -> list[Any]:
    return [
        {
            "request_id": k,
            "user": k % 3,
            "time": 1_700_000_000_000 + k,
            "candidates.item": list(range(len(click))),
            "candidates.stage": stages[k] if stages else ["exposed"] * len(click),
            "labels.click": click,
            "labels.buy": [None if c is None else 0.0 for c in click],
        }
        for k, click in enumerate(clicks)
    ]


def tiny(log: Log, given: Any, ks: tuple[int, ...] = (1,)) -> Evaluation:
    lengths = [c.candidates.offsets[1] for c in log.all().columns(1)]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    width = len(log.schema.task_names)
    scorer = given(np.random.default_rng(0).normal(size=(offsets[-1], width)), offsets)
    return evaluate(
        {"run": scorer}, log.all(), baselines=(), ks=ks, truths=ONLY_T1, num_resamples=2
    )


def test_reasons(small_log: Callable[..., Log], given: Any) -> None:
    run = tiny(small_log(schema(), rows([[1.0, 1.0], [1.0]])), given).runs["run"]
    assert run.skipped["auc/T1"] == "3 positives among 3 candidates: one class only"
    assert run.skipped["gauc/source:random"] == run.skipped["auc/T1"]
    assert run.skipped["ne/T1"].startswith("labels of one class only")
    assert run.skipped["request_auc/source:rank"] == "no request has both a positive and a negative"
    assert {"logloss/T1", "ece/T1", "mrr/T1"} <= set(run.metrics)

    run = tiny(small_log(schema(), rows([[0.0, 0.0, 0.0], [0.0] * 3])), given).runs["run"]
    assert run.skipped["recall@1/T1"] == run.skipped["mrr/T1"] == "no request has a positive"
    assert run.skipped["auc/T1"] == "0 positives among 6 candidates: one class only"

    run = tiny(small_log(schema(), rows([[1.0, 1.0], [0.0], [0.0]])), given).runs["run"]
    assert run.skipped["gauc/T1"] == "no user has both a positive and a negative"
    assert "auc/T1" in run.metrics

    result = tiny(small_log(schema(), rows([[1.0, 1.0], [0.0], [1.0, 0.0]])), given)
    assert result.counts["users_of_one_class"] == 2
    assert result.runs["run"].metrics["gauc/T1"].num_clusters == 1

    run = tiny(small_log(schema(), rows([[None, None, None]] * 2)), given).runs["run"]
    assert run.skipped["ece/T1"] == run.skipped["logloss/T1"] == "no label is known"
    assert run.skipped["ndcg@1/T1"] == "no request has a positive"
    assert not run.metrics


def test_cut_offs_that_keep_everything_are_skipped(
    small_log: Callable[..., Log], given: Any
) -> None:
    """Only requests with a positive count; empty ones would hide the size of the others."""
    clicks = [[], [0.0], [1.0] + [0.0] * 5, [1.0] + [0.0] * 6, [1.0] + [0.0] * 8, [], []]
    run = tiny(small_log(schema(), rows(clicks)), given, ks=(1, 6, 7, 9)).runs["run"]
    assert {"recall@1/T1", "recall@6/T1", "ndcg@6/T1"} <= set(run.metrics)
    for k in (7, 9):
        reason = f"half of the requests have 7 candidates or fewer, so k = {k} keeps all"
        assert run.skipped[f"recall@{k}/T1"] == run.skipped[f"ndcg@{k}/T1"] == reason


def test_truth_is_over_exposures_even_where_others_have_labels(
    small_log: Callable[..., Log], given: Any
) -> None:
    """An engagement elsewhere is no T1, and a closed window no known exposure."""
    stages = [["exposed", "exposed", "rank", "rank"], ["exposed", "prerank", "rank", "pool"]]
    log = small_log(schema(), rows([[1.0, 0.0, 1.0, 0.0], [0.0] * 4], stages))
    result = tiny(log, given)
    assert result.counts["positives"] == 1
    assert result.counts["requests_without_positive"] == 1
    values = np.random.default_rng(0).normal(size=8)
    x, y = values[[0, 1, 4]], np.array([1, 0, 0])
    assert result.value("run", "auc/T1") == roc_auc_score(y, x)
    loss = np.mean(np.log1p(np.exp(x)) - y * x)
    assert result.value("run", "logloss/T1") == pytest.approx(loss)
    assert result.value("run", "auc/source:rank") == np.mean(values[0] > values[[3, 5, 6]])


def test_one_declared_task_is_t1_only_if_it_is_the_same(
    small_log: Callable[..., Log], given: Any
) -> None:
    clicks: list[list[float | None]] = [[1.0, 0.0], [0.0, 1.0]]
    same = schema(tasks=(Task(name="tap", positive="click"),))
    assert "ne/T1" in tiny(small_log(same, rows(clicks)), given).runs["run"].metrics
    other = schema(tasks=(Task(name="buy", positive="buy"),))
    run = tiny(small_log(other, rows(clicks)), given).runs["run"]
    assert "ne/T1" not in {*run.metrics, *run.skipped}
    assert run.skipped["ne/T1/buy"].startswith("labels of one class only")
    assert run.skipped["auc/T1/buy"] == "0 positives among 4 candidates: one class only"
