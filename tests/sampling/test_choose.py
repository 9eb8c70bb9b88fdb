"""Choosing within segments against loops."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from prerank.rng import uniform
from prerank.sampling.choose import evenly, list_lengths, place_in_segment, smallest

LENGTHS = st.lists(st.integers(0, 12), min_size=1, max_size=8)


@given(LENGTHS, st.data())
def test_smallest_equals_a_sort_of_each_segment(lengths: list[int], data: st.DataObject) -> None:
    quota = np.array([data.draw(st.integers(0, 14)) for _ in lengths])
    keys = data.draw(hnp.arrays(np.int64, sum(lengths), elements=st.integers(0, 9**9), unique=True))
    segment = np.repeat(np.arange(len(lengths)), lengths)
    expected: list[int] = []
    for r, n in enumerate(quota):
        members = np.flatnonzero(segment == r)
        expected += sorted(members[np.argsort(keys[members])][:n])
    assert smallest(keys, segment, quota).tolist() == expected


@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=6),
    st.integers(0, 60),
    st.integers(0, 10**6),
)
def test_the_threshold_changes_nothing(lengths: list[int], most: int, seed: int) -> None:
    segment = np.repeat(np.arange(len(lengths)), lengths)
    draws = uniform(seed, np.arange(len(segment)))
    quota = np.minimum(np.arange(len(lengths)) * 7, most)
    assert np.array_equal(evenly(draws, segment, quota), smallest(draws, segment, quota))


def test_a_segment_that_the_threshold_starves_is_sorted_whole() -> None:
    # All draws are near 1: the threshold (3 * 2 + 12) / 100 leaves none of them.
    draws = 0.9 + 0.001 * np.random.default_rng(0).permutation(100)
    segment, quota = np.zeros(100, dtype=np.int64), np.array([2])
    chosen = evenly(draws, segment, quota)
    assert np.array_equal(np.sort(draws[chosen]), np.sort(draws)[:2])


@given(LENGTHS)
def test_places_count_up_in_each_segment(lengths: list[int]) -> None:
    segment = np.repeat(np.arange(len(lengths)), lengths)
    expected = [k for n in lengths for k in range(n)]
    assert place_in_segment(segment, len(lengths)).tolist() == expected


@given(LENGTHS, st.data())
def test_list_lengths_are_the_largest_rank_plus_one(
    lengths: list[int], data: st.DataObject
) -> None:
    rank = data.draw(hnp.arrays(np.int64, sum(lengths), elements=st.integers(-1, 30)))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    expected = [int(max(rank[a:b], default=-1)) + 1 for a, b in itertools.pairwise(offsets)]
    assert list_lengths(rank, offsets).tolist() == expected
