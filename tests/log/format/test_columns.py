"""Ragged columns behave like lists of lists."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prerank.log.format.columns import Columns, Group, first_bad_row, goes_back, history_key

LISTS = st.lists(st.lists(st.integers(-5, 5), max_size=5), max_size=8)


def _group(lists: list[list[int]]) -> Group:
    offsets = np.cumsum([0, *map(len, lists)]).astype(np.int64)
    flat = np.array([x for row in lists for x in row], dtype=np.int64)
    return Group(offsets, {"value": flat, "square": flat**2})


def _lists(group: Group) -> list[list[int]]:
    value, square = group.values["value"], group.values["square"]
    np.testing.assert_array_equal(value**2, square)
    assert group.offsets[0] == 0
    assert group.offsets[-1] == len(value)
    ends = zip(group.offsets[:-1], group.offsets[1:], strict=True)
    return [value[a:b].tolist() for a, b in ends]


@given(LISTS, st.data())
def test_take_picks_rows_in_order_with_repeats(lists: list[list[int]], data: st.DataObject) -> None:
    index = st.integers(0, max(len(lists) - 1, 0))
    rows = data.draw(st.lists(index, max_size=10)) if lists else []
    taken = _group(lists).take(np.array(rows, dtype=np.int64))
    assert _lists(taken) == [lists[r] for r in rows]


@given(LISTS, st.data())
def test_slice_is_a_python_slice(lists: list[list[int]], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(lists)))
    stop = data.draw(st.integers(start, len(lists)))
    assert _lists(_group(lists).slice(start, stop)) == lists[start:stop]


@given(LISTS, st.integers(1, 6))
def test_tail_keeps_the_last_values(lists: list[list[int]], length: int) -> None:
    assert _lists(_group(lists).tail(length)) == [row[-length:] for row in lists]


@given(st.lists(LISTS, min_size=1, max_size=4))
def test_cat_joins_rows(parts: list[list[list[int]]]) -> None:
    joined = Group.cat([_group(lists) for lists in parts])
    assert _lists(joined) == [row for lists in parts for row in lists]


@given(LISTS)
def test_goes_back_marks_values_below_their_predecessor(lists: list[list[int]]) -> None:
    group = _group(lists)
    expected = [k > 0 and row[k] < row[k - 1] for row in lists for k in range(len(row))]
    assert goes_back(group.values["value"], group.offsets).tolist() == expected


@given(LISTS, st.integers(-5, 5))
def test_first_bad_row_is_the_first_row_with_a_marked_value(
    lists: list[list[int]], bad: int
) -> None:
    group = _group(lists)
    expected = next((r for r, row in enumerate(lists) if bad in row), None)
    assert first_bad_row(group.values["value"] == bad, group.offsets) == expected


def test_columns_take_slice_and_cat_keep_scalars_and_groups_together() -> None:
    lists = [[1], [2, 3], [], [4]]
    scalars = {"row": np.arange(4), "vector": np.arange(8.0).reshape(4, 2)}
    columns = Columns(scalars, {"candidates": _group(lists)})
    picked = columns.take(np.array([3, 1]))
    assert _lists(picked.candidates) == [[4], [2, 3]]
    np.testing.assert_array_equal(picked.scalars["vector"], [[6.0, 7.0], [2.0, 3.0]])
    cut = columns.slice(2, 99)
    assert cut.num_requests == 2
    assert _lists(cut.candidates) == [[], [4]]
    whole = Columns.cat([picked, cut])
    assert whole.scalars["row"].tolist() == [3, 1, 2, 3]
    assert _lists(whole.candidates) == [[4], [2, 3], [], [4]]
    assert Columns.cat([cut]) is cut


def test_a_slice_shares_memory_and_leaves_its_source_alone() -> None:
    group = _group([[1, 2], [3]])
    cut = group.slice(1, 2)
    assert np.shares_memory(cut.values["value"], group.values["value"])
    assert group.offsets.tolist() == [0, 2, 3]


def test_history_keys_name_their_stream() -> None:
    assert history_key("clicks") == "history.clicks"
    with pytest.raises(KeyError):
        Columns({"row": np.arange(1)}, {}).candidates  # noqa: B018


def test_long_rows_are_taken_like_short_ones() -> None:
    rng = np.random.default_rng(0)
    lists = [rng.integers(-5, 5, n).tolist() for n in (300, 0, 120, 500)]
    rows = [3, 1, 0, 3]
    assert _lists(_group(lists).take(np.array(rows))) == [lists[r] for r in rows]
