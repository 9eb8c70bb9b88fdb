"""Agreement against SciPy and pairs counted one by one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau
from sklearn.metrics import roc_auc_score

from prerank.metrics import kendall_tau, overlap_at_k, pair_consistency, top_order

requests = st.lists(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=9), min_size=1, max_size=5
)


def arrays(lists: list[list[tuple[int, int]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    flat = np.array([pair for one in lists for pair in one], dtype=float).reshape(-1, 2)
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in lists])]).astype(np.int64)
    return flat[:, 0], flat[:, 1], offsets


def by_hand(a: np.ndarray, b: np.ndarray) -> float:
    won = total = 0.0
    for i, j in itertools.combinations(range(len(a)), 2):
        if b[i] != b[j]:
            total += 1
            sign = (a[i] - a[j]) * (b[i] - b[j])
            won += 1.0 if sign > 0 else 0.5 if sign == 0 else 0.0
    return won / total if total else float("nan")


@given(requests)
def test_pairs_equal_scipy_and_counting(lists: list[list[tuple[int, int]]]) -> None:
    """Ties everywhere, empty requests, single candidates."""
    a, b, offsets = arrays(lists)
    tau, share = kendall_tau(a, b, offsets), pair_consistency(a, b, offsets)
    for r, (low, high) in enumerate(itertools.pairwise(offsets)):
        x, y = a[low:high], b[low:high]
        expected = float("nan")
        if len(set(x)) > 1 and len(set(y)) > 1:
            expected = float(kendalltau(x, y).statistic)
        assert tau[r] == pytest.approx(expected, abs=1e-12, nan_ok=True)
        assert share[r] == pytest.approx(by_hand(x, y), abs=1e-12, nan_ok=True)


def test_long_requests_and_huge_values() -> None:
    draw = np.random.default_rng(0)
    lengths = [1, 700, 0, 1300]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    a = draw.normal(size=2001) * 10.0 ** draw.integers(-300, 300, 2001)
    b = np.where(draw.random(2001) < 0.1, np.inf, draw.integers(0, 60, 2001))
    tau = kendall_tau(a, b, offsets)
    for r in (1, 3):
        one = slice(offsets[r], offsets[r + 1])
        rank = np.unique(b[one], return_inverse=True)[1]
        assert tau[r] == pytest.approx(kendalltau(a[one], rank).statistic, abs=1e-12)
    assert np.isnan(tau[[0, 2]]).all()


def test_consistency_with_two_values_is_the_auc() -> None:
    draw = np.random.default_rng(1)
    score, label = draw.integers(0, 9, 50).astype(float), draw.integers(0, 2, 50)
    found = pair_consistency(score, label, [0, 50])[0]
    assert found == pytest.approx(roc_auc_score(label, score), abs=1e-12)


@given(requests, st.integers(1, 12))
def test_overlap_is_the_intersection_of_sets(lists: list[list[tuple[int, int]]], k: int) -> None:
    a, b, offsets = arrays(lists)
    one, two = top_order(a, offsets), top_order(b, offsets)
    found = overlap_at_k(one, two, offsets, k)
    for r, (low, high) in enumerate(itertools.pairwise(offsets)):
        common = len({*one[low:high][:k]} & {*two[low:high][:k]})
        size = min(k, high - low)
        expected = common / size if size else float("nan")
        assert found[r] == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_bad_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="k: is 0"):
        overlap_at_k([0], [0], [0, 1], 0)
    with pytest.raises(ValueError, match="other: has 2 values; expected 1"):
        overlap_at_k([0], [0, 1], [0, 1], 1)
    with pytest.raises(ValueError, match="b: has 1 values; expected 2"):
        kendall_tau([1, 2], [1], [0, 2])
    with pytest.raises(ValueError, match="a: 1 of 2 values are NaN"):
        pair_consistency([1, float("nan")], [1, 2], [0, 2])
