"""Segment operations against loops that say the same thing one row at a time."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from prerank.log.impressions.grouping import (
    Events,
    as_lists,
    codes_of,
    first_per_group,
    offsets_of,
    ranges,
    repeats,
    window_starts,
)

rows = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20)), min_size=1, max_size=40)


@given(rows, st.integers(1, 12), st.one_of(st.none(), st.integers(1, 4)))
def test_window_groups_are_what_a_loop_finds(
    pairs: list[tuple[int, int]], window: int, most: int | None
) -> None:
    pairs = sorted(pairs)
    expected: list[int] = []
    for i, (user, time) in enumerate(pairs):
        first = expected[-1] if expected else None
        if (
            first is None
            or pairs[first][0] != user
            or time - pairs[first][1] >= window
            or (most is not None and i - first >= most)
        ):
            expected.append(i)
    user, time = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    assert window_starts(user, time, window, most).tolist() == expected


def test_windows_survive_times_at_the_ends_of_int64() -> None:
    user = np.array([0, 0, 1_000_000_000], dtype=np.int64)
    time = np.array([-(2**61), 2**61, 2**61], dtype=np.int64)
    assert window_starts(user, time, 10).tolist() == [0, 1, 2]


@given(rows, rows, st.integers(1, 5))
def test_events_before_are_what_a_loop_finds(
    events: list[tuple[int, int]], requests: list[tuple[int, int]], most: int
) -> None:
    user, time = (np.array(column, dtype=np.int64) for column in zip(*events, strict=True))
    request_user, request_time = (np.array(c, dtype=np.int64) for c in zip(*requests, strict=True))
    lists = dict(
        Events(user, time).lists(
            request_user, request_time, most, {"event": pa.array(np.arange(len(events)))}
        )
    )
    for (u, t), found in zip(requests, lists["event"].to_pylist(), strict=True):
        past = sorted((s, i) for i, (v, s) in enumerate(events) if v == u and s < t)
        assert found == [i for _, i in past[-most:]]


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([None, "a", "b"])), max_size=20))
def test_first_value_and_disagreement(pairs: list[tuple[int, str | None]]) -> None:
    values = pa.array([v for _, v in pairs], type=pa.string())
    group = np.array([g for g, _ in pairs], dtype=np.int64)
    first, conflicts = first_per_group(values, group, 4)
    held: dict[int, list[str]] = {}
    for g, v in pairs:
        if v is not None:
            held.setdefault(g, []).append(v)
    assert conflicts == sum(len(set(v)) > 1 for v in held.values())
    found = values.take(pa.array(first, mask=first < 0)).to_pylist()
    assert found == [held.get(g, [None])[0] for g in range(4)]


def test_lists_are_compared_element_by_element() -> None:
    values = pa.array([[1, 2], [1, 2], [1], [2], [None], [None], None, []])
    group = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    first, conflicts = first_per_group(values, group, 4)
    assert conflicts == 1
    assert first.tolist() == [0, 2, 4, 7]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=20))
def test_repeats_find_every_pair_shown_again(pairs: list[tuple[int, int]]) -> None:
    request = np.array([r for r, _ in pairs], dtype=np.int64)
    item = np.array([i for _, i in pairs], dtype=np.int64)
    found = repeats(request, item)
    if len(set(pairs)) == len(pairs):
        assert found is None
        return
    assert found is not None
    order, starts = found
    groups = [g.tolist() for g in np.split(order, starts[1:])]
    assert sorted(map(tuple, groups)) == sorted(
        tuple(i for i, p in enumerate(pairs) if p == pair) for pair in set(pairs)
    )


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), max_size=12))
def test_ranges_concatenate(pieces: list[tuple[int, int]]) -> None:
    starts = np.array([s for s, _ in pieces], dtype=np.int64)
    lengths = np.array([n for _, n in pieces], dtype=np.int64)
    assert ranges(starts, lengths).tolist() == [s + k for s, n in pieces for k in range(n)]


def test_lists_may_start_anywhere() -> None:
    offsets = offsets_of(np.array([1, 0, 2]))
    assert as_lists(pa.array([5, 6, 7]), offsets[1:]).to_pylist() == [[], [6, 7]]


def test_codes_number_values_as_they_appear() -> None:
    assert codes_of(pa.array([], pa.string())).tolist() == []
    assert codes_of(pa.array([9, 3, 9])).tolist() == [0, 1, 0]
