"""Lines over seeds, and what differs between them: users and seeds, Holm within a family.

Shapes: ``S`` seeds, ``R`` requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from prerank.evaluation.statistics import bootstrap_mean
from prerank.evaluation.studies.paired import paired_over_seeds
from prerank.evaluation.studies.significance import holm
from prerank.evaluation.units import Units

__all__ = ["OverSeeds", "compare", "over_seeds", "summary"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class OverSeeds:
    """One metric of one line: ``values [S, R]``, NaN where a request does not define it."""

    values: Floats

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
        return {seed: Units(user, row, value) for seed, value in enumerate(self.values)}


def over_seeds(values: Sequence[Mapping[str, Floats]]) -> dict[str, OverSeeds]:
    """Put the per-request values of several seeds together.

    Parameters
    ----------
    values : sequence of mapping of key to ndarray ``[R]``
        One per seed, of the same requests.

    Examples
    --------
    >>> found = over_seeds([{"x": np.array([0.0, 1.0])}, {"x": np.array([1.0, 1.0])}])["x"]
    >>> found.requests.tolist(), found.seeds.tolist()
    ([0.5, 1.0], [0.5, 1.0])
    """
    return {key: OverSeeds(np.stack([v[key] for v in values])) for key in values[0]}


def summary(line: Mapping[str, OverSeeds], user: Ints) -> dict[str, dict[str, Any]]:
    """Return mean, interval (users resampled), sd over seeds and their number, by metric."""
    found = {}
    for key, values in line.items():
        estimate = bootstrap_mean(values.requests, None, user, num_resamples=_RESAMPLES)
        found[key] = {
            "value": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "sd_seeds": float(values.seeds.std(ddof=1)) if len(values.seeds) > 1 else None,
            "seeds": len(values.seeds),
        }
    return found


def compare(
    lines: Mapping[str, Mapping[str, OverSeeds]],
    pairs: Sequence[tuple[str, str]],
    keys: Sequence[str],
    user: Ints,
) -> dict[str, dict[str, dict[str, float]]]:
    """Test differences; Holm over all pairs and keys given together, a family.

    Parameters
    ----------
    lines : mapping of name to mapping of key to OverSeeds
        Lines by name.
    pairs : sequence of (str, str)
        ``a - b``; pairs of which a line is missing are left out.
    keys : sequence of str
        Metrics.
    user : ndarray ``[R]``
        User of each request.

    Returns
    -------
    dict of ``"a - b"`` to dict of key to dict
        ``value``, ``low``, ``high`` (users resampled), ``sd_seeds``, ``p_users``, ``p`` (users
        and seeds, see :mod:`prerank.evaluation.studies.paired`), ``p_holm``.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    known = [(a, b) for a, b in pairs if a in lines and b in lines]
    for key in keys:
        having = [(a, b) for a, b in known if key in lines[a] and key in lines[b]]
        names = {name for pair in having for name in pair}
        # A pair is compared over the seeds that both lines have: the first ones.
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
    joint = {(name, key): d["p"] for name, by in found.items() for key, d in by.items()}
    adjusted = holm({f"{name}|{key}": p for (name, key), p in joint.items()})
    for name, key in joint:
        found[name][key]["p_holm"] = adjusted[f"{name}|{key}"]
    return found
