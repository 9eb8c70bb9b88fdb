"""Mean and minimum of several measures, resampled together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from prerank.evaluation.estimators import AUCMeasure, MeanMeasure, Measure
from prerank.evaluation.statistics import (
    Difference,
    Estimate,
    Statistic,
    auc_statistic,
    difference_of,
    interval,
    mean_statistic,
    resample,
)

__all__ = ["JointMeasure"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class JointMeasure:
    """Mean or minimum of measures: users of all members are drawn together.

    A minimum of noisy numbers lies below the number of the truly worst member; read its interval
    as that of this estimate.

    Parameters
    ----------
    members : tuple of Measure
        At least one; a resample counts where all are defined.
    how : {"macro", "min"}
        Unweighted mean, or minimum.
    """

    members: tuple[Measure, ...]
    how: Literal["macro", "min"]

    def estimate(self, num_resamples: int, seed: int) -> Estimate:
        """Return the value with its interval."""
        users = _users(self.members)
        point, draws = self._draw(users, num_resamples, seed)
        return Estimate(point, *interval(draws, len(users), _LEVEL), len(users))

    def minus(self, other: Measure, num_resamples: int, seed: int) -> Difference:
        """Return the paired difference to the same measure of another scorer."""
        assert isinstance(other, JointMeasure)
        users = _users([*self.members, *other.members])
        mine, my_draws = self._draw(users, num_resamples, seed)
        theirs, their_draws = other._draw(users, num_resamples, seed)
        return difference_of(mine - theirs, my_draws - their_draws, len(users), _LEVEL)

    def _draw(self, users: Ints, num_resamples: int, seed: int) -> tuple[float, Floats]:
        sizes = [num_resamples]
        sizes += [m.num_resamples(num_resamples) for m in self.members if isinstance(m, AUCMeasure)]
        statistics = [_statistic(m, users) for m in self.members]
        point, draws = resample(statistics, len(users), min(sizes), seed)
        combine = np.mean if self.how == "macro" else np.min
        return float(combine(point)), np.asarray(combine(draws, axis=0))


def _users(members: Sequence[Measure]) -> Ints:
    return np.unique(np.concatenate([_user_of(m) for m in members]))


def _user_of(m: Measure) -> Ints:
    if isinstance(m, MeanMeasure):
        return m.user[~np.isnan(m.values)]
    assert isinstance(m, AUCMeasure)
    return m.user


def _statistic(m: Measure, users: Ints) -> Statistic:
    user = np.searchsorted(users, _user_of(m))
    if isinstance(m, AUCMeasure):
        ones = np.ones(len(m.score))
        return auc_statistic(m.score, m.label.astype(np.float64), ones, user)
    assert isinstance(m, MeanMeasure)
    known = ~np.isnan(m.values)
    weight = np.ones(int(known.sum())) if m.weights is None else m.weights[known]
    return mean_statistic(m.values[known], weight, user, len(users))[0]
