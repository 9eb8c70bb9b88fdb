"""Agreement of two orders of a request's candidates: overlap, Kendall's tau, consistent pairs.

Shapes: ``I`` candidates, ``R`` requests; candidates of request ``r`` are
``offsets[r]:offsets[r + 1]``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prerank.metrics.segments import Floats, Ints, column, ratio, segment_ids
from prerank.metrics.sorting import order_within, ranks_within, run_starts

__all__ = ["kendall_tau", "overlap_at_k", "pair_consistency", "rank_agreement"]


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
    return _pairs(a, b, offsets).tau()


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
    return _pairs(score, truth, offsets).consistency()


def rank_agreement(
    score: npt.ArrayLike, truth: npt.ArrayLike, offsets: npt.ArrayLike
) -> tuple[Floats, Floats]:
    """Return :func:`kendall_tau` and :func:`pair_consistency`, counting the pairs once.

    Examples
    --------
    >>> rank_agreement([3.0, 2.0, 1.0], [9.0, 8.0, 8.5], [0, 3])
    (array([0.33333333]), array([0.66666667]))
    """
    pairs = _pairs(score, truth, offsets)
    return pairs.tau(), pairs.consistency()


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Numbers of pairs of each request ``[R]``."""

    all: Floats
    tied_a: Floats
    tied_b: Floats
    concordant: Floats
    discordant: Floats

    def tau(self) -> Floats:
        untied = np.sqrt(self.all - self.tied_a) * np.sqrt(self.all - self.tied_b)
        return ratio(self.concordant - self.discordant, untied)

    def consistency(self) -> Floats:
        apart = self.all - self.tied_b
        halves = 0.5 * (apart - self.concordant - self.discordant)
        return ratio(self.concordant + halves, apart)


def _pairs(a: npt.ArrayLike, b: npt.ArrayLike, offsets: npt.ArrayLike) -> _Pairs:
    x = column(a, "a")
    y = column(b, "b", x.size)
    segment = segment_ids(offsets, x.size)
    bounds = np.asarray(offsets, dtype=np.int64)
    lengths = np.diff(bounds).astype(np.float64)
    num_requests = lengths.size
    rank_x, rank_y = (ranks_within(v, bounds, segment) for v in (x, y))
    tied_y = _tied(bounds[segment] + rank_y, segment, num_requests)
    both = (rank_x * (rank_y.max(initial=0) + 1) + rank_y).astype(np.float64)
    order = order_within(both, bounds)
    rank_x, rank_y = rank_x[order], rank_y[order]
    tied_x = _tied(np.cumsum(run_starts(segment, rank_x)) - 1, segment, num_requests)
    tied_xy = _tied(np.cumsum(run_starts(segment, rank_x, rank_y)) - 1, segment, num_requests)
    discordant = _inversions(rank_y, bounds, segment)
    everything = lengths * (lengths - 1) / 2
    concordant = everything - tied_x - tied_y + tied_xy - discordant
    return _Pairs(everything, tied_x, tied_y, concordant, discordant)


def _tied(group: Ints, segment: Ints, num_segments: int) -> Floats:
    """Return how many pairs of a segment share a group ``[R]``; numbers of groups are below I."""
    size = np.bincount(group, minlength=group.size)
    # Half of the others of its group for each member: the pairs of the group.
    pairs = np.bincount(segment, weights=0.5 * (size[group] - 1), minlength=num_segments)
    return pairs.astype(np.float64)


def _inversions(value: Ints, bounds: Ints, segment: Ints) -> Floats:
    """Count pairs of a segment whose earlier member has the larger value, ``[R]``.

    Two values differ first in one bit: among those that agree above it, each 0 is an inversion with
    every 1 before it. Then zeros move before ones, which leaves equal prefixes together and in
    their order (the levels of a wavelet tree; Grossi, Gupta and Vitter, 2003).
    """
    total = np.zeros(bounds.size - 1)
    start = bounds[segment]
    for bit in reversed(range(int(value.max(initial=0)).bit_length())):
        one = (value >> bit) & 1
        ones = np.concatenate([[0], np.cumsum(one)])
        ones_before = ones[:-1] - ones[start]
        total += np.bincount(segment, weights=ones_before * (1 - one), minlength=total.size)
        place = np.arange(value.size)
        zeros_before = place - start - ones_before
        # Zeros of the group: what the last member has before it, and itself.
        new = np.ones(value.size, dtype=np.bool_)
        new[1:] = start[1:] != start[:-1]
        first = np.flatnonzero(new)
        size = np.diff(np.append(first, value.size))
        zeros = size - (ones[first + size] - ones[first])
        one_start = start + np.repeat(zeros, size)
        target = np.where(one == 1, one_start + ones_before, start + zeros_before)
        moved, moved_start = np.empty_like(value), np.empty_like(start)
        moved[target] = value
        moved_start[target] = np.where(one == 1, one_start, start)
        value, start = moved, moved_start
    return total
