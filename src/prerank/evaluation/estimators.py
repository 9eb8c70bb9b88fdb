"""Measures: a metric with the units behind it, from which intervals and differences follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from prerank.evaluation.resampling import AUCStatistic, Statistic, cluster_codes
from prerank.evaluation.statistics import (
    Difference,
    Estimate,
    Question,
    answer,
    first_minus_second,
    mean_of,
)

__all__ = ["AUCMeasure", "MeanMeasure", "Measure", "PointMeasure", "ask", "compare", "worth"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_AUC_WORK = 100_000_000


class Measure(Protocol):
    """A metric of one scorer, from whose units intervals and differences follow."""

    def alone(self) -> Question:
        """Return the question after its value."""
        ...

    def against(self, other: Measure) -> Question:
        """Return the question after its paired difference to the same measure of another."""
        ...

    def estimate(self, num_resamples: int, seed: int) -> Estimate:
        """Return the value with its interval."""
        return answer({"": self.alone()}, num_resamples, seed)[""]

    def minus(self, other: Measure, num_resamples: int, seed: int) -> Difference:
        """Return the paired difference to the same measure of another scorer."""
        return compare({"": self}, {"": other}, num_resamples, seed)[""]


@dataclass(frozen=True, slots=True, eq=False)
class MeanMeasure(Measure):
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

    def alone(self) -> Question:
        """Return the question after the mean."""
        return Question((mean_of(self.values, self.weights, self.user),))

    def against(self, other: Measure) -> Question:
        """Return the question after the mean difference over units that both define."""
        assert isinstance(other, MeanMeasure)
        gap = mean_of(self.values - other.values, self.weights, self.user)
        return Question((gap,), paired=True)


@dataclass(frozen=True, slots=True, eq=False)
class AUCMeasure(Measure):
    """A pooled AUC; on large parts it takes fewer resamples than asked for (50 at least).

    Parameters
    ----------
    score, label, user : ndarray ``[N]``
        Of every candidate that counts, in any order; in that of the score nothing is sorted again.
    """

    score: Floats
    label: npt.NDArray[np.bool_]
    user: Ints
    _made: dict[bytes, AUCStatistic] = field(default_factory=dict, init=False, repr=False)

    @property
    def users(self) -> Ints:
        """Users with a candidate that counts, ascending."""
        codes, num = cluster_codes(self.user)
        distinct = np.empty(num, dtype=np.int64)
        distinct[codes] = self.user
        return distinct

    def over(self, users: Ints) -> AUCStatistic:
        """Return the statistic over given users ``[C]``, ascending; made once."""
        key = users.tobytes()
        if key not in self._made:
            code = np.zeros(int(users[-1]) + 1 if users.size else 0, dtype=np.int64)
            code[users] = np.arange(users.size)
            weight = np.ones(self.score.size)
            statistic = AUCStatistic(
                self.score, self.label.astype(np.float64), weight, code[self.user], users.size
            )
            self._made[key] = statistic
        return self._made[key]

    def alone(self) -> Question:
        """Return the question after the AUC."""
        return _worth(Question((self.over(self.users),)))

    def against(self, other: Measure) -> Question:
        """Return the question after the difference of two AUCs over the same candidates."""
        assert isinstance(other, AUCMeasure)
        both = (self.over(self.users), other.over(other.users))
        return _worth(Question(both, first_minus_second, paired=True))


@dataclass(frozen=True, slots=True)
class _Known:
    """A number of no cluster."""

    value: float
    num_clusters: int = 0

    def point(self) -> float:
        return self.value

    def on(self, counts: Floats) -> Floats:
        return np.full(len(counts), np.nan)


@dataclass(frozen=True, slots=True)
class PointMeasure(Measure):
    """A number without an interval (calibration error)."""

    value: float

    def alone(self) -> Question:
        """Return a question whose bounds are NaN."""
        return Question((_Known(self.value),))

    def against(self, other: Measure) -> Question:
        """Return the question after the plain difference."""
        assert isinstance(other, PointMeasure)
        return Question((_Known(self.value - other.value),), paired=True)


def worth(statistics: tuple[Statistic, ...]) -> int | None:
    """Return how many resamples statistics are worth: at least 50, None without limit."""
    work = max((s.work for s in statistics if isinstance(s, AUCStatistic)), default=0)
    return max(50, _AUC_WORK // work) if work else None


def _worth(question: Question) -> Question:
    return Question(
        question.statistics, question.combine, question.paired, worth(question.statistics)
    )


def compare(
    a: Mapping[str, Measure], b: Mapping[str, Measure], num_resamples: int, seed: int
) -> dict[str, Difference]:
    """Return the paired differences ``a - b`` of every key both have."""
    asked = {key: m.against(b[key]) for key, m in a.items() if key in b}
    found = answer(asked, num_resamples, seed)
    return {key: d for key, d in found.items() if isinstance(d, Difference)}


def ask(
    measures: Mapping[str, Mapping[str, Measure]],
    pairs: Sequence[tuple[str, str]],
    num_resamples: int,
    seed: int,
) -> tuple[dict[str, dict[str, Estimate]], dict[str, dict[str, Difference]]]:
    """Return the estimates of all scorers and the differences of pairs, on the same resamples.

    Parameters
    ----------
    measures : mapping of scorer to mapping of key to Measure
        What was measured.
    pairs : sequence of pairs of str
        Scorers to compare, of every key that both have.
    num_resamples, seed : int
        As in :func:`prerank.evaluation.statistics.answer`.

    Returns
    -------
    dict of scorer to dict of key to Estimate, dict of ``"a - b"`` to dict of key to Difference
        In the order given.
    """
    asked: dict[tuple[str, str], Question] = {}
    for name, found in measures.items():
        asked |= {(name, key): m.alone() for key, m in found.items()}
    for a, b in pairs:
        both = [key for key in measures[a] if key in measures[b]]
        asked |= {(f"{a} - {b}", key): measures[a][key].against(measures[b][key]) for key in both}
    estimates: dict[str, dict[str, Estimate]] = {name: {} for name in measures}
    differences: dict[str, dict[str, Difference]] = {f"{a} - {b}": {} for a, b in pairs}
    for (name, key), found_value in answer(asked, num_resamples, seed).items():
        if isinstance(found_value, Difference):
            differences[name][key] = found_value
        else:
            estimates[name][key] = found_value
    return estimates, differences
