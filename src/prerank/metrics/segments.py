"""What every metric shares: checked columns, segments given by offsets, AUC of many segments.

Shapes: ``I`` candidates, ``R`` requests (or other groups). Candidates of request ``r`` are
``offsets[r]:offsets[r + 1]``.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from prerank.metrics.sorting import order_within, run_starts

__all__ = ["Floats", "Ints", "column", "ratio", "segment_auc", "segment_ids"]

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]


def column(values: npt.ArrayLike, name: str, num_candidates: int | None = None) -> Floats:
    """Return a column ``[I]`` as float64.

    Raises
    ------
    ValueError
        Not one-dimensional, not of the expected length, or with a NaN: a metric that sorts NaN
        somewhere would be a wrong number instead of an error.

    Examples
    --------
    >>> column([1, 2], "score")
    array([1., 2.])
    >>> column([0.5, float("nan")], "score")
    Traceback (most recent call last):
        ...
    ValueError: score: 1 of 2 values are NaN, the first at position 1; expected none
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name}: has shape {array.shape}; expected one dimension")
    if num_candidates is not None and array.size != num_candidates:
        raise ValueError(f"{name}: has {array.size} values; expected {num_candidates}")
    missing = np.isnan(array)
    if missing.any():
        raise ValueError(
            f"{name}: {missing.sum()} of {array.size} values are NaN, the first at position "
            f"{missing.argmax()}; expected none"
        )
    return array


def segment_ids(offsets: npt.ArrayLike, num_candidates: int) -> Ints:
    """Return the request of each candidate ``[I]`` from offsets ``[R + 1]``.

    Raises
    ------
    ValueError
        Offsets that do not run from 0 to ``I`` without going back.

    Examples
    --------
    >>> segment_ids([0, 2, 2, 5], 5)
    array([0, 0, 2, 2, 2])
    """
    bounds = np.asarray(offsets, dtype=np.int64)
    lengths = np.diff(bounds)
    if bounds.size == 0 or bounds[0] != 0 or bounds[-1] != num_candidates or (lengths < 0).any():
        raise ValueError(
            f"offsets: expected non-decreasing integers from 0 to {num_candidates} "
            f"(the number of candidates), got {bounds.tolist()[:3]}...{bounds.tolist()[-1:]}"
        )
    return np.repeat(np.arange(lengths.size), lengths)


def ratio(numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> Floats:
    """Divide, NaN where the denominator is 0 (without a warning).

    Examples
    --------
    >>> ratio([1.0, 0.0], [2.0, 0.0])
    array([0.5, nan])
    """
    above = np.asarray(numerator, dtype=np.float64)
    below = np.asarray(denominator, dtype=np.float64)
    out = np.full(above.shape, np.nan)
    np.divide(above, below, out=out, where=below != 0)
    return out


def segment_auc(
    score: Floats, label: Floats, segment: Ints, num_segments: int, weight: Floats | None = None
) -> Floats:
    """Return the AUC of each segment, ``[R]`` float64, NaN where it has a single class.

    The Mann-Whitney statistic: the weighted share of (positive, negative) pairs in the right
    order, a tie counting one half. One sort for all segments.

    Parameters
    ----------
    score, label, segment : ndarray ``[I]``
        Scores, labels (> 0 is positive) and the segment of each candidate, in any order.
    num_segments : int
        ``R``.
    weight : ndarray ``[I]``, optional
        Non-negative weights; default 1.

    Examples
    --------
    >>> score, label = np.array([1.0, 1.0, 3.0, 2.0]), np.array([1.0, 0.0, 1.0, 0.0])
    >>> segment_auc(score, label, np.array([0, 0, 1, 1]), 3)
    array([0.5, 1. , nan])
    """
    sizes = np.bincount(segment, minlength=num_segments)
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    if (segment[1:] >= segment[:-1]).all():
        order = order_within(score, bounds)
    else:
        grouped = np.argsort(segment, kind="stable")
        order = grouped[order_within(score[grouped], bounds)]
    sorted_score, sorted_segment = score[order], segment[order]
    mass = np.ones(order.size) if weight is None else weight[order]
    positive = np.where(label[order] > 0, mass, 0.0)
    # One entry per tie: candidates of one segment with one score.
    first = run_starts(sorted_segment, sorted_score)
    tie = np.cumsum(first) - 1
    num_ties = int(tie[-1]) + 1 if tie.size else 0
    positive_T = np.bincount(tie, weights=positive, minlength=num_ties)
    negative_T = np.bincount(tie, weights=mass - positive, minlength=num_ties)
    segment_T = sorted_segment[first]

    positives = np.bincount(segment_T, weights=positive_T, minlength=num_segments)
    negatives = np.bincount(segment_T, weights=negative_T, minlength=num_segments)
    start = np.cumsum(negatives) - negatives
    below_T = np.cumsum(negative_T) - negative_T - start[segment_T]
    won = positive_T * (below_T + 0.5 * negative_T)
    wins = np.bincount(segment_T, weights=won, minlength=num_segments)
    return ratio(wins, positives * negatives)
