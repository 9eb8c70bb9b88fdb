"""Users drawn with replacement, and statistics as functions of how often each was drawn.

Resample ``b`` is a pure function of (seed, ``b``, number of clusters), so all statistics over
equally many users share one matrix of counts ``[B, C]``. On it a mean is a ratio of two products,
and all means together are one matrix product. A pooled AUC counts the pairs (positive, negative) in
the right order; summed by pair of users they are a matrix ``W``, and the AUC of a resample is the
quadratic form ``c W c`` over the number of its pairs: sorting and counting happen once, whatever
the number of resamples. Where ``W`` would be larger than the data, sums over the sorted negatives
are made anew for every resample.

Shapes: ``N`` units (requests, users or candidates), ``C`` clusters, ``B`` resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from prerank.metrics.sorting import distinct

__all__ = ["AUCStatistic", "MeanStatistic", "Statistic", "cluster_codes", "draw"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_BLOCK = 1 << 23
"""Numbers of a block of counts or of totals: 64 MiB of float64."""
_EXACT = float(1 << 24)
"""Whole numbers below this are exact in float32."""


class Statistic(Protocol):
    """A number that depends on the data and on how often each cluster counts."""

    @property
    def num_clusters(self) -> int:
        """``C``."""
        ...

    def point(self) -> float:
        """Return the statistic with every cluster counted once."""
        ...

    def on(self, counts: Floats) -> Floats:
        """Return it with clusters counted ``counts [B, C]`` times, ``[B]``; NaN: undefined."""
        ...


def cluster_codes(ids: npt.ArrayLike) -> tuple[Ints, int]:
    """Return each unit's cluster ``[N]``, numbered from 0 as ids ascend, and how many there are.

    Examples
    --------
    >>> cluster_codes([30, 10, 30])
    (array([1, 0, 1]), 2)
    """
    users, codes = distinct(ids)
    return codes, users.size


class MeanStatistic:
    """A weighted mean of units.

    Parameters
    ----------
    value, weight : ndarray ``[N]``
        Without NaN.
    cluster : ndarray ``[N]`` int64
        In ``0 ... num_clusters - 1``.
    num_clusters : int
        ``C``; clusters without a unit are drawn too.
    """

    def __init__(self, value: Floats, weight: Floats, cluster: Ints, num_clusters: int) -> None:
        self.num_clusters = num_clusters
        self.totals = np.stack(
            [
                np.bincount(cluster, weights=weight * value, minlength=num_clusters),
                np.bincount(cluster, weights=weight, minlength=num_clusters),
            ]
        )

    def point(self) -> float:
        """Return the mean."""
        return float(self.on(np.ones((1, self.num_clusters)))[0])

    def on(self, counts: Floats) -> Floats:
        """Return the mean of each resample ``[B]``."""
        return _ratio(*(self.totals @ counts.T))


class AUCStatistic:
    """A pooled AUC, ties counting one half.

    Parameters
    ----------
    score, label, weight : ndarray ``[N]``
        Without NaN; label > 0 is positive. Scores that ascend already are not sorted again.
    cluster, num_clusters
        As in :class:`MeanStatistic`.
    """

    def __init__(
        self, score: Floats, label: Floats, weight: Floats, cluster: Ints, num_clusters: int
    ) -> None:
        self.num_clusters = num_clusters
        if not (score[1:] >= score[:-1]).all():
            order = np.argsort(score)
            score, label = score[order], label[order]
            weight, cluster = weight[order], cluster[order]
        positive = label > 0
        score_N, score_P = score[~positive], score[positive]
        self.cluster_P, self.cluster_N = cluster[positive], cluster[~positive]
        self.weight_P, self.weight_N = weight[positive], weight[~positive]
        # A positive wins against negatives before its score, and half against its equals.
        self.below = np.searchsorted(score_N, score_P, side="left")
        self.through = np.searchsorted(score_N, score_P, side="right")
        self._num_users = [distinct(c)[0].size for c in (self.cluster_P, self.cluster_N)]

    @property
    def work(self) -> int:
        """Of one resample, in steps of a pass over the data."""
        return self._work()[0]

    def _work(self) -> tuple[int, bool]:
        """Return the work of a resample, and whether it is that of the quadratic form."""
        size = self.cluster_N.size + self.cluster_P.size
        users_P, users_N = self._num_users
        form = users_P * users_N // 16 + self.num_clusters
        return (form, True) if form < size and users_P * users_N <= _BLOCK else (size, False)

    def point(self) -> float:
        """Return the AUC."""
        running = np.concatenate([[0.0], np.cumsum(self.weight_N)])
        pairs = float(self.weight_P.sum() * running[-1])
        won = 0.5 * float(self.weight_P @ (running[self.below] + running[self.through]))
        return won / pairs if pairs > 0 else float("nan")

    def on(self, counts: Floats) -> Floats:
        """Return the AUC of each resample ``[B]``; NaN without one of the classes."""
        mass_P = _mass(self.cluster_P, self.weight_P, self.num_clusters)
        mass_N = _mass(self.cluster_N, self.weight_N, self.num_clusters)
        drawn_P, drawn_N = counts @ mass_P, counts @ mass_N
        quadratic = self._work()[1]
        twice = self._form(counts, drawn_P, mass_N) if quadratic else self._sorted(counts)
        return _ratio(0.5 * twice, drawn_P * drawn_N)

    def _form(self, counts: Floats, drawn_P: Floats, mass_N: Floats) -> Floats:
        """Return twice the pairs won, as a quadratic form."""
        users_P, row = np.unique(self.cluster_P, return_inverse=True)
        users_N, column = np.unique(self.cluster_N, return_inverse=True)
        twice = self._twice_won_by_users(row, users_P.size, column, users_N.size)
        left, right = counts[:, users_P], counts[:, users_N]
        whole = all((w == np.floor(w)).all() for w in (self.weight_P, self.weight_N))
        if whole and 2 * drawn_P.max() * mass_N.max() < _EXACT:
            # No partial sum of whole numbers exceeds this bound, so half the width loses nothing.
            product = (left.astype(np.float32) @ twice.astype(np.float32)).astype(np.float64)
        else:
            product = left @ twice
        return np.asarray(np.einsum("bc,bc->b", product, right))

    def _twice_won_by_users(
        self, row: Ints, num_rows: int, column: Ints, num_columns: int
    ) -> Floats:
        """Return twice the pairs won of each positive's user against each negative's ``[.., ..]``.

        Going up the positives, the negatives that each has passed are counted by user.
        """
        num_positives = row.size
        place = np.arange(column.size)
        # The first positive that passes each negative, and the first that leaves it behind.
        reached = np.searchsorted(self.through, place, side="right")
        passed = np.searchsorted(self.below, place, side="right")
        rows_at_once = max(1, _BLOCK // (8 * num_columns))
        won = np.zeros((num_rows, num_columns))
        running = np.zeros(num_columns)
        for start in range(0, num_positives, rows_at_once):
            stop = min(start + rows_at_once, num_positives)
            new = np.zeros((stop - start) * num_columns)
            for first in (reached, passed):
                low, high = np.searchsorted(first, [start, stop])
                at = (first[low:high] - start) * num_columns + column[low:high]
                new += np.bincount(at, self.weight_N[low:high], minlength=new.size)
            for p, added in enumerate(new.reshape(-1, num_columns), start):
                running += added
                won[row[p]] += self.weight_P[p] * running
        return won

    def _sorted(self, counts: Floats) -> Floats:
        """Return twice the pairs won, summing the sorted negatives anew for every resample."""
        ends = np.unique(np.concatenate([[0], self.below, self.through]))
        below, through = np.searchsorted(ends, self.below), np.searchsorted(ends, self.through)
        starts = ends[ends < self.cluster_N.size]
        running = np.zeros(starts.size + 1)
        unit = bool((self.weight_N == 1).all())
        won = np.zeros(len(counts))
        for b, count in enumerate(counts):
            drawn = count[self.cluster_N] if unit else count[self.cluster_N] * self.weight_N
            if starts.size:
                np.cumsum(np.add.reduceat(drawn, starts), out=running[1:])
            mass = count[self.cluster_P] * self.weight_P
            won[b] = mass @ (running[below] + running[through])
        return won


def draw(statistics: Sequence[Statistic], num_resamples: Sequence[int], seed: int) -> list[Floats]:
    """Return every statistic on its first resamples, an array each; NaN below two clusters.

    Parameters
    ----------
    statistics : sequence of Statistic
        One that occurs twice is computed once.
    num_resamples : sequence of int
        How many of each.
    seed : int
        At least 0.
    """
    wanted: dict[int, tuple[Statistic, int]] = {}
    for statistic, num in zip(statistics, num_resamples, strict=True):
        before = wanted.get(id(statistic), (statistic, 0))[1]
        wanted[id(statistic)] = (statistic, max(num, before))
    draws = {key: np.full(num, np.nan) for key, (_, num) in wanted.items()}
    by_size: dict[int, list[int]] = {}
    for key, (statistic, _) in wanted.items():
        by_size.setdefault(statistic.num_clusters, []).append(key)
    for num_clusters, keys in by_size.items():
        if num_clusters < 2:
            continue
        means = [k for k in keys if isinstance(wanted[k][0], MeanStatistic)]
        most = max(wanted[key][1] for key in keys)
        for start, counts in _counts(num_clusters, most, seed):
            for block in _blocks(means, num_clusters):
                values = _means([wanted[key][0] for key in block], counts)
                for key, of in zip(block, values, strict=True):
                    rest = draws[key][start : start + len(counts)]
                    rest[:] = of[: rest.size]
            for key in keys:
                rest = draws[key][start : start + len(counts)]
                if rest.size and not isinstance(wanted[key][0], MeanStatistic):
                    rest[:] = wanted[key][0].on(counts[: rest.size])
    return [
        draws[id(statistic)][:num] for statistic, num in zip(statistics, num_resamples, strict=True)
    ]


def _blocks(keys: list[int], num_clusters: int) -> Iterator[list[int]]:
    size = max(1, _BLOCK // (2 * num_clusters))
    for start in range(0, len(keys), size):
        yield keys[start : start + size]


def _means(statistics: Sequence[Statistic], counts: Floats) -> Floats:
    """Return several means on each resample ``[S, B]``, by one product."""
    totals = [s.totals for s in statistics if isinstance(s, MeanStatistic)]
    drawn = np.concatenate(totals) @ counts.T
    return _ratio(drawn[0::2], drawn[1::2])


def _counts(num_clusters: int, num_resamples: int, seed: int) -> Iterator[tuple[int, Floats]]:
    """Yield how often each cluster is drawn, ``[b, C]`` in blocks, and the first resample of it."""
    size = max(1, _BLOCK // num_clusters)
    for start in range(0, num_resamples, size):
        stop = min(start + size, num_resamples)
        counts = np.empty((stop - start, num_clusters))
        for b in range(start, stop):
            drawn = np.random.default_rng([seed, b]).integers(num_clusters, size=num_clusters)
            counts[b - start] = np.bincount(drawn, minlength=num_clusters)
        yield start, counts


def _mass(cluster: Ints, weight: Floats, num_clusters: int) -> Floats:
    return np.bincount(cluster, weights=weight, minlength=num_clusters).astype(np.float64)


def _ratio(above: Floats, below: Floats) -> Floats:
    """Divide, NaN where the denominator is 0."""
    out = np.full(above.shape, np.nan)
    np.divide(above, below, out=out, where=below > 0)
    return out
