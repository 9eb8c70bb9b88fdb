"""Measures of orders in which some candidates have no place (a cascade's ``tail="drop"``).

A dropped candidate has the score -inf. It is lost: recall and reciprocal rank never find it, and
measures of the whole order put all dropped ones last in a tie. Where a request keeps fewer than
``k`` of its candidates, its first ``k`` places are not filled, so any other measure at that ``k``
would describe places that nothing stands in, and is skipped.

Shapes: ``R`` requests, ``I`` candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from prerank import metrics
from prerank.metrics.segments import ratio

__all__ = ["mrr_of_kept", "recall_of_kept", "unfilled"]

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def unfilled(kept: Bools, offsets: Ints, ks: Sequence[int]) -> dict[int, str]:
    """Return the cut-offs that some request does not fill, with the reason.

    Examples
    --------
    >>> unfilled(np.array([True, False, False]), np.array([0, 3]), [1, 2])
    {2: '1 of 1 requests keep fewer than k = 2 candidates (tail: drop)'}
    """
    if kept.all():
        return {}
    number = _count(kept, offsets)
    lengths = np.diff(offsets)
    short = {k: int((number < np.minimum(lengths, k)).sum()) for k in ks}
    return {
        k: f"{n:,} of {len(lengths):,} requests keep fewer than k = {k} candidates (tail: drop)"
        for k, n in short.items()
        if n
    }


def recall_of_kept(truth: Bools, kept: Bools, order: Ints, offsets: Ints, k: int) -> Floats:
    """Return recall at ``k`` ``[R]`` where a dropped candidate is never found.

    Examples
    --------
    >>> truth, kept = np.array([True, True]), np.array([True, False])
    >>> recall_of_kept(truth, kept, np.array([0, 1]), np.array([0, 2]), 2)
    array([0.5])
    """
    if kept.all():
        return metrics.recall_at_k(truth, order, offsets, k)
    found = np.nan_to_num(metrics.recall_at_k(truth & kept, order, offsets, k))
    return ratio(found * _count(truth & kept, offsets), _count(truth, offsets))


def mrr_of_kept(truth: Bools, kept: Bools, order: Ints, offsets: Ints) -> Floats:
    """Return the reciprocal rank ``[R]``, 0 where all relevant candidates were dropped."""
    value = metrics.mrr(truth & kept, order, offsets)
    return np.where((_count(truth, offsets) > 0) & np.isnan(value), 0.0, value)


def _count(chosen: Bools, offsets: Ints) -> Ints:
    return np.diff(np.concatenate([[0], np.cumsum(chosen)])[offsets])
