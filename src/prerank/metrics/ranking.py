"""Metrics of an order, one value per request; NaN where a request does not define one.

Shapes: ``I`` candidates, ``R`` requests; candidates of request ``r`` are
``offsets[r]:offsets[r + 1]``. Sort once with :func:`top_order`, then read any metric at any ``k``.
A mean over requests is the caller's: only it can say how many it skipped.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from prerank.metrics.segments import Floats, Ints, column, ratio, segment_auc, segment_ids
from prerank.metrics.sorting import order_within
from prerank.rng import hash64, stream

__all__ = [
    "hit_rate",
    "mrr",
    "ndcg_at_k",
    "per_request_auc",
    "precision_at_k",
    "recall_at_k",
    "top_order",
]

_TIES = stream("metrics/ties")


def top_order(
    score: npt.ArrayLike,
    offsets: npt.ArrayLike,
    seed: int = 0,
    row: npt.ArrayLike | None = None,
) -> Ints:
    """Order the candidates of every request by descending score, ties at random.

    Ties are broken by a hash of (seed, row, position in the request): a scorer of few distinct
    values gains nothing from the order in the log, and batching cannot change the result.

    Parameters
    ----------
    score : array ``[I]``
        Scores; infinite ones are allowed.
    offsets : array of int ``[R + 1]``
        Where each request begins.
    seed : int
        Seed of the tie-break.
    row : array of int ``[R]``, optional
        Key of each request (``evidence.row``); default 0, 1, ... Give it when scoring in batches.

    Returns
    -------
    ndarray ``[I]`` int64
        Candidate indices; those of request ``r`` stay in ``offsets[r]:offsets[r + 1]``.

    Raises
    ------
    ValueError
        A NaN score, or offsets that do not fit.

    Examples
    --------
    >>> top_order([1.0, 3.0, 2.0, 5.0, 6.0], [0, 3, 5])
    array([1, 2, 0, 4, 3])
    """
    x = column(score, "score")
    segment = segment_ids(offsets, x.size)
    bounds = np.asarray(offsets, dtype=np.int64)
    keys = np.arange(bounds.size - 1) if row is None else np.asarray(row, dtype=np.int64)
    if keys.shape != (bounds.size - 1,):
        raise ValueError(f"row: has shape {keys.shape}; expected ({bounds.size - 1},)")

    order = order_within(-x, bounds)
    same = (np.diff(segment) == 0) & (x[order][1:] == x[order][:-1])
    if same.any():
        # Only tied candidates are hashed and sorted again, each within its group of equals.
        group = np.zeros(x.size, dtype=np.int64)
        np.cumsum(~same, out=group[1:])
        tied = np.zeros(x.size, dtype=np.bool_)
        tied[1:] |= same
        tied[:-1] |= same
        members = order[tied]
        request = segment[members]
        draw = hash64(seed, _TIES, keys[request], members - bounds[request])
        order[tied] = members[np.lexsort((draw, group[tied]))]
    return order


def recall_at_k(
    label: npt.ArrayLike, order: npt.ArrayLike, offsets: npt.ArrayLike, k: int
) -> Floats:
    """Return the share of a request's relevant candidates among its first ``k``.

    Parameters
    ----------
    label : array ``[I]``
        Relevance, > 0 is relevant, in the candidates' own order.
    order : array of int ``[I]``
        From :func:`top_order`.
    offsets : array of int ``[R + 1]``
        Where each request begins.
    k : int
        At least 1; may exceed the list.

    Returns
    -------
    ndarray ``[R]`` float64
        NaN for a request without a relevant candidate.

    Raises
    ------
    ValueError
        A NaN label, arrays of different lengths, or ``k`` below 1.

    Examples
    --------
    >>> order = top_order([3.0, 2.0, 1.0, 1.0], [0, 3, 4, 4])
    >>> recall_at_k([1, 0, 1, 0], order, [0, 3, 4, 4], k=2)
    array([0.5, nan, nan])
    """
    relevant, segment, position, lengths = _ranked(label, order, offsets)
    hits = _count(relevant & (position < _at_least_1(k)), segment, lengths.size)
    return ratio(hits, _count(relevant, segment, lengths.size))


def precision_at_k(
    label: npt.ArrayLike, order: npt.ArrayLike, offsets: npt.ArrayLike, k: int
) -> Floats:
    """Return the share of relevant candidates among a request's first ``k``.

    A request shorter than ``k`` is divided by its length. Parameters and errors as in
    :func:`recall_at_k`.

    Returns
    -------
    ndarray ``[R]`` float64
        0 where nothing is relevant; NaN for an empty request.

    Examples
    --------
    >>> order = top_order([3.0, 2.0, 1.0], [0, 3])
    >>> precision_at_k([1, 0, 1], order, [0, 3], k=2)
    array([0.5])
    """
    relevant, segment, position, lengths = _ranked(label, order, offsets)
    hits = _count(relevant & (position < _at_least_1(k)), segment, lengths.size)
    return ratio(hits, np.minimum(lengths, k))


def hit_rate(label: npt.ArrayLike, order: npt.ArrayLike, offsets: npt.ArrayLike, k: int) -> Floats:
    """Return 1 where any of a request's first ``k`` is relevant, else 0.

    Parameters and errors as in :func:`recall_at_k`.

    Returns
    -------
    ndarray ``[R]`` float64
        NaN for a request without a relevant candidate.

    Examples
    --------
    >>> order = top_order([3.0, 2.0, 1.0], [0, 3])
    >>> hit_rate([0, 0, 1], order, [0, 3], k=2), hit_rate([0, 0, 1], order, [0, 3], k=9)
    (array([0.]), array([1.]))
    """
    relevant, segment, position, lengths = _ranked(label, order, offsets)
    hits = _count(relevant & (position < _at_least_1(k)), segment, lengths.size)
    known = _count(relevant, segment, lengths.size) > 0
    return np.where(known, (hits > 0).astype(np.float64), np.nan)


def mrr(
    label: npt.ArrayLike, order: npt.ArrayLike, offsets: npt.ArrayLike, k: int | None = None
) -> Floats:
    """Return one over the 1-based position of a request's first relevant candidate.

    Parameters and errors as in :func:`recall_at_k`; beyond ``k`` (default: the whole list) the
    value is 0.

    Returns
    -------
    ndarray ``[R]`` float64
        NaN for a request without a relevant candidate.

    Examples
    --------
    >>> order = top_order([3.0, 2.0, 1.0], [0, 3])
    >>> mrr([0, 1, 1], order, [0, 3])
    array([0.5])
    """
    relevant, segment, position, lengths = _ranked(label, order, offsets)
    segment_P, position_P = segment[relevant], position[relevant]
    is_first = np.diff(segment_P, prepend=-1) != 0
    first = np.full(lengths.size, np.inf)
    first[segment_P[is_first]] = position_P[is_first]
    reached = first < (np.inf if k is None else _at_least_1(k))
    value = np.where(reached, 1.0 / (first + 1.0), 0.0)
    return np.where(np.isinf(first), np.nan, value)


def ndcg_at_k(
    gain: npt.ArrayLike,
    order: npt.ArrayLike,
    offsets: npt.ArrayLike,
    k: int | None = None,
    *,
    gains: Literal["exponential", "linear"] = "exponential",
) -> Floats:
    """Return the discounted cumulative gain over that of the ideal order of all candidates.

    Sources: Jarvelin and Kekalainen, 2002 (linear gains ``g``); Burges et al., 2005 (``2^g - 1``);
    discount ``1 / log2(position + 2)``.

    Parameters
    ----------
    gain : array ``[I]``
        Grades, at least 0, in the candidates' own order.
    order, offsets
        As in :func:`recall_at_k`.
    k : int, optional
        Depth of both lists; default: the whole list.
    gains : {"exponential", "linear"}
        ``2^g - 1`` or ``g``. The same for grades 0 and 1.

    Returns
    -------
    ndarray ``[R]`` float64
        In [0, 1]; NaN for a request whose grades are all 0.

    Raises
    ------
    ValueError
        As in :func:`recall_at_k`, and a negative grade.

    Examples
    --------
    >>> order = top_order([3.0, 2.0, 1.0], [0, 3])
    >>> ndcg_at_k([0, 0, 1], order, [0, 3])
    array([0.5])
    """
    grade = column(gain, "gain")
    if grade.size and grade.min() < 0:
        raise ValueError(f"gain: the smallest is {grade.min()}; expected none below 0")
    _, segment, position, lengths = _ranked(grade, order, offsets)
    worth = np.exp2(grade) - 1.0 if gains == "exponential" else grade
    num_requests, depth = lengths.size, grade.size if k is None else _at_least_1(k)
    discount = np.where(position < depth, 1.0 / np.log2(position + 2.0), 0.0)
    ranked = worth[np.asarray(order, dtype=np.int64)]
    reached = np.bincount(segment, weights=ranked * discount, minlength=num_requests)
    # The ideal list begins with the graded candidates; only those need sorting.
    graded = np.flatnonzero(worth > 0)
    graded = graded[np.lexsort((-worth[graded], segment[graded]))]
    segment_G = segment[graded]
    before = np.searchsorted(segment_G, segment_G)  # graded candidates of earlier requests
    place = np.asarray(offsets, dtype=np.int64)[segment_G] + np.arange(graded.size) - before
    best = np.bincount(segment_G, weights=worth[graded] * discount[place], minlength=num_requests)
    return ratio(reached, best)


def per_request_auc(score: npt.ArrayLike, label: npt.ArrayLike, offsets: npt.ArrayLike) -> Floats:
    """Return the AUC within each request, ties counting one half.

    Parameters
    ----------
    score, label : array ``[I]``
        Scores; labels, > 0 is positive.
    offsets : array of int ``[R + 1]``
        Where each request begins.

    Returns
    -------
    ndarray ``[R]`` float64
        NaN for a request with a single class.

    Raises
    ------
    ValueError
        A NaN, or arrays of different lengths.

    Examples
    --------
    >>> per_request_auc([1.0, 2.0, 2.0, 5.0], [0, 1, 0, 1], [0, 3, 4])
    array([0.75,  nan])
    """
    x = column(score, "score")
    y = column(label, "label", x.size)
    segment = segment_ids(offsets, x.size)
    return segment_auc(x, y, segment, np.asarray(offsets).size - 1)


def _ranked(
    label: npt.ArrayLike, order: npt.ArrayLike, offsets: npt.ArrayLike
) -> tuple[npt.NDArray[np.bool_], Ints, Ints, Ints]:
    """Return relevance, request and position of every place in the order, and list lengths."""
    index = np.asarray(order, dtype=np.int64)
    values = column(label, "label", index.size)
    segment = segment_ids(offsets, index.size)
    bounds = np.asarray(offsets, dtype=np.int64)
    return values[index] > 0, segment, np.arange(index.size) - bounds[segment], np.diff(bounds)


def _count(mask: npt.NDArray[np.bool_], segment: Ints, num_segments: int) -> Floats:
    return np.bincount(segment[mask], minlength=num_segments).astype(np.float64)


def _at_least_1(k: int) -> int:
    if k < 1:
        raise ValueError(f"k: is {k}; expected at least 1")
    return k
