"""Uncertainty of metrics by resampling users: the bootstrap over clusters.

Rows of one user are not independent, so whole users are drawn with replacement (Field and Welsh,
"Bootstrapping clustered data", 2007). Intervals are percentile intervals (Efron and Tibshirani,
1993, chapter 13). Resample ``b`` is a pure function of (seed, ``b``, number of clusters), so two
metrics of the same users are judged on the same resamples, drawn once for all that is asked
together: see :mod:`prerank.evaluation.resampling`.

Shapes: ``N`` units (requests, users or candidates), ``C`` clusters, ``B`` resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from prerank.evaluation.resampling import (
    AUCStatistic,
    MeanStatistic,
    Statistic,
    cluster_codes,
    draw,
)

__all__ = [
    "Difference",
    "Estimate",
    "Question",
    "answer",
    "bootstrap_auc",
    "bootstrap_mean",
    "first_minus_second",
    "mean_of",
    "paired_auc",
    "paired_mean",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Key = TypeVar("Key", bound=Hashable)
_NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its interval; NaN where the data do not define it.

    Parameters
    ----------
    value : float
        The metric on the data as they are.
    low, high : float
        Bounds of the interval; NaN with fewer than two clusters.
    num_clusters : int
        Users with at least one unit that counted.
    """

    value: float
    low: float
    high: float
    num_clusters: int


@dataclass(frozen=True, slots=True)
class Difference(Estimate):
    """An estimate of ``a - b`` on the same units.

    Parameters
    ----------
    p_value : float
        Two-sided: twice the smaller share of resamples on either side of 0, both counted with
        one extra resample so that it is never 0; NaN with fewer than two clusters.
    """

    p_value: float


def bootstrap_mean(
    values: npt.ArrayLike,
    weights: npt.ArrayLike | None,
    cluster: npt.ArrayLike,
    *,
    num_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Estimate the weighted mean of per-unit values.

    Parameters
    ----------
    values : array ``[N]``
        One value per unit, for example recall of a request; NaN units are skipped.
    weights : array ``[N]``, optional
        Non-negative weights; None means 1.
    cluster : array ``[N]``
        User of each unit, any ids in any order.
    num_resamples : int
        ``B``, at least 1.
    seed : int
        Seed of the resamples, at least 0.
    level : float
        Coverage of the interval, in (0, 1).

    Returns
    -------
    Estimate
        NaN without units.

    Raises
    ------
    ValueError
        Columns of different lengths, a negative weight, a level or a count out of range.

    Examples
    --------
    >>> estimate = bootstrap_mean([1.0, 0.0, 1.0, float("nan")], None, [1, 2, 3, 4])
    >>> round(estimate.value, 3), estimate.low, estimate.high, estimate.num_clusters
    (0.667, 0.0, 1.0, 3)
    """
    question = Question((mean_of(values, weights, cluster),))
    return _only(question, num_resamples, seed, level)


def paired_mean(
    values_a: npt.ArrayLike,
    values_b: npt.ArrayLike,
    weights: npt.ArrayLike | None,
    cluster: npt.ArrayLike,
    *,
    num_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """Estimate the difference of two weighted means over the same units.

    Parameters
    ----------
    values_a, values_b : array ``[N]``
        Values of both systems; a unit where either is NaN is skipped.
    weights, cluster, num_resamples, seed, level
        As in :func:`bootstrap_mean`.

    Returns
    -------
    Difference
        Of ``a - b``; NaN without units.

    Raises
    ------
    ValueError
        As in :func:`bootstrap_mean`.

    Examples
    --------
    >>> user = np.arange(50)
    >>> difference = paired_mean(user + 1.0, user + 0.5, None, user)
    >>> difference.value, difference.low, difference.high, difference.p_value < 0.01
    (0.5, 0.5, 0.5, True)
    """
    gap = np.asarray(values_a, dtype=np.float64) - np.asarray(values_b, dtype=np.float64)
    question = Question((mean_of(gap, weights, cluster),), paired=True)
    found = _only(question, num_resamples, seed, level)
    assert isinstance(found, Difference)
    return found


def bootstrap_auc(
    score: npt.ArrayLike,
    label: npt.ArrayLike,
    cluster: npt.ArrayLike,
    *,
    weights: npt.ArrayLike | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Estimate the pooled AUC (ties counting one half); sorts once, then only re-weights.

    Parameters
    ----------
    score : array ``[N]``
        One score per candidate; NaN candidates are skipped.
    label : array ``[N]``
        > 0 is positive; NaN candidates are skipped.
    cluster, weights, num_resamples, seed, level
        As in :func:`bootstrap_mean`.

    Returns
    -------
    Estimate
        NaN with a single class. Resamples with a single class are left out of the interval.

    Raises
    ------
    ValueError
        As in :func:`bootstrap_mean`.

    Examples
    --------
    >>> bootstrap_auc([0.1, 0.4, 0.4, 0.8], [0, 0, 1, 1], [1, 1, 2, 2]).value
    0.875
    """
    (x, y), weight, user, num_clusters = _units([score, label], weights, cluster)
    question = Question((AUCStatistic(x, y, weight, user, num_clusters),))
    return _only(question, num_resamples, seed, level)


def paired_auc(
    score_a: npt.ArrayLike,
    score_b: npt.ArrayLike,
    label: npt.ArrayLike,
    cluster: npt.ArrayLike,
    *,
    weights: npt.ArrayLike | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """Estimate the difference of two pooled AUCs over the same candidates.

    Parameters
    ----------
    score_a, score_b : array ``[N]``
        Scores of both systems; a candidate where either is NaN is skipped.
    label, cluster, weights, num_resamples, seed, level
        As in :func:`bootstrap_auc`.

    Returns
    -------
    Difference
        Of ``a - b``; NaN with a single class.

    Raises
    ------
    ValueError
        As in :func:`bootstrap_mean`.

    Examples
    --------
    >>> score, label, user = np.arange(40.0), np.arange(40) % 2, np.arange(40) // 4
    >>> paired_auc(score, 2 * score, label, user).p_value
    1.0
    """
    (a, b, y), weight, user, num_clusters = _units([score_a, score_b, label], weights, cluster)
    both = tuple(AUCStatistic(x, y, weight, user, num_clusters) for x in (a, b))
    found = _only(Question(both, first_minus_second, paired=True), num_resamples, seed, level)
    assert isinstance(found, Difference)
    return found


def mean_of(
    values: npt.ArrayLike, weights: npt.ArrayLike | None, cluster: npt.ArrayLike
) -> MeanStatistic:
    """Return the weighted mean of the units that are not NaN, over their clusters."""
    (value,), weight, user, num_clusters = _units([values], weights, cluster)
    return MeanStatistic(value, weight, user, num_clusters)


def _units(
    columns: list[npt.ArrayLike], weights: npt.ArrayLike | None, cluster: npt.ArrayLike
) -> tuple[list[Floats], Floats, Ints, int]:
    """Return the units where nothing is NaN, with clusters numbered from 0, and their number."""
    values = [np.asarray(column, dtype=np.float64) for column in columns]
    size = values[0].size
    weight = np.ones(size) if weights is None else np.asarray(weights, dtype=np.float64)
    ids = np.asarray(cluster)
    for array in (*values, weight, ids):
        if array.shape != (size,):
            raise ValueError(f"a column has shape {array.shape}; expected ({size},) as the first")
    if not (weight >= 0).all():
        raise ValueError("weights: some are negative or NaN; expected none below 0")
    known = np.ones(size, dtype=np.bool_)
    for array in values:
        known &= ~np.isnan(array)
    user, num_clusters = cluster_codes(ids[known])
    return [array[known] for array in values], weight[known], user, num_clusters


def first_of(values: Floats) -> Floats:
    """Return the first of several statistics ``[S, ...]``."""
    first: Floats = values[0]
    return first


def first_minus_second(values: Floats) -> Floats:
    """Return the difference of two statistics ``[2, ...]``."""
    return np.asarray(values[0] - values[1])


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """A number whose uncertainty is asked for.

    Parameters
    ----------
    statistics : tuple of Statistic
        All over the same clusters.
    combine : callable
        What is asked, from their values ``[S, ...]``, on the data and on every resample alike.
    paired : bool
        Whether it is a difference, so that a p value is asked for too.
    most : int, optional
        Resamples that the work is worth; fewer than asked for on large data.
    """

    statistics: tuple[Statistic, ...]
    combine: Callable[[Floats], Floats] = first_of
    paired: bool = False
    most: int | None = None


def answer(
    questions: Mapping[Key, Question], num_resamples: int, seed: int, *, level: float = 0.95
) -> dict[Key, Estimate]:
    """Answer questions together: resamples are drawn once, and means are one matrix product.

    Parameters
    ----------
    questions : mapping of key to Question
        Statistics that several share are computed once.
    num_resamples : int
        ``B``; 0: values without intervals.
    seed : int
        Seed of the resamples, at least 0.
    level : float
        Coverage of the intervals, in (0, 1).

    Returns
    -------
    dict of key to Estimate
        A Difference where the question is paired.

    Examples
    --------
    >>> mean = mean_of([1.0, 3.0], None, [7, 8])
    >>> answer({"mean": Question((mean,))}, 0, seed=0)
    {'mean': Estimate(value=2.0, low=nan, high=nan, num_clusters=2)}
    """
    if not 0 < level < 1:
        raise ValueError(f"level: is {level}; expected a number between 0 and 1")
    statistics: list[Statistic] = []
    nums: list[int] = []
    for question in questions.values():
        statistics += question.statistics
        num = num_resamples if question.most is None else min(num_resamples, question.most)
        nums += [num] * len(question.statistics)
    drawn = iter(draw(statistics, nums, seed))
    points: dict[int, float] = {}
    answers: dict[Key, Estimate] = {}
    for key, question in questions.items():
        for statistic in question.statistics:
            if id(statistic) not in points:
                points[id(statistic)] = statistic.point()
        point = np.array([points[id(statistic)] for statistic in question.statistics])
        draws = question.combine(np.stack([next(drawn) for _ in question.statistics]))
        value, num_clusters = float(question.combine(point)), question.statistics[0].num_clusters
        known = draws[~np.isnan(draws)]
        low = high = p_value = _NAN
        if num_clusters >= 2 and known.size:
            low, high = _quantiles(known, 0.5 * (1 - level), 0.5 * (1 + level))
            none = 1e-12 * np.abs(known).max()  # rounding must not put a tie on one side
            one_side = min((known <= none).sum(), (known >= -none).sum())
            p_value = min(1.0, 2.0 * float(one_side + 1) / (known.size + 1))
        if question.paired:
            answers[key] = Difference(value, low, high, num_clusters, p_value)
        else:
            answers[key] = Estimate(value, low, high, num_clusters)
    return answers


def _quantiles(values: Floats, low: float, high: float) -> tuple[float, float]:
    found = np.quantile(values, [low, high])
    return float(found[0]), float(found[1])


def _only(question: Question, num_resamples: int, seed: int, level: float) -> Estimate:
    if num_resamples < 1:
        raise ValueError(f"num_resamples: is {num_resamples}; expected at least 1")
    return answer({"": question}, num_resamples, seed, level=level)[""]
