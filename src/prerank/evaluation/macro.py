"""Mean and minimum of several measures, resampled together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from prerank.evaluation.estimators import AUCMeasure, MeanMeasure, Measure, worth
from prerank.evaluation.resampling import MeanStatistic, Statistic
from prerank.evaluation.statistics import Question

__all__ = ["JointMeasure"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class JointMeasure(Measure):
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

    def alone(self) -> Question:
        """Return the question after the mean or minimum."""
        statistics = self._over(_users(self.members))
        return Question(statistics, self._combine, most=worth(statistics))

    def against(self, other: Measure) -> Question:
        """Return the question after the paired difference to the same of another scorer."""
        assert isinstance(other, JointMeasure)
        users = _users([*self.members, *other.members])
        statistics = (*self._over(users), *other._over(users))
        num = len(self.members)

        def gap(values: Floats) -> Floats:
            return np.asarray(self._combine(values[:num]) - other._combine(values[num:]))

        return Question(statistics, gap, paired=True, most=worth(statistics))

    def _over(self, users: Ints) -> tuple[Statistic, ...]:
        return tuple(_statistic(m, users) for m in self.members)

    def _combine(self, values: Floats) -> Floats:
        return np.asarray(values.mean(axis=0) if self.how == "macro" else values.min(axis=0))


def _users(members: Sequence[Measure]) -> Ints:
    return np.unique(np.concatenate([_user_of(m) for m in members]))


def _user_of(m: Measure) -> Ints:
    if isinstance(m, MeanMeasure):
        return m.user[~np.isnan(m.values)]
    assert isinstance(m, AUCMeasure)
    return m.users


def _statistic(m: Measure, users: Ints) -> Statistic:
    if isinstance(m, AUCMeasure):
        return m.over(users)
    assert isinstance(m, MeanMeasure)
    known = ~np.isnan(m.values)
    weight = np.ones(int(known.sum())) if m.weights is None else m.weights[known]
    user = np.searchsorted(users, m.user[known])
    return MeanStatistic(m.values[known], weight, user, len(users))
