"""Lines over seeds, and what differs between them: users and seeds, Holm within a family.

Shapes: ``S`` seeds, ``R`` requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from prerank.evaluation.statistics import Question, answer, mean_of
from prerank.evaluation.studies.paired import paired_over_seeds
from prerank.evaluation.studies.significance import holm
from prerank.evaluation.units import Units

__all__ = [
    "Differences",
    "OverSeeds",
    "compare",
    "correct",
    "main_keys",
    "minus",
    "over_seeds",
    "raw_differences",
    "summary",
]

Differences = dict[str, dict[str, dict[str, float]]]
"""``"a - b"`` to metric to numbers."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class OverSeeds:
    """One metric of one line over seeds.

    Parameters
    ----------
    values : ndarray ``[S, R]``
        NaN where a request does not define the metric.
    numbers : tuple of int
        Which seeds the rows are: lines are paired by them, so a missing one shifts nothing.
    """

    values: Floats
    numbers: tuple[int, ...]

    @property
    def requests(self) -> Floats:
        """Mean over seeds of each request ``[R]``."""
        means: Floats = self.values.mean(axis=0)
        return means

    @property
    def seeds(self) -> Floats:
        """Mean over requests of each seed ``[S]``, NaN if no request defines the metric."""
        # Whether a request defines a metric depends on its labels alone, so on no seed.
        known = ~np.isnan(self.values).any(axis=0)
        if not known.any():
            return np.full(len(self.values), np.nan)
        means: Floats = self.values[:, known].mean(axis=1)
        return means

    def units(self, user: Ints) -> dict[int, Units]:
        """Return the values by seed number, of requests of the given users."""
        row = np.arange(len(user))
        values = zip(self.numbers, self.values, strict=True)
        return {seed: Units(user, row, value) for seed, value in values}


def over_seeds(
    values: Sequence[Mapping[str, Floats]], numbers: Sequence[int] | None = None
) -> dict[str, OverSeeds]:
    """Put the per-request values of several seeds together.

    Parameters
    ----------
    values : sequence of mapping of key to ndarray ``[R]``
        One per seed, of the same requests.
    numbers : sequence of int, optional
        The seeds; default: 0, 1, ...

    Examples
    --------
    >>> found = over_seeds([{"x": np.array([0.0, 1.0])}, {"x": np.array([1.0, 1.0])}])["x"]
    >>> found.requests.tolist(), found.seeds.tolist()
    ([0.5, 1.0], [0.5, 1.0])
    """
    seeds = tuple(range(len(values)) if numbers is None else numbers)
    return {key: OverSeeds(np.stack([v[key] for v in values]), seeds) for key in values[0]}


def minus(a: OverSeeds, b: OverSeeds) -> OverSeeds:
    """Return ``a - b`` by request over the seeds that both have, which must be some.

    Examples
    --------
    >>> a, b = OverSeeds(np.array([[3.0], [5.0]]), (0, 2)), OverSeeds(np.array([[1.0]]), (2,))
    >>> minus(a, b)
    OverSeeds(values=array([[4.]]), numbers=(2,))
    """
    both = tuple(number for number in a.numbers if number in b.numbers)
    assert both
    first, second = (of.values[[of.numbers.index(n) for n in both]] for of in (a, b))
    return replace(a, values=first - second, numbers=both)


def main_keys(quota: int, top_m: int | None, known: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Return the recalls that claims rest on, those that a data set has.

    Examples
    --------
    >>> main_keys(100, 30, ["recall@50/T1", "recall@100/T1", "recall@30/T3:10"])
    ['recall@100/T1', 'recall@30/T3:10']
    """
    keys = [f"recall@{quota}/T1", f"recall@{quota}/T3", f"recall@{top_m}/T3:10"]
    return [key for key in (*keys, f"recall@{quota}/U") if key in known]


def summary(line: Mapping[str, OverSeeds], user: Ints) -> dict[str, dict[str, Any]]:
    """Return mean, interval (users resampled), sd over seeds and their number, by metric."""
    # Asked together, resamples are drawn once: drawing is most of the work.
    questions = {
        key: Question((mean_of(values.requests, None, user),)) for key, values in line.items()
    }
    estimates = answer(questions, _RESAMPLES, 0)
    return {
        key: {
            "value": estimates[key].value,
            "low": estimates[key].low,
            "high": estimates[key].high,
            "sd_seeds": float(values.seeds.std(ddof=1)) if len(values.seeds) > 1 else None,
            "seeds": len(values.seeds),
        }
        for key, values in line.items()
    }


def raw_differences(
    lines: Mapping[str, Mapping[str, OverSeeds]],
    pairs: Sequence[tuple[str, str]],
    keys: Sequence[str],
    user: Ints,
) -> Differences:
    """Test differences one by one; :func:`correct` then makes a family of them.

    Parameters
    ----------
    lines : mapping of name to mapping of key to OverSeeds
        Lines by name.
    pairs : sequence of (str, str)
        ``a - b``; pairs of which a line is missing, or without a seed in common, are left out.
    keys : sequence of str
        Metrics.
    user : ndarray ``[R]``
        User of each request.

    Returns
    -------
    dict of ``"a - b"`` to dict of key to dict
        ``value``, ``low``, ``high`` (users resampled), ``sd_seeds``, ``p_users``, ``p`` (users
        and seeds, see :mod:`prerank.evaluation.studies.paired`).
    """
    found: Differences = {}
    for key in keys:
        having = [
            (a, b)
            for a, b in pairs
            if key in lines.get(a, {})
            and key in lines.get(b, {})
            and set(lines[a][key].numbers) & set(lines[b][key].numbers)
        ]
        names = {name for pair in having for name in pair}
        units = {name: lines[name][key].units(user) for name in names}
        claims = paired_over_seeds(units, having, num_resamples=_RESAMPLES).claims if having else {}
        for name, c in claims.items():
            found.setdefault(name, {})[key] = {
                "value": c.difference,
                "low": c.low,
                "high": c.high,
                "sd_seeds": c.sd_seeds,
                "p_users": c.p_users,
                "p": c.p,
            }
    return found


def correct(*families: Differences) -> None:
    """Add ``p_holm`` to all given differences, which are one family together.

    Parameters
    ----------
    *families : dict of ``"a - b"`` to dict of key to dict
        What :func:`raw_differences` returned; changed in place.

    Examples
    --------
    >>> one, two = {"a - b": {"x": {"p": 0.01}}}, {"c - d": {"x": {"p": 0.5}}}
    >>> correct(one, two)
    >>> one["a - b"]["x"]["p_holm"]
    0.02
    """
    rows = [row for found in families for by in found.values() for row in by.values()]
    adjusted = holm({str(at): row["p"] for at, row in enumerate(rows)})
    for at, row in enumerate(rows):
        row["p_holm"] = adjusted[str(at)]


def compare(
    lines: Mapping[str, Mapping[str, OverSeeds]],
    pairs: Sequence[tuple[str, str]],
    keys: Sequence[str],
    user: Ints,
) -> Differences:
    """Test differences that are a family by themselves: :func:`raw_differences`, corrected."""
    found = raw_differences(lines, pairs, keys, user)
    correct(found)
    return found
