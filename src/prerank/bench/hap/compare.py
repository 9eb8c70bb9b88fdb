"""Lines over seeds, and what differs between them: users resampled, Holm within a family.

Shapes: ``S`` seeds, ``R`` requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from prerank.evaluation.statistics import bootstrap_mean, paired_mean
from prerank.evaluation.studies.significance import holm

__all__ = ["OverSeeds", "compare", "over_seeds", "summary"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class OverSeeds:
    """One metric of one line.

    Parameters
    ----------
    requests : ndarray ``[R]``
        Mean over seeds of each request's value, NaN where the request does not define it.
    seeds : ndarray ``[S]``
        Mean over requests of each seed.
    """

    requests: Floats
    seeds: Floats


def over_seeds(values: Sequence[Mapping[str, Floats]]) -> dict[str, OverSeeds]:
    """Average the per-request values of several seeds.

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
    found = {}
    for key in values[0]:
        stacked = np.stack([v[key] for v in values])
        # Whether a request defines a metric depends on its labels alone, so on no seed.
        known = ~np.isnan(stacked).any(axis=0)
        means = stacked[:, known].mean(axis=1) if known.any() else np.full(len(values), np.nan)
        found[key] = OverSeeds(stacked.mean(axis=0), means)
    return found


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
        ``value``, ``low``, ``high``, ``p``, ``p_holm``, and ``seeds_up``: the share of seeds
        (paired in order) in which ``a`` is above ``b``.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    p_values = {}
    for a, b in pairs:
        if a not in lines or b not in lines:
            continue
        name = f"{a} - {b}"
        for key in keys:
            if key not in lines[a] or key not in lines[b]:
                continue
            one, other = lines[a][key], lines[b][key]
            d = paired_mean(one.requests, other.requests, None, user, num_resamples=_RESAMPLES)
            num = min(len(one.seeds), len(other.seeds))
            found.setdefault(name, {})[key] = {
                "value": d.value,
                "low": d.low,
                "high": d.high,
                "p": d.p_value,
                "seeds_up": float((one.seeds[:num] > other.seeds[:num]).mean()),
            }
            p_values[f"{name}|{key}"] = d.p_value
    for joint, p in holm(p_values).items():
        name, _, key = joint.partition("|")
        found[name][key]["p_holm"] = p
    return found
