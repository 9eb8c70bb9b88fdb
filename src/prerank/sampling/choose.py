"""Choosing some members of each request at once: no loop over requests.

Shapes: ``R`` requests, ``N`` members of all requests, in order of request.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["evenly", "list_lengths", "place_in_segment", "smallest"]

Index = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_SPARE = 12


def place_in_segment(segment: Index, num_segments: int) -> Index:
    """Return the 0-based place of each member ``[N]`` in its segment; segments ascend.

    Examples
    --------
    >>> place_in_segment(np.array([0, 0, 2, 2, 2]), 3)
    array([0, 1, 0, 1, 2])
    """
    counts = np.bincount(segment, minlength=num_segments)
    starts = np.cumsum(counts) - counts
    place: Index = np.arange(len(segment)) - starts[segment]
    return place


def smallest(keys: npt.NDArray[Any], segment: Index, quota: Index) -> Index:
    """Return the positions of the ``quota [R]`` smallest keys of each segment, ascending.

    Parameters
    ----------
    keys : ndarray ``[N]``
        Anything that can be sorted.
    segment : ndarray ``[N]`` int64
        Ascending.
    quota : ndarray ``[R]`` int64
        How many of each segment; fewer where it has fewer.

    Examples
    --------
    >>> smallest(np.array([3, 1, 2, 5]), np.array([0, 0, 0, 1]), np.array([2, 2]))
    array([1, 2, 3])
    """
    order = np.lexsort((keys, segment))
    kept = place_in_segment(segment, len(quota)) < quota[segment]
    chosen: Index = np.sort(order[kept])
    return chosen


def evenly(draws: Floats, segment: Index, quota: Index) -> Index:
    """Return :func:`smallest` of draws that are uniform in [0, 1), without sorting all of them.

    Only members below a threshold that nearly always leaves enough are sorted; a segment that it
    leaves too few of is sorted whole.

    Examples
    --------
    >>> draws = np.random.default_rng(0).random(1000)
    >>> segment, quota = np.repeat([0, 1], 500), np.array([10, 0])
    >>> bool((evenly(draws, segment, quota) == smallest(draws, segment, quota)).all())
    True
    """
    counts = np.bincount(segment, minlength=len(quota))
    threshold = np.where(quota > 0, (3.0 * quota + _SPARE) / np.maximum(counts, 1), 0.0)
    near = np.flatnonzero(draws < threshold[segment])
    enough = np.bincount(segment[near], minlength=len(quota)) >= np.minimum(quota, counts)
    if not enough.all():
        near = np.flatnonzero((draws < threshold[segment]) | ~enough[segment])
    chosen: Index = near[smallest(draws[near], segment[near], quota)]
    return chosen


def list_lengths(rank: npt.NDArray[Any], offsets: Index) -> Index:
    """Return how long a stage's list was in each request: its largest logged rank plus one.

    So a log that keeps only some of the candidates still tells the length of the list.

    Parameters
    ----------
    rank : ndarray ``[N]`` of integers
        0-based, -1 for null.
    offsets : ndarray ``[R + 1]`` int64
        Members of request ``r`` are ``offsets[r]:offsets[r + 1]``.

    Examples
    --------
    >>> list_lengths(np.array([4, 0, -1, -1]), np.array([0, 3, 3, 4]))
    array([5, 0, 0])
    """
    lengths = np.zeros(len(offsets) - 1, dtype=np.int64)
    filled = np.flatnonzero(np.diff(offsets))
    if len(filled):
        lengths[filled] = np.maximum.reduceat(rank, offsets[filled]).astype(np.int64) + 1
    return lengths
