"""Diagnoses of several batches put together: means, spread, ratios of sources, conflict rates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

__all__ = ["Spread", "Summary", "sources_of", "summarise"]

# 97.5 % quantiles of Student's t with 1 and 2 degrees of freedom, which the series below misses.
_FEW = {1: 12.7062, 2: 4.3027}
_Z = 1.959964


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """A number over batches.

    Parameters
    ----------
    mean : float
        Arithmetic mean; of a ratio the geometric one.
    sd : float
        Standard deviation over batches, of a ratio that of its logarithm; NaN for one batch.
    low, high : float
        95 % interval of the mean over batches (Student's t, cosines cut at -1 and 1); NaN for one
        batch. Batches that share users are a little alike, so it is a little too narrow.
    batches : int
        Batches in which the number exists.
    """

    mean: float
    sd: float
    low: float
    high: float
    batches: int


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What :func:`summarise` returns.

    Parameters
    ----------
    num_batches : int
        Batches diagnosed.
    sources : tuple of str
        Those that the loss reaches, hardest first.
    values : dict of str to Spread
        By the keys of :func:`~prerank.training.diagnosis.diagnose`.
    ratios : dict of str to Spread
        ``norm/W/contrast/A:B``, ``norm/W/negative/A:B``, ``per_sample/A:B``: source A over B.
    conflicts : dict of str to float
        ``W/A:B``: share of batches in which the contrasts of A and B have a cosine below 0.
    """

    num_batches: int
    sources: tuple[str, ...]
    values: dict[str, Spread]
    ratios: dict[str, Spread]
    conflicts: dict[str, float]


def summarise(diagnoses: Sequence[Mapping[str, Any]]) -> Summary:
    """Put the diagnoses of batches, or of the steps of a training, together.

    Parameters
    ----------
    diagnoses : sequence of mapping of str to float
        What :func:`~prerank.training.diagnosis.diagnose` returned, or lines of ``metrics.jsonl``
        of that kind.

    Examples
    --------
    >>> one = {"negatives/rank": 4.0, "negatives/exposed": 2.0, "per_sample/rank": 1.0}
    >>> two = {**one, "per_sample/exposed": 8.0, "cos/dense/exposed:rank": -0.5}
    >>> found = summarise([{**one, "per_sample/exposed": 2.0}, two])
    >>> found.sources, found.values["per_sample/exposed"].mean
    (('exposed', 'rank'), 5.0)
    >>> round(found.ratios["per_sample/exposed:rank"].mean, 3), found.conflicts
    (4.0, {'dense/exposed:rank': 1.0})
    """
    columns: dict[str, list[float]] = {}
    for line in diagnoses:
        for key, value in line.items():
            # A line's step, kind and epoch are no measures; what diverged is null there.
            if "/" in key and value is not None:
                columns.setdefault(key, []).append(value)
    sources = sources_of(diagnoses)
    ratios: dict[str, Spread] = {}
    for measure in dict.fromkeys(key.rpartition("/")[0] for key in columns if _has_ratio(key)):
        for a, b in itertools.combinations(sources, 2):
            logs = [
                math.log(line[f"{measure}/{a}"] / line[f"{measure}/{b}"])
                for line in diagnoses
                if (line.get(f"{measure}/{a}") or 0.0) > 0
                and (line.get(f"{measure}/{b}") or 0.0) > 0
            ]
            if logs:
                ratios[f"{measure}/{a}:{b}"] = _geometric(_spread(logs))
    return Summary(
        num_batches=len(diagnoses),
        sources=sources,
        values={key: _spread(seen, key) for key, seen in columns.items()},
        ratios=ratios,
        conflicts={
            key.removeprefix("cos/"): float(np.mean(np.array(seen) < 0))
            for key, seen in columns.items()
            if key.startswith("cos/")
        },
    )


def sources_of(diagnoses: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the sources with a negative in some diagnosis, hardest first."""
    prefix = "negatives/"
    names = [key for line in diagnoses for key in line if key.startswith(prefix) and line[key]]
    declared = [key for line in diagnoses for key in line if key.startswith(prefix)]
    easiest_first = [key for key in dict.fromkeys(declared) if key in names]
    return tuple(key.removeprefix(prefix) for key in reversed(easiest_first))


def _has_ratio(key: str) -> bool:
    return key.startswith("per_sample/") or (key.startswith("norm/") and key.count("/") == 3)


def _spread(seen: Sequence[float], key: str = "") -> Spread:
    x = np.array(seen, dtype=np.float64)
    mean, n = float(x.mean()), len(x)
    if n < 2:
        return Spread(mean=mean, sd=math.nan, low=math.nan, high=math.nan, batches=n)
    sd = float(x.std(ddof=1))
    half = _quantile(n - 1) * sd / math.sqrt(n)
    low, high = mean - half, mean + half
    if key.startswith("cos/"):
        low, high = max(low, -1.0), min(high, 1.0)
    return Spread(mean=mean, sd=sd, low=low, high=high, batches=n)


def _geometric(logs: Spread) -> Spread:
    mean, low, high = (math.exp(x) for x in (logs.mean, logs.low, logs.high))
    return Spread(mean=mean, sd=logs.sd, low=low, high=high, batches=logs.batches)


def _quantile(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t to 1 % (Abramowitz and Stegun, 1964, 26.7.5)."""
    if degrees in _FEW:
        return _FEW[degrees]
    z = _Z
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3
