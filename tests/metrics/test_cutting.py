"""Cuts against plain loops over every request."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prerank.metrics import gain_kept, regret_at_k, survivors, top_order, value_lost

requests = st.lists(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 3)), max_size=8), min_size=1, max_size=4
)


def arrays(lists: list[list[tuple[int, int]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    flat = np.array([pair for one in lists for pair in one], dtype=float).reshape(-1, 2)
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in lists])]).astype(np.int64)
    return flat[:, 0], flat[:, 1], offsets


@given(requests, st.integers(1, 9), st.integers(1, 9))
def test_cuts_equal_loops(lists: list[list[tuple[int, int]]], kept: int, final: int) -> None:
    value, score, offsets = arrays(lists)
    final = min(final, kept)
    order, heavy = top_order(score, offsets), top_order(value, offsets)
    lost = value_lost(value, order, offsets, num_kept=kept, num_final=final)
    gain = gain_kept(order, heavy, offsets, num_kept=kept, num_final=final)
    shown = survivors(value, order, offsets, num_kept=kept, num_final=final)
    for r, (low, high) in enumerate(itertools.pairwise(offsets)):
        if low == high:
            assert np.isnan(lost[r])
            assert np.isnan(gain[r])
            continue
        mine = list(order[low:high][:kept])
        best = sorted(value[low:high], reverse=True)[:final]
        taken = sorted((value[i] for i in mine), reverse=True)[:final]
        expected = np.mean(best) - np.mean(taken)
        assert lost[r] == pytest.approx(expected, abs=1e-12)
        worth = {i: 1 / math.log2(p + 2) for p, i in enumerate(heavy[low:high][:final])}
        share = sum(w for i, w in worth.items() if i in mine) / sum(worth.values())
        assert gain[r] == pytest.approx(share, abs=1e-12)
        seen = np.flatnonzero(shown[low:high]) + low
        assert set(seen) <= set(mine)
        assert sorted(value[seen], reverse=True) == taken


def test_regret_is_nothing_for_the_best_order_and_the_whole_list() -> None:
    value = np.random.default_rng(0).normal(size=30)
    offsets = np.array([0, 10, 10, 30])
    best, worst = top_order(value, offsets), top_order(-value, offsets)
    for k in (1, 5, 40):
        assert np.nan_to_num(regret_at_k(value, best, offsets, k)).tolist() == [0, 0, 0]
    assert (regret_at_k(value, worst, offsets, 3)[[0, 2]] > 0).all()
    assert regret_at_k(value, worst, offsets, 20)[[0, 2]] == pytest.approx([0, 0], abs=0)


def test_what_the_ranker_cannot_score_is_never_shown() -> None:
    heavy = [-np.inf, 1.0, -np.inf]
    assert survivors(heavy, [0, 1, 2], [0, 3], num_kept=3, num_final=3).tolist() == [0, 1, 0]


def test_counts_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="num_final: is 3; expected from 1 to num_kept"):
        value_lost([1.0], [0], [0, 1], num_kept=2, num_final=3)
    with pytest.raises(ValueError, match="num_final: is 0"):
        gain_kept([0], [0], [0, 1], num_kept=1, num_final=0)
    with pytest.raises(ValueError, match="k: is 0"):
        survivors([1.0], [0], [0, 1], num_kept=0, num_final=1)
    with pytest.raises(ValueError, match="order: has 1 values; expected 2"):
        regret_at_k([1.0, 2.0], [0], [0, 2], 1)
