"""Segment operations on sorted rows: where groups begin, what they keep, who came before.

All arrays are numpy, one value per row of a flat table unless a shape says otherwise. Shapes:
``N`` rows, ``G`` groups, ``R`` requests.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

__all__ = [
    "Events",
    "as_lists",
    "chain",
    "codes_of",
    "first_per_group",
    "group_of",
    "offsets_of",
    "ranges",
    "repeats",
    "window_starts",
]

Index = npt.NDArray[np.int64]


def codes_of(values: pa.Array) -> Index:
    """Return codes 0, 1, ... of distinct values in order of appearance; null is -1.

    Examples
    --------
    >>> codes_of(pa.array(["b", "a", None, "b"]))
    array([ 0,  1, -1,  0])
    """
    indices = pc.fill_null(values.dictionary_encode().indices, -1)
    return np.asarray(indices.to_numpy(zero_copy_only=False), dtype=np.int64)


def offsets_of(lengths: npt.NDArray[np.integer]) -> Index:
    """Return ``[G + 1]`` boundaries of groups of the given lengths ``[G]``."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def group_of(starts: Index, num_rows: int) -> Index:
    """Return the group of each row, given the first row of each group (``starts[0] == 0``).

    Examples
    --------
    >>> group_of(np.array([0, 2]), 5)
    array([0, 0, 1, 1, 1])
    """
    marks = np.zeros(num_rows, dtype=np.int64)
    marks[starts[1:]] = 1
    return np.cumsum(marks)


def ranges(starts: Index, lengths: Index) -> Index:
    """Concatenate ``starts[g], starts[g] + 1, ...`` of ``lengths[g]`` each.

    Examples
    --------
    >>> ranges(np.array([5, 0]), np.array([2, 3]))
    array([5, 6, 0, 1, 2])
    """
    offsets = offsets_of(lengths)
    return np.arange(offsets[-1], dtype=np.int64) + np.repeat(starts - offsets[:-1], lengths)


def as_lists(values: pa.Array, offsets: Index) -> pa.Array:
    """Return a list array over values ``[N]``; ``offsets`` ``[G + 1]`` start at any position."""
    low, high = int(offsets[0]), int(offsets[-1])
    return pa.ListArray.from_arrays(
        pa.array((offsets - low).astype(np.int32)), values.slice(low, high - low)
    )


def chain(next_start: Index) -> Index:
    """Follow ``0 -> next_start[0] -> ...`` to the end and return the rows that were visited.

    Parameters
    ----------
    next_start : ndarray ``[N]`` int64
        If a group began at row ``i``, the next group would begin at ``next_start[i] > i``.

    Examples
    --------
    >>> chain(np.array([2, 2, 3, 5, 5]))
    array([0, 2, 3])
    """
    # One plain step per group, not per row: each start depends on the one before it.
    following = next_start.tolist()
    starts: list[int] = []
    row = 0
    while row < len(following):
        starts.append(row)
        row = following[row]
    return np.asarray(starts, dtype=np.int64)


def window_starts(
    user: Index, time: Index, window_ms: int, max_candidates: int | None = None
) -> Index:
    """Return the first row of each group of impressions of one user.

    A group takes the impressions closer than ``window_ms`` to its first one, and no more than
    ``max_candidates`` of them.

    Parameters
    ----------
    user, time : ndarray ``[N]`` int64
        Sorted by user, then time (ms).

    Examples
    --------
    >>> user, time = np.array([0, 0, 0, 1]), np.array([0, 5, 10, 10])
    >>> window_starts(user, time, 10)
    array([0, 2, 3])
    """
    moments, rank = np.unique(time, return_inverse=True)
    # Ranks instead of times keep the combined key far from the limits of int64.
    width = len(moments) + 1
    key = user * width + rank
    after = np.searchsorted(moments, time + window_ms)
    following = np.searchsorted(key, user * width + after)
    if max_candidates is not None:
        following = np.minimum(following, np.arange(len(user)) + max_candidates)
    return chain(following)


def first_per_group(values: pa.Array, group: Index, num_groups: int) -> tuple[Index, int]:
    """Find the first value that is not null in each group, and count the groups that disagree.

    Parameters
    ----------
    values : Array ``[N]``
        Any type; lists are compared element by element.
    group : ndarray ``[N]`` int64
        Group of each row; rows are visited in the order given.
    num_groups : int
        Number of groups ``G``.

    Returns
    -------
    tuple of ndarray ``[G]`` int64 and int
        Row of the first value of each group (-1: all null), and the number of groups that hold
        more than one distinct value.

    Examples
    --------
    >>> first_per_group(pa.array([None, "a", "b", "c"]), np.array([0, 0, 0, 1]), 3)
    (array([ 1,  3, -1]), 1)
    """
    rows = np.flatnonzero(values.is_valid().to_numpy(zero_copy_only=False))
    groups, position = np.unique(group[rows], return_index=True)
    first = np.full(num_groups, -1, dtype=np.int64)
    first[groups] = rows[position]
    kept = first[group[rows]]
    other = rows[kept != rows]
    differs = _differ(values, other, first[group[other]])
    return first, len(np.unique(group[other[differs]]))


def _differ(values: pa.Array, left: Index, right: Index) -> npt.NDArray[np.bool_]:
    a, b = values.take(pa.array(left)), values.take(pa.array(right))
    if not pa.types.is_nested(values.type):
        return np.asarray(pc.not_equal(a, b).to_numpy(zero_copy_only=False), dtype=bool)
    length_a, length_b = (pc.list_value_length(x).to_numpy(zero_copy_only=False) for x in (a, b))
    different = np.asarray(length_a != length_b)
    same = np.flatnonzero(~different)
    parts = [x.take(pa.array(same)).flatten() for x in (a, b)]
    codes = codes_of(pa.concat_arrays(parts)).reshape(2, -1)
    row = np.repeat(same, length_a[same])
    different[row[codes[0] != codes[1]]] = True
    return different


def repeats(request: Index, item: Index) -> tuple[Index, Index] | None:
    """Find rows that show an item again in the same request.

    Returns
    -------
    tuple of two ndarrays, or None
        ``order`` ``[N]``: rows sorted so that those of one pair are neighbours, the first shown
        first; ``starts`` ``[G]``: where each pair begins in it. None: nothing repeats.

    Examples
    --------
    >>> order, starts = repeats(np.array([0, 0, 0, 1]), np.array([7, 3, 7, 7]))
    >>> order, starts
    (array([1, 0, 2, 3]), array([0, 1, 3]))
    """
    if not len(request):
        return None
    key = request * (int(item.max()) + 1) + item
    order = np.argsort(key, kind="stable").astype(np.int64)
    new = np.diff(key[order], prepend=-1) != 0
    if bool(new.all()):
        return None
    return order, np.flatnonzero(new).astype(np.int64)


class Events:
    """Past events of every user, found by time.

    Parameters
    ----------
    user, time : ndarray ``[N]`` int64
        One entry per event, in any order; ties keep the order given.

    Examples
    --------
    >>> events = Events(np.array([0, 0, 1]), np.array([10, 20, 10]))
    >>> starts, lengths = events.before(np.array([0, 0, 1]), np.array([20, 21, 10]), max_len=5)
    >>> lengths
    array([1, 2, 0])
    """

    def __init__(self, user: Index, time: Index) -> None:
        self.order: Index = np.lexsort((time, user)).astype(np.int64)
        self._moments, rank = np.unique(time[self.order], return_inverse=True)
        self._width = len(self._moments) + 1
        self._key = user[self.order] * self._width + rank

    def before(self, user: Index, time: Index, max_len: int) -> tuple[Index, Index]:
        """Return first position (in ``order``) and number of the latest events before ``time``.

        Parameters
        ----------
        user, time : ndarray ``[R]`` int64
            Whose events, and the moment they must be strictly earlier than.
        max_len : int
            At most this many, the most recent ones.
        """
        base = user * self._width
        low = np.searchsorted(self._key, base)
        high = np.searchsorted(self._key, base + np.searchsorted(self._moments, time))
        low = np.maximum(low, high - max_len)
        return low, high - low

    def lists(
        self, user: Index, time: Index, max_len: int, columns: dict[str, pa.Array]
    ) -> Iterator[tuple[str, pa.Array]]:
        """Yield each column of the events ``[N]`` as lists ``[R]``, oldest first."""
        start, length = self.before(user, time, max_len)
        rows = pa.array(self.order[ranges(start, length)])
        offsets = offsets_of(length)
        for name, values in columns.items():
            yield name, as_lists(values.take(rows), offsets)
