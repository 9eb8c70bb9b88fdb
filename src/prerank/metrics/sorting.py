"""Sorting within segments: requests of similar length are sorted together as rows of a matrix.

Shapes: ``I`` candidates, ``R`` requests (or other groups); those of request ``r`` are
``offsets[r]:offsets[r + 1]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["distinct", "order_within", "ranks_within", "run_starts"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_MATRIX = 1 << 20
"""Numbers sorted at once: 8 MiB, about what a processor keeps near."""


def order_within(values: Floats, offsets: npt.ArrayLike) -> Ints:
    """Return the candidates of each segment by ascending value, equal ones in any order.

    Parameters
    ----------
    values : ndarray ``[I]`` float64
        Without NaN.
    offsets : array of int ``[R + 1]``
        Where each segment begins.

    Returns
    -------
    ndarray ``[I]`` int64
        Candidate indices; those of segment ``r`` stay in ``offsets[r]:offsets[r + 1]``.

    Examples
    --------
    >>> order_within(np.array([3.0, 1.0, 2.0, 5.0, 4.0]), [0, 3, 5])
    array([1, 2, 0, 4, 3])
    """
    bounds = np.asarray(offsets, dtype=np.int64)
    lengths, out = np.diff(bounds), np.empty(values.size, dtype=np.int64)
    for rows in _alike(lengths):
        size, start = lengths[rows], bounds[rows]
        width = int(size[-1])
        index = start[:, None] + np.arange(width)
        if size[0] == width:
            out[index] = start[:, None] + np.argsort(values[index], axis=1)
            continue
        inside = np.arange(width) < size[:, None]
        # NaN is sorted last, behind infinity too.
        matrix = np.where(inside, values[np.minimum(index, values.size - 1)], np.nan)
        out[index[inside]] = (start[:, None] + np.argsort(matrix, axis=1))[inside]
    return out


def _alike(lengths: Ints) -> Iterator[Ints]:
    """Yield segments in blocks of similar length, the shortest first; empty ones are left out."""
    by_length = np.argsort(lengths, kind="stable")
    ascending = lengths[by_length]
    start = int(np.searchsorted(ascending, 0, side="right"))
    while start < len(by_length):
        shortest = int(ascending[start])
        stop = int(np.searchsorted(ascending, shortest + shortest // 4, side="right"))
        stop = min(stop, start + max(1, _MATRIX // int(ascending[stop - 1])))
        yield by_length[start:stop]
        start = stop


def run_starts(segment: Ints, *values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return where a run of equal values of one segment begins ``[I]``, of sorted columns.

    Examples
    --------
    >>> run_starts(np.array([0, 0, 0, 1]), np.array([2.0, 2.0, 3.0, 3.0]))
    array([ True, False,  True,  True])
    """
    first = np.ones(segment.size, dtype=np.bool_)
    np.not_equal(segment[1:], segment[:-1], out=first[1:])
    for value in values:
        first[1:] |= value[1:] != value[:-1]
    return first


def ranks_within(values: Floats, offsets: npt.ArrayLike, segment: Ints) -> Ints:
    """Return how many distinct smaller values of its segment each value has ``[I]``.

    Examples
    --------
    >>> ranks_within(np.array([3.0, 1.0, 3.0, 5.0]), [0, 3, 4], np.array([0, 0, 0, 1]))
    array([1, 0, 1, 0])
    """
    order = order_within(values, offsets)
    run = np.cumsum(run_starts(segment, values[order])) - 1
    before = run[np.minimum(np.asarray(offsets, dtype=np.int64)[segment], max(values.size - 1, 0))]
    ranks = np.empty(values.size, dtype=np.int64)
    ranks[order] = run - before
    return ranks


def distinct(ids: npt.ArrayLike) -> tuple[npt.NDArray[Any], Ints]:
    """Return the distinct ids, ascending, and the place of each id among them ``[N]``.

    As ``np.unique`` with its inverse, without a sort where ids are small whole numbers.

    Examples
    --------
    >>> distinct([30, 10, 30])
    (array([10, 30]), array([1, 0, 1]))
    """
    values = np.asarray(ids)
    small = values.size > 0 and np.issubdtype(values.dtype, np.signedinteger)
    if small and values.min() >= 0 and values.max() < 4 * values.size + 65536:
        present = np.zeros(int(values.max()) + 1, dtype=np.bool_)
        present[values] = True
        place = np.cumsum(present) - 1
        return np.flatnonzero(present).astype(values.dtype), place[values].astype(np.int64)
    found, codes = np.unique(values, return_inverse=True)
    return found, codes.astype(np.int64)
