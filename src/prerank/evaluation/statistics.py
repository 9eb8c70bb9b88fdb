"""Uncertainty of metrics by resampling users: the bootstrap over clusters.

Rows of one user are not independent, so whole users are drawn with replacement (Field and Welsh,
"Bootstrapping clustered data", 2007). Intervals are percentile intervals (Efron and Tibshirani,
1993, chapter 13). Resample ``b`` is a pure function of (seed, ``b``, number of clusters), so two
metrics of the same users are judged on the same resamples. Those of few users are kept for the
next metric; of many, memory is that of one resample.

Shapes: ``N`` units (requests, users or candidates), ``C`` clusters, ``B`` resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

__all__ = [
    "Difference",
    "Estimate",
    "Statistic",
    "auc_statistic",
    "bootstrap_auc",
    "bootstrap_mean",
    "difference_of",
    "interval",
    "mean_statistic",
    "paired_auc",
    "paired_mean",
    "resample",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Statistic = Callable[[Floats], float]
_KEPT = 1 << 24
"""Bytes of resamples that are kept, for each of eight numbers of clusters."""


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
    (value,), weight, user = _units([values], weights, cluster)
    mean, num_clusters = mean_statistic(value, weight, user)
    point, draws = resample([mean], num_clusters, num_resamples, seed)
    return Estimate(point[0], *interval(draws[0], num_clusters, level), num_clusters)


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
    (a, b), weight, user = _units([values_a, values_b], weights, cluster)
    mean, num_clusters = mean_statistic(a - b, weight, user)
    point, draws = resample([mean], num_clusters, num_resamples, seed)
    return difference_of(point[0], draws[0], num_clusters, level)


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
    (x, y), weight, user = _units([score, label], weights, cluster)
    num_clusters = _num_clusters(user)
    point, draws = resample([auc_statistic(x, y, weight, user)], num_clusters, num_resamples, seed)
    return Estimate(point[0], *interval(draws[0], num_clusters, level), num_clusters)


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
    (a, b, y), weight, user = _units([score_a, score_b, label], weights, cluster)
    num_clusters = _num_clusters(user)
    statistics = [auc_statistic(a, y, weight, user), auc_statistic(b, y, weight, user)]
    point, draws = resample(statistics, num_clusters, num_resamples, seed)
    return difference_of(point[0] - point[1], draws[0] - draws[1], num_clusters, level)


def _units(
    columns: list[npt.ArrayLike], weights: npt.ArrayLike | None, cluster: npt.ArrayLike
) -> tuple[list[Floats], Floats, Ints]:
    """Return the units where nothing is NaN, with clusters numbered from 0."""
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
    _, user = np.unique(ids[known], return_inverse=True)
    return [array[known] for array in values], weight[known], user.astype(np.int64)


def _num_clusters(user: Ints) -> int:
    return int(user.max()) + 1 if user.size else 0


def mean_statistic(
    value: Floats, weight: Floats, user: Ints, num_clusters: int | None = None
) -> tuple[Statistic, int]:
    """Return the mean as a function of how often each cluster is drawn, and how many there are."""
    num_clusters = _num_clusters(user) if num_clusters is None else num_clusters
    total = np.stack(
        [
            np.bincount(user, weights=weight * value, minlength=num_clusters),
            np.bincount(user, weights=weight, minlength=num_clusters),
        ]
    )

    def statistic(count: Floats) -> float:
        numerator, denominator = total @ count
        return float(numerator / denominator) if denominator > 0 else float("nan")

    return statistic, num_clusters


def auc_statistic(score: Floats, label: Floats, weight: Floats, user: Ints) -> Statistic:
    """Return the AUC as a function of how often each cluster is drawn.

    With negatives in ascending order, a positive wins against those before its score and half
    wins against its equals: both are differences of one running sum, at places found once.
    """
    positive = np.flatnonzero(label > 0)
    positive = positive[np.argsort(score[positive])]  # neighbours read neighbouring sums
    negative = np.flatnonzero(~(label > 0))
    negative = negative[np.argsort(score[negative])]
    below = np.searchsorted(score[negative], score[positive], side="left")
    through = np.searchsorted(score[negative], score[positive], side="right")
    user_P, user_N = user[positive], user[negative]
    weight_P, weight_N = weight[positive], weight[negative]
    running = np.zeros(negative.size + 1)

    def statistic(count: Floats) -> float:
        np.cumsum(count[user_N] * weight_N, out=running[1:])
        mass = count[user_P] * weight_P
        pairs = float(mass.sum() * running[-1])
        won = 0.5 * float(mass @ (running[below] + running[through]))
        return won / pairs if pairs > 0 else float("nan")

    return statistic


def resample(
    statistics: list[Statistic], num_clusters: int, num_resamples: int, seed: int
) -> tuple[list[float], Floats]:
    """Return each statistic on the data, and on every resample ``[S, B]``."""
    if num_resamples < 1:
        raise ValueError(f"num_resamples: is {num_resamples}; expected at least 1")
    point = [statistic(np.ones(num_clusters)) for statistic in statistics]
    draws = np.full((len(statistics), num_resamples), np.nan)
    if num_clusters > 1:
        for b, count in enumerate(_counts(num_clusters, num_resamples, seed)):
            for s, statistic in enumerate(statistics):
                draws[s, b] = statistic(count)
    return point, draws


def _counts(num_clusters: int, num_resamples: int, seed: int) -> Iterator[Floats]:
    """Yield how often each cluster is drawn, ``[C]``, for every resample."""
    if num_clusters * num_resamples <= _KEPT:
        for kept in _kept_counts(num_clusters, num_resamples, seed):
            yield kept.astype(np.float64)
        return
    for b in range(num_resamples):
        yield _draw(num_clusters, seed, b).astype(np.float64)


@lru_cache(maxsize=8)
def _kept_counts(num_clusters: int, num_resamples: int, seed: int) -> npt.NDArray[np.uint8]:
    """Return the counts of all resamples ``[B, C]``; none is ever near 255."""
    counts = np.empty((num_resamples, num_clusters), dtype=np.uint8)
    for b in range(num_resamples):
        counts[b] = _draw(num_clusters, seed, b)
    return counts


def _draw(num_clusters: int, seed: int, b: int) -> Ints:
    drawn = np.random.default_rng([seed, b]).integers(num_clusters, size=num_clusters)
    return np.bincount(drawn, minlength=num_clusters)


def interval(draws: Floats, num_clusters: int, level: float) -> tuple[float, float]:
    """Return the percentile interval of resampled values; NaN for fewer than two clusters."""
    if not 0 < level < 1:
        raise ValueError(f"level: is {level}; expected a number between 0 and 1")
    known = draws[~np.isnan(draws)]
    if num_clusters < 2 or not known.size:
        return float("nan"), float("nan")
    low, high = np.quantile(known, [0.5 * (1 - level), 0.5 * (1 + level)])
    return float(low), float(high)


def difference_of(value: float, draws: Floats, num_clusters: int, level: float) -> Difference:
    """Return the estimate of a difference from its value and its resampled values."""
    low, high = interval(draws, num_clusters, level)
    known = draws[~np.isnan(draws)]
    p_value = float("nan")
    if known.size:
        one_side = min((known <= 0).sum(), (known >= 0).sum())
        p_value = min(1.0, 2.0 * float(one_side + 1) / (known.size + 1))
    return Difference(value, low, high, num_clusters, p_value)
