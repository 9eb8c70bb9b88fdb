"""Sorting in blocks, and what is built on it, against one plain sort of everything."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prerank import metrics
from prerank.metrics.segments import segment_auc
from prerank.metrics.sorting import distinct, order_within, ranks_within
from prerank.rng import hash64, stream

Array = np.ndarray


def requests(seed: int, digits: int) -> tuple[np.random.Generator, Array, Array, Array]:
    """Return a generator, scores with ties and infinities, offsets and segments."""
    draw = np.random.default_rng(seed)
    lengths = draw.choice([0, 1, 2, 3, 7, 30, 31, 90], size=int(draw.integers(1, 30)))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    score = np.round(draw.normal(size=offsets[-1]), digits)
    score[draw.random(score.size) < 0.05] = np.inf
    score[draw.random(score.size) < 0.05] = -np.inf
    score[draw.random(score.size) < 0.05] = -0.0
    return draw, score, offsets, np.repeat(np.arange(lengths.size), lengths)


def plain_order(score: Array, offsets: Array, segment: Array, seed: int, row: Array) -> Array:
    """Sort by request, descending score, hash: the tie-break by its definition."""
    place = np.arange(score.size) - offsets[segment]
    tie = hash64(seed, stream("metrics/ties"), row[segment], place)
    return np.lexsort((tie, -score, segment))


seeds = given(st.integers(0, 100_000), st.sampled_from([0, 1, 12]))


@seeds
@settings(deadline=None)
def test_orders_equal_one_plain_sort(seed: int, digits: int) -> None:
    draw, score, offsets, segment = requests(seed, digits)
    found = order_within(score, offsets)
    np.testing.assert_array_equal(score[found], score[np.lexsort((score, segment))])
    np.testing.assert_array_equal(np.sort(found), np.arange(score.size))
    np.testing.assert_array_equal(segment[found], segment)
    row = draw.integers(0, 1000, offsets.size - 1)
    expected = plain_order(score, offsets, segment, 3, row)
    order = metrics.top_order(score, offsets, seed=3, row=row)
    np.testing.assert_array_equal(order, expected)
    ranks = ranks_within(score, offsets, segment)
    for start, stop in itertools.pairwise(offsets):
        _, expected = np.unique(score[start:stop], return_inverse=True)
        np.testing.assert_array_equal(ranks[start:stop], expected)


def test_small_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _, score, offsets, _ = requests(11, 12)
    whole = order_within(score, offsets)
    monkeypatch.setattr("prerank.metrics.sorting._MATRIX", 40)
    in_blocks = order_within(score, offsets)
    np.testing.assert_array_equal(score[whole], score[in_blocks])


@seeds
@settings(deadline=None)
def test_auc_of_segments_in_any_order(seed: int, digits: int) -> None:
    draw, score, offsets, segment = requests(seed, digits)
    label = (draw.random(score.size) < 0.3).astype(np.float64)
    num = offsets.size - 1
    weight = draw.integers(0, 4, score.size).astype(np.float64)
    mixed = draw.permutation(score.size)
    expected = np.full(num, np.nan)
    for r, (start, stop) in enumerate(itertools.pairwise(offsets)):
        s, y, w = (c[start:stop] for c in (score, label > 0, weight))
        above = s[y][:, None] > s[~y][None, :]
        won = above + 0.5 * (s[y][:, None] == s[~y][None, :])
        pairs = w[y].sum() * w[~y].sum()
        if pairs > 0:
            expected[r] = w[y] @ won @ w[~y] / pairs
    sorted_too = segment_auc(score, label, segment, num, weight)
    np.testing.assert_allclose(sorted_too, expected, rtol=1e-12, atol=1e-12)
    found = segment_auc(score[mixed], label[mixed], segment[mixed], num, weight[mixed])
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@seeds
@settings(deadline=None)
def test_cuts_equal_sorting_the_kept_again(seed: int, digits: int) -> None:
    draw, score, offsets, segment = requests(seed, digits)
    light = metrics.top_order(draw.normal(size=score.size), offsets)
    num_final = int(draw.integers(1, 6))
    num_kept = num_final + int(draw.integers(0, 30))
    kept = np.zeros(score.size, dtype=bool)
    place = np.arange(score.size) - offsets[segment]
    kept[light[place < num_kept]] = True
    sizes = {"num_kept": num_kept, "num_final": num_final}

    row = np.arange(offsets.size - 1)
    alive = kept & (score > -np.inf)
    second = plain_order(np.where(alive, score, -np.inf), offsets, segment, 5, row)
    expected = np.zeros(score.size, dtype=bool)
    expected[second[place < num_final]] = True
    best = metrics.top_order(score, offsets, seed=5)
    for given_order in (None, best):
        shown = metrics.survivors(score, light, offsets, **sizes, seed=5, best=given_order)
        np.testing.assert_array_equal(shown, alive & expected)

    worth = np.where(np.isfinite(score), score, 0.0)
    lost = np.full(offsets.size - 1, np.nan)
    for r, (start, stop) in enumerate(itertools.pairwise(offsets)):
        if stop > start:
            all_of, got = worth[start:stop], worth[start:stop][kept[start:stop]]
            top = [np.sort(v)[::-1][:num_final] for v in (all_of, got)]
            lost[r] = (top[0] - top[1]).mean()
    best = metrics.top_order(worth, offsets)
    for given_order in (None, best):
        found = metrics.value_lost(worth, light, offsets, **sizes, best=given_order)
        np.testing.assert_allclose(found, lost, rtol=1e-12, atol=1e-12)


@seeds
@settings(deadline=None)
def test_pairs_equal_counting_each(seed: int, digits: int) -> None:
    draw, a, offsets, _ = requests(seed, digits)
    b = np.where(draw.random(a.size) < 0.5, a, np.round(draw.normal(size=a.size), digits))
    tau, consistency = metrics.rank_agreement(a, b, offsets)
    for r, (start, stop) in enumerate(itertools.pairwise(offsets)):
        i, j = np.triu_indices(stop - start, 1)
        x, y = a[start:stop], b[start:stop]
        apart_x, apart_y = ((v[i] > v[j]) * 1 - (v[i] < v[j]) for v in (x, y))
        untied = np.sqrt((apart_x != 0).sum()) * np.sqrt((apart_y != 0).sum())
        expected = (apart_x * apart_y).sum() / untied if untied else np.nan
        np.testing.assert_allclose(tau[r], expected, rtol=1e-12, atol=1e-12)
        known = apart_y != 0
        same = (apart_x == apart_y)[known].sum() + 0.5 * (apart_x[known] == 0).sum()
        expected = same / known.sum() if known.any() else np.nan
        np.testing.assert_allclose(consistency[r], expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(tau, metrics.kendall_tau(a, b, offsets))
    np.testing.assert_array_equal(consistency, metrics.pair_consistency(a, b, offsets))


@pytest.mark.parametrize("ids", [[3, 1, 3], [10**15, 2, 2], ["b", "a"], [-1, 5, -1], [0.5, 0.2]])
def test_distinct_is_unique(ids: list[object]) -> None:
    found, places = distinct(ids)
    expected, inverse = np.unique(ids, return_inverse=True)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(places, inverse)
    assert found.dtype == expected.dtype
