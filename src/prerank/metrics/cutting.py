"""What a cut after ``k`` places keeps of another order's value: light against heavy.

Shapes: ``I`` candidates, ``R`` requests; candidates of request ``r`` are
``offsets[r]:offsets[r + 1]``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from prerank.metrics.ranking import top_order
from prerank.metrics.segments import Floats, Ints, column, ratio, segment_ids

__all__ = ["gain_kept", "regret_at_k", "survivors", "value_lost"]

Bools = npt.NDArray[np.bool_]


def regret_at_k(
    value: npt.ArrayLike,
    order: npt.ArrayLike,
    offsets: npt.ArrayLike,
    k: int,
    *,
    best: npt.ArrayLike | None = None,
) -> Floats:
    """Return how far the mean value of the first ``k`` stays below the best possible ``k``.

    Parameters
    ----------
    value : array ``[I]``
        Worth of each candidate, in any unit, for example its true utility.
    order : array of int ``[I]``
        From :func:`prerank.metrics.top_order`.
    offsets : array of int ``[R + 1]``
        Where each request begins.
    k : int
        At least 1; a request shorter than ``k`` loses nothing.
    best : array of int ``[I]``, optional
        Order by ``value``, where it is known already.

    Returns
    -------
    ndarray ``[R]`` float64
        At least 0, in the unit of ``value``; NaN for an empty request.

    Raises
    ------
    ValueError
        A NaN, arrays of different lengths, ``k`` below 1.

    Examples
    --------
    >>> regret_at_k([5.0, 1.0, 3.0], [1, 2, 0], [0, 3], k=2)
    array([2.])
    """
    return value_lost(value, order, offsets, num_kept=k, num_final=k, best=best)


def value_lost(
    value: npt.ArrayLike,
    order: npt.ArrayLike,
    offsets: npt.ArrayLike,
    *,
    num_kept: int,
    num_final: int,
    best: npt.ArrayLike | None = None,
) -> Floats:
    """Return the mean value lost when only the first ``num_kept`` reach a heavy model.

    The heavy model takes the ``num_final`` most valuable of what it gets; the loss is against
    what it would have taken of all candidates. With ``value`` its own score this is the score
    lost by keeping ``num_kept``.

    Parameters
    ----------
    value, order, offsets, best
        As in :func:`regret_at_k`.
    num_kept, num_final : int
        At least 1, ``num_final`` at most ``num_kept``.

    Returns
    -------
    ndarray ``[R]`` float64
        At least 0, in the unit of ``value``; NaN for an empty request.

    Raises
    ------
    ValueError
        As in :func:`regret_at_k`.

    Examples
    --------
    >>> value_lost([5.0, 1.0, 3.0], [1, 2, 0], [0, 3], num_kept=2, num_final=1)
    array([2.])
    """
    if not 1 <= num_final <= num_kept:
        raise ValueError(f"num_final: is {num_final}; expected from 1 to num_kept ({num_kept})")
    worth = column(value, "value")
    kept = _first(order, offsets, num_kept, worth.size)
    ranked = top_order(worth, offsets) if best is None else _index(best, worth.size)
    bounds = np.asarray(offsets, dtype=np.int64)
    segment = segment_ids(offsets, worth.size)
    early = np.flatnonzero(np.arange(worth.size) - bounds[segment] < num_final)
    through, place = _kept_in_order(ranked, kept, bounds, segment)
    through = through[place < num_final]
    # Summed pair by pair, so that equal lists lose exactly nothing.
    lost = np.bincount(
        segment[early],
        weights=worth[ranked[early]] - worth[through],
        minlength=bounds.size - 1,
    )
    return ratio(lost, np.minimum(np.diff(bounds), num_final))


def gain_kept(
    order: npt.ArrayLike,
    heavy: npt.ArrayLike,
    offsets: npt.ArrayLike,
    *,
    num_kept: int,
    num_final: int,
) -> Floats:
    """Return the share of the heavy model's discounted top ``num_final`` inside the kept part.

    The candidate in the heavy model's place ``p`` (0-based) is worth ``1 / log2(p + 2)``; all
    first ``num_final`` places together are 1.

    Parameters
    ----------
    order, heavy : array of int ``[I]``
        Order of the light model and of the heavy one, from :func:`prerank.metrics.top_order`.
    offsets : array of int ``[R + 1]``
        Where each request begins.
    num_kept, num_final : int
        At least 1.

    Returns
    -------
    ndarray ``[R]`` float64
        In [0, 1]; NaN for an empty request.

    Raises
    ------
    ValueError
        Arrays of different lengths, a count below 1.

    Examples
    --------
    >>> gain_kept([1, 0, 2], [0, 1, 2], [0, 3], num_kept=1, num_final=1)
    array([0.])
    """
    if num_final < 1:
        raise ValueError(f"num_final: is {num_final}; expected at least 1")
    theirs = np.asarray(heavy, dtype=np.int64)
    kept = _first(order, offsets, num_kept, theirs.size)
    bounds = np.asarray(offsets, dtype=np.int64)
    segment = segment_ids(offsets, theirs.size)
    place = np.arange(theirs.size) - bounds[segment]
    gain = np.where(place < num_final, 1.0 / np.log2(place + 2.0), 0.0)
    whole = np.bincount(segment, weights=gain, minlength=bounds.size - 1)
    got = np.bincount(segment, weights=gain * kept[theirs], minlength=bounds.size - 1)
    return ratio(got, whole)


def survivors(
    heavy: npt.ArrayLike,
    order: npt.ArrayLike,
    offsets: npt.ArrayLike,
    *,
    num_kept: int,
    num_final: int,
    seed: int = 0,
    row: npt.ArrayLike | None = None,
    best: npt.ArrayLike | None = None,
) -> Bools:
    """Return which candidates are shown when a frozen ranker orders what a light model kept.

    Parameters
    ----------
    heavy : array ``[I]``
        The ranker's score; -inf is never shown.
    order, offsets
        The light model's order, as in :func:`regret_at_k`.
    num_kept, num_final : int
        What the light model keeps, what the ranker shows of it; at least 1.
    seed, row
        Of the order among equal scores, as in :func:`prerank.metrics.top_order`.
    best : array of int ``[I]``, optional
        The order by ``heavy`` with that seed, where it is known already.

    Returns
    -------
    ndarray ``[I]`` bool
        In the candidates' own order.

    Raises
    ------
    ValueError
        As in :func:`regret_at_k`.

    Examples
    --------
    >>> survivors([5.0, 1.0, 3.0], [1, 2, 0], [0, 3], num_kept=2, num_final=1)
    array([False, False,  True])
    """
    score = column(heavy, "heavy")
    kept = _first(order, offsets, num_kept, score.size) & (score > -np.inf)
    if num_final < 1:
        raise ValueError(f"num_final: is {num_final}; expected at least 1")
    if best is None:
        ranked = top_order(score, offsets, seed=seed, row=row)
    else:
        ranked = _index(best, score.size)
    # Ties are drawn for each candidate by itself, so the order of a subset is a part of the whole.
    bounds = np.asarray(offsets, dtype=np.int64)
    second, place = _kept_in_order(ranked, kept, bounds, segment_ids(offsets, score.size))
    shown = np.zeros(score.size, dtype=np.bool_)
    shown[second[place < num_final]] = True
    return shown


def _kept_in_order(ranked: Ints, kept: Bools, bounds: Ints, segment: Ints) -> tuple[Ints, Ints]:
    """Return the kept candidates in an order, and the place of each among those of its request."""
    chosen = np.flatnonzero(kept[ranked])
    before = np.concatenate([[0], np.cumsum(kept)])[bounds]
    return ranked[chosen], np.arange(chosen.size) - before[segment[chosen]]


def _index(order: npt.ArrayLike, size: int) -> Ints:
    index = np.asarray(order, dtype=np.int64)
    if index.size != size:
        raise ValueError(f"order: has {index.size} values; expected {size}")
    return index


def _first(order: npt.ArrayLike, offsets: npt.ArrayLike, k: int, size: int) -> Bools:
    """Return which candidates ``[I]`` are among the first ``k`` of their request."""
    if k < 1:
        raise ValueError(f"k: is {k}; expected at least 1")
    index = _index(order, size)
    segment = segment_ids(offsets, size)
    bounds = np.asarray(offsets, dtype=np.int64)
    first = np.zeros(size, dtype=np.bool_)
    first[index[np.arange(size) - bounds[segment] < k]] = True
    return first
