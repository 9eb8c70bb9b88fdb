"""Measures: a metric with the units behind it, from which intervals and differences follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from prerank.evaluation.statistics import (
    Difference,
    Estimate,
    bootstrap_auc,
    bootstrap_mean,
    paired_auc,
    paired_mean,
)

__all__ = ["AUCMeasure", "MeanMeasure", "Measure", "PointMeasure", "compare"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_NAN = float("nan")
_AUC_WORK = 100_000_000


@dataclass(frozen=True, slots=True)
class MeanMeasure:
    """A mean of units (requests, users, candidates), units of a user resampled together.

    Parameters
    ----------
    values : ndarray ``[N]``
        NaN where a unit does not define the metric; such units do not count.
    user : ndarray ``[N]`` int64
        User of each unit.
    weights : ndarray ``[N]``, optional
        Default 1.
    """

    values: Floats
    user: Ints
    weights: Floats | None = None

    def estimate(self, num_resamples: int, seed: int) -> Estimate:
        """Return the mean with its interval."""
        return bootstrap_mean(
            self.values, self.weights, self.user, num_resamples=num_resamples, seed=seed
        )

    def minus(self, other: Measure, num_resamples: int, seed: int) -> Difference:
        """Return the paired difference to the same measure of another scorer."""
        assert isinstance(other, MeanMeasure)
        return paired_mean(
            self.values,
            other.values,
            self.weights,
            self.user,
            num_resamples=num_resamples,
            seed=seed,
        )


@dataclass(frozen=True, slots=True)
class AUCMeasure:
    """A pooled AUC; on large parts it takes fewer resamples than asked for (50 at least)."""

    score: Floats
    label: npt.NDArray[np.bool_]
    user: Ints

    def num_resamples(self, wanted: int) -> int:
        """Return how many resamples are drawn when ``wanted`` are asked for."""
        return int(np.clip(_AUC_WORK // max(len(self.score), 1), min(50, wanted), wanted))

    def estimate(self, num_resamples: int, seed: int) -> Estimate:
        """Return the AUC with its interval."""
        num = self.num_resamples(num_resamples)
        return bootstrap_auc(self.score, self.label, self.user, num_resamples=num, seed=seed)

    def minus(self, other: Measure, num_resamples: int, seed: int) -> Difference:
        """Return the paired difference to the same measure of another scorer."""
        assert isinstance(other, AUCMeasure)
        num = self.num_resamples(num_resamples)
        return paired_auc(
            self.score, other.score, self.label, self.user, num_resamples=num, seed=seed
        )


@dataclass(frozen=True, slots=True)
class PointMeasure:
    """A number without an interval (calibration error)."""

    value: float

    def estimate(self, num_resamples: int, seed: int) -> Estimate:
        """Return the number; its bounds are NaN."""
        return Estimate(self.value, _NAN, _NAN, 0)

    def minus(self, other: Measure, num_resamples: int, seed: int) -> Difference:
        """Return the plain difference."""
        assert isinstance(other, PointMeasure)
        return Difference(self.value - other.value, _NAN, _NAN, 0, _NAN)


class Measure(Protocol):
    """A metric of one scorer, from whose units intervals and differences follow."""

    def estimate(self, num_resamples: int, seed: int) -> Estimate:
        """Return the value with its interval."""
        ...

    def minus(self, other: Measure, num_resamples: int, seed: int) -> Difference:
        """Return the paired difference to the same measure of another scorer."""
        ...


def compare(
    a: Mapping[str, Measure], b: Mapping[str, Measure], num_resamples: int, seed: int
) -> dict[str, Difference]:
    """Return the paired differences ``a - b`` of every key both have."""
    return {key: m.minus(b[key], num_resamples, seed) for key, m in a.items() if key in b}
