from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from prerank.metrics import (
    auc,
    hit_rate,
    mrr,
    ndcg_at_k,
    per_request_auc,
    precision_at_k,
    recall_at_k,
    top_order,
)

Request = list[tuple[int, int]]
REQUESTS = st.lists(
    st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 3)), max_size=7), max_size=6
)
METRICS: dict[str, Callable[..., Any]] = {
    "recall": recall_at_k,
    "precision": precision_at_k,
    "hit": hit_rate,
    "mrr": mrr,
    "ndcg": ndcg_at_k,
}


def flat(requests: list[Request]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = [row for request in requests for row in request]
    score = np.array([row[0] for row in rows], dtype=np.float64)
    grade = np.array([row[1] for row in rows], dtype=np.float64)
    return score, grade, np.cumsum([0] + [len(request) for request in requests])


def dcg(grades: list[float], k: int) -> float:
    return sum((2.0**g - 1) / math.log2(i + 2) for i, g in enumerate(grades[:k]))


def by_hand(name: str, ranked: list[float], k: int) -> float:
    """Every metric of one ranked list, from its definition."""
    relevant = [g > 0 for g in ranked]
    hits, total = sum(relevant[:k]), sum(relevant)
    if name == "precision":
        return hits / min(k, len(ranked)) if ranked else math.nan
    if total == 0:
        return math.nan
    match name:
        case "recall":
            return hits / total
        case "hit":
            return float(hits > 0)
        case "mrr":
            return 1 / (1 + relevant.index(True)) if hits else 0.0
        case _:
            return dcg(ranked, k) / dcg(sorted(ranked, reverse=True), k)


@given(REQUESTS, st.integers(1, 9), st.sampled_from(sorted(METRICS)))
def test_metrics_equal_their_definition(requests: list[Request], k: int, name: str) -> None:
    score, grade, offsets = flat(requests)
    order = top_order(score, offsets)
    expected = [
        by_hand(name, [float(grade[i]) for i in order[offsets[r] : offsets[r + 1]]], k)
        for r in range(len(requests))
    ]
    result = METRICS[name](grade, order, offsets, k)
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, expected, atol=1e-12)


@given(REQUESTS)
def test_order_is_a_descending_permutation_of_each_request(requests: list[Request]) -> None:
    score, _, offsets = flat(requests)
    order = top_order(score, offsets)
    for r in range(len(requests)):
        part = order[offsets[r] : offsets[r + 1]]
        assert sorted(part) == list(range(offsets[r], offsets[r + 1]))
        assert (np.diff(score[part]) <= 0).all()


@given(REQUESTS)
def test_order_survives_a_monotone_transform(requests: list[Request]) -> None:
    score, _, offsets = flat(requests)
    expected = top_order(score, offsets, seed=5)
    np.testing.assert_array_equal(top_order(np.exp(2 * score) - 9, offsets, seed=5), expected)
    np.testing.assert_array_equal(top_order(score.astype(np.float32), offsets, 5), expected)


@given(REQUESTS, st.integers(0, 6))
def test_order_is_the_same_in_any_batching(requests: list[Request], cut: int) -> None:
    score, _, offsets = flat(requests)
    row = 100 + 7 * np.arange(len(requests))
    whole = top_order(score, offsets, seed=3, row=row)
    cut = min(cut, len(requests))
    middle = offsets[cut]
    head = top_order(score[:middle], offsets[: cut + 1], seed=3, row=row[:cut])
    tail = top_order(score[middle:], offsets[cut:] - middle, seed=3, row=row[cut:])
    np.testing.assert_array_equal(np.concatenate([head, tail + middle]), whole)


def test_metrics_survive_a_permutation_of_distinct_scores() -> None:
    draw = np.random.default_rng(0)
    lengths = draw.integers(0, 9, 50)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    score, grade = draw.normal(size=offsets[-1]), draw.integers(0, 3, offsets[-1]).astype(float)
    shuffle = np.concatenate(
        [offsets[r] + draw.permutation(lengths[r]) for r in range(50)], dtype=np.int64
    )
    for metric in METRICS.values():
        before = metric(grade, top_order(score, offsets), offsets, 3)
        after = metric(grade[shuffle], top_order(score[shuffle], offsets), offsets, 3)
        np.testing.assert_allclose(after, before, atol=1e-12)
    np.testing.assert_array_equal(
        per_request_auc(score[shuffle], grade[shuffle], offsets),
        per_request_auc(score, grade, offsets),
    )


@pytest.mark.parametrize("k", [1, 2, 5, 50])
@pytest.mark.parametrize("name", sorted(METRICS))
def test_oracle_reaches_the_best_value(name: str, k: int) -> None:
    draw = np.random.default_rng(1)
    offsets = np.arange(0, 401, 10)
    grade = (draw.integers(0, 3, 400) * (draw.random(400) < 0.4)).astype(np.float64)
    best = METRICS[name](grade, top_order(grade, offsets), offsets, k)
    for seed in range(20):
        other = METRICS[name](grade, top_order(draw.normal(size=400), offsets), offsets, k)
        assert (other <= best + 1e-12)[~np.isnan(best)].all(), seed
    relevant = (grade > 0).reshape(40, 10).sum(axis=1)
    ceiling = {
        "recall": np.minimum(k, relevant) / np.maximum(relevant, 1),
        "precision": np.minimum(k, relevant) / min(k, 10),
    }.get(name, np.ones(40))
    known = (relevant > 0) | (name == "precision")
    np.testing.assert_allclose(best, np.where(known, ceiling, np.nan), atol=1e-12)


def expectation(name: str, n: int, p: int, k: int) -> float:
    """Mean of a metric over all orders of ``n`` candidates of which ``p`` are relevant."""
    first = [math.comb(n - 1 - i, p - 1) / math.comb(n, p) for i in range(n - p + 1)]
    discount = [1 / math.log2(i + 2) for i in range(n)]
    return {
        "recall": min(k, n) / n,
        "precision": p / n,
        "hit": 1 - math.comb(n - k, p) / math.comb(n, p),
        "mrr": sum(q / (i + 1) for i, q in enumerate(first) if i < k),
        "ndcg": p / n * sum(discount[:k]) / sum(discount[: min(k, p)]),
    }[name]


@pytest.mark.parametrize("name", sorted(METRICS))
def test_equal_scores_are_worth_a_random_order(name: str) -> None:
    n, p, k, num_requests = 12, 3, 4, 4000
    offsets = np.arange(0, n * num_requests + 1, n)
    grade = np.tile([1.0] * p + [0.0] * (n - p), num_requests)  # the log lists positives first
    order = top_order(np.zeros(grade.size), offsets, seed=11)
    values = METRICS[name](grade, order, offsets, k)
    error = values.std() / math.sqrt(num_requests)
    assert abs(values.mean() - expectation(name, n, p, k)) < 4 * error
    # Negative control: the order of the log would have made the constant scorer an oracle.
    leaked = METRICS[name](grade, np.arange(grade.size), offsets, k)
    assert abs(leaked.mean() - expectation(name, n, p, k)) > 20 * error


def test_ties_depend_on_seed_and_row_only() -> None:
    score, offsets = np.zeros(60), [0, 30, 60]
    base = top_order(score, offsets, seed=0)
    np.testing.assert_array_equal(base, top_order(score + 5, offsets, seed=0))
    assert (base != top_order(score, offsets, seed=1)).any()
    assert (base[:30] != base[30:] - 30).any()
    twins = top_order(score, offsets, seed=0, row=[4, 4])
    np.testing.assert_array_equal(twins[:30], twins[30:] - 30)


def test_ndcg_equals_scikit_learn() -> None:
    draw = np.random.default_rng(2)
    offsets = np.arange(0, 601, 20)
    score, grade = draw.normal(size=600), draw.integers(0, 4, 600).astype(np.float64)
    order = top_order(score, offsets)
    for k in (1, 5, 20, 100):
        linear = ndcg_at_k(grade, order, offsets, k, gains="linear")
        exponential = ndcg_at_k(grade, order, offsets, k)
        for r in range(30):
            part = slice(offsets[r], offsets[r + 1])
            y, s = grade[None, part], score[None, part]
            assert linear[r] == pytest.approx(ndcg_score(y, s, k=k, ignore_ties=True), abs=1e-12)
            expected = ndcg_score(2**y - 1, s, k=k, ignore_ties=True)
            assert exponential[r] == pytest.approx(expected, abs=1e-12)
    np.testing.assert_array_equal(
        ndcg_at_k(grade, order, offsets), ndcg_at_k(grade, order, offsets, 20)
    )


def test_ideal_of_ndcg_reaches_beyond_the_first_k() -> None:
    order = np.arange(3)
    assert ndcg_at_k([0, 0, 1], order, [0, 3], k=2)[0] == 0.0
    assert ndcg_at_k([1, 0, 3], order, [0, 3], k=1)[0] == pytest.approx(1 / 7)


@given(REQUESTS)
def test_per_request_auc_is_the_auc_of_each_request(requests: list[Request]) -> None:
    score, grade, offsets = flat(requests)
    expected = [auc([s for s, _ in request], [g > 0 for _, g in request]) for request in requests]
    np.testing.assert_allclose(per_request_auc(score, grade, offsets), expected, atol=1e-12)


def test_nothing_at_all() -> None:
    for offsets in ([0], [0, 0, 0]):
        order = top_order([], offsets)
        for metric in METRICS.values():
            np.testing.assert_array_equal(
                metric([], order, offsets, 5), np.full(len(offsets) - 1, np.nan)
            )
        assert np.isnan(per_request_auc([], [], offsets)).all()


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"score: 1 of 2 values are NaN, the first at position 0"):
        top_order([math.nan, 1.0], [0, 2])
    with pytest.raises(ValueError, match=r"row: has shape \(2,\); expected \(1,\)"):
        top_order([0.0, 1.0], [0, 2], row=[1, 2])
    with pytest.raises(ValueError, match=r"label: 1 of 2 values are NaN"):
        recall_at_k([math.nan, 1.0], [0, 1], [0, 2], 1)
    with pytest.raises(ValueError, match=r"label: has 1 values; expected 2"):
        recall_at_k([1.0], [0, 1], [0, 2], 1)
    with pytest.raises(ValueError, match=r"gain: the smallest is -1.0; expected none below 0"):
        ndcg_at_k([-1.0, 1.0], [0, 1], [0, 2], 1)
    for metric in METRICS.values():
        with pytest.raises(ValueError, match=r"k: is 0; expected at least 1"):
            metric([0.0, 1.0], [0, 1], [0, 2], 0)


def test_infinite_scores_have_their_place() -> None:
    score = [0.0, -math.inf, math.inf, 1.0]
    assert top_order(score, [0, 4]).tolist() == [2, 3, 0, 1]
