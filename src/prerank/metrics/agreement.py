"""Agreement of two orders of a request's candidates: overlap, Kendall's tau, consistent pairs.

Shapes: ``I`` candidates, ``R`` requests; candidates of request ``r`` are
``offsets[r]:offsets[r + 1]``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prerank.metrics.segments import Floats, Ints, column, ratio, segment_ids

__all__ = ["kendall_tau", "overlap_at_k", "pair_consistency"]


def overlap_at_k(
    order: npt.ArrayLike, other: npt.ArrayLike, offsets: npt.ArrayLike, k: int
) -> Floats:
    """Return the share of the first ``k`` places that two orders have in common.

    Parameters
    ----------
    order, other : array of int ``[I]``
        Both from :func:`prerank.metrics.top_order`.
    offsets : array of int ``[R + 1]``
        Where each request begins.
    k : int
        At least 1; a request shorter than ``k`` is divided by its length.

    Returns
    -------
    ndarray ``[R]`` float64
        NaN for an empty request.

    Raises
    ------
    ValueError
        Arrays of different lengths, or ``k`` below 1.

    Examples
    --------
    >>> overlap_at_k([0, 1, 2], [2, 0, 1], [0, 3], k=2)
    array([0.5])
    """
    if k < 1:
        raise ValueError(f"k: is {k}; expected at least 1")
    a, b = np.asarray(order, dtype=np.int64), np.asarray(other, dtype=np.int64)
    if a.shape != b.shape:
        raise ValueError(f"other: has {b.size} values; expected {a.size} as order")
    segment = segment_ids(offsets, a.size)
    bounds = np.asarray(offsets, dtype=np.int64)
    early = np.arange(a.size) - bounds[segment] < k
    in_both = np.zeros(a.size, dtype=np.int64)
    in_both[a[early]] += 1
    in_both[b[early]] += 1
    common = np.bincount(segment[in_both == 2], minlength=bounds.size - 1)
    return ratio(common, np.minimum(np.diff(bounds), k))


def kendall_tau(a: npt.ArrayLike, b: npt.ArrayLike, offsets: npt.ArrayLike) -> Floats:
    """Return Kendall's tau-b of two scorings within each request.

    Source: Kendall, "The treatment of ties in ranking problems", 1945 (tau-b). Counts pairs in
    ``O(I log^2 n)`` for requests of ``n`` candidates.

    Parameters
    ----------
    a, b : array ``[I]``
        Two scores of every candidate.
    offsets : array of int ``[R + 1]``
        Where each request begins.

    Returns
    -------
    ndarray ``[R]`` float64
        In [-1, 1]; NaN where a scoring is constant.

    Raises
    ------
    ValueError
        A NaN, or arrays of different lengths.

    Examples
    --------
    >>> kendall_tau([3.0, 2.0, 1.0, 5.0], [9.0, 8.0, 8.5, 0.0], [0, 3, 4])
    array([0.33333333,        nan])
    """
    pairs = _pairs(a, b, offsets)
    untied = np.sqrt(pairs.all - pairs.tied_a) * np.sqrt(pairs.all - pairs.tied_b)
    return ratio(pairs.concordant - pairs.discordant, untied)


def pair_consistency(score: npt.ArrayLike, truth: npt.ArrayLike, offsets: npt.ArrayLike) -> Floats:
    """Return the share of pairs that ``score`` orders as ``truth`` does, within each request.

    Only pairs that ``truth`` tells apart count; a tie of ``score`` counts one half. For a truth of
    two values this is the AUC.

    Parameters
    ----------
    score, truth : array ``[I]``
        Two scores of every candidate.
    offsets : array of int ``[R + 1]``
        Where each request begins.

    Returns
    -------
    ndarray ``[R]`` float64
        In [0, 1]; NaN where ``truth`` is constant.

    Raises
    ------
    ValueError
        A NaN, or arrays of different lengths.

    Examples
    --------
    >>> pair_consistency([1.0, 1.0, 0.0], [3.0, 2.0, 1.0], [0, 3])
    array([0.83333333])
    """
    pairs = _pairs(score, truth, offsets)
    apart = pairs.all - pairs.tied_b
    return ratio(pairs.concordant + 0.5 * (apart - pairs.concordant - pairs.discordant), apart)


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Numbers of pairs of each request ``[R]``."""

    all: Floats
    tied_a: Floats
    tied_b: Floats
    concordant: Floats
    discordant: Floats


def _pairs(a: npt.ArrayLike, b: npt.ArrayLike, offsets: npt.ArrayLike) -> _Pairs:
    x = column(a, "a")
    y = column(b, "b", x.size)
    segment = segment_ids(offsets, x.size)
    num_requests = np.asarray(offsets).size - 1
    order = np.lexsort((y, x, segment))
    x, y, segment = x[order], y[order], segment[order]
    everything = _pairs_in(segment, segment, num_requests)
    tied_x = _pairs_in(_groups(segment, x), segment, num_requests)
    tied_xy = _pairs_in(_groups(segment, x, y), segment, num_requests)
    by_y = np.lexsort((y, segment))
    tie_y = np.empty(y.size, dtype=np.int64)
    tie_y[by_y] = _groups(segment, y[by_y])
    tied_y = _pairs_in(tie_y, segment, num_requests)
    discordant = _inversions(tie_y, segment, num_requests)
    concordant = everything - tied_x - tied_y + tied_xy - discordant
    return _Pairs(everything, tied_x, tied_y, concordant, discordant)


def _groups(segment: Ints, *values: Floats) -> Ints:
    """Return the number of the run of equal values ``[I]``, of sorted columns."""
    new = np.diff(segment) != 0
    for value in values:
        new |= value[1:] != value[:-1]
    return np.concatenate([np.zeros(min(segment.size, 1), np.int64), np.cumsum(new)])


def _pairs_in(group: Ints, segment: Ints, num_segments: int) -> Floats:
    """Return how many pairs of a segment share a group ``[R]``."""
    _, first, size = np.unique(group, return_index=True, return_counts=True)
    pairs = size * (size - 1) / 2
    return np.bincount(segment[first], weights=pairs, minlength=num_segments).astype(np.float64)


def _inversions(value: Ints, segment: Ints, num_segments: int) -> Floats:
    """Count pairs of a segment whose earlier member has the larger value, ``[R]``.

    Two values differ first in one bit: below every common prefix, each 0 is an inversion with
    every 1 before it. One stable sort per bit serves all segments at once.
    """
    total = np.zeros(num_segments)
    if not value.size:
        return total
    starts = np.flatnonzero(np.concatenate([[True], np.diff(segment) != 0]))
    local = value - np.repeat(
        np.minimum.reduceat(value, starts), np.diff(np.append(starts, value.size))
    )
    for bit in range(int(local.max()).bit_length()):
        prefix = local >> (bit + 1)
        order = np.lexsort((prefix, segment))  # stable: the given order within a prefix
        one = (local[order] >> bit) & 1
        group = segment[order], prefix[order]
        first = np.ones(value.size, dtype=np.bool_)
        first[1:] = (np.diff(group[0]) != 0) | (np.diff(group[1]) != 0)
        before = np.cumsum(one) - one
        start = np.maximum.accumulate(np.where(first, np.arange(value.size), 0))
        ones_before = before - before[start]
        total += np.bincount(group[0], weights=ones_before * (1 - one), minlength=num_segments)
    return total
