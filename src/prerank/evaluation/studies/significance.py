"""Tests over seeds: paired t test, and Holm's correction for several claims."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

__all__ = ["holm", "paired_t", "student_two_sided"]


def student_two_sided(t: float, degrees: int) -> float:
    """Return P(|T| >= |t|) for Student's t with whole degrees of freedom, by its finite sum.

    Source: Abramowitz and Stegun, 1964, 26.7.3 and 26.7.4.

    Examples
    --------
    >>> round(student_two_sided(2.776445105198, 4), 9)
    0.05
    """
    if degrees < 1:
        raise ValueError(f"degrees: is {degrees}; expected at least 1")
    if math.isinf(t):
        return 0.0
    theta = math.atan2(abs(t), math.sqrt(degrees))
    cos, sin = math.cos(theta), math.sin(theta)
    if degrees % 2:
        term, total = cos, 0.0
        for k in range(1, degrees - 1, 2):
            total += term
            term *= cos * cos * (k + 1) / (k + 2)
        inside = 2.0 / math.pi * (theta + sin * total)
    else:
        term, total = 1.0, 0.0
        for k in range(0, degrees - 1, 2):
            total += term
            term *= cos * cos * (k + 1) / (k + 2)
        inside = sin * total
    return max(0.0, 1.0 - inside)


def paired_t(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Return the two-sided p value of the paired t test; NaN for fewer than two pairs.

    Parameters
    ----------
    a, b : array ``[N]``
        Values of both systems under the same seeds.

    Returns
    -------
    float
        1 where all differences are 0; 0 where all are the same other number.

    Raises
    ------
    ValueError
        Different lengths.

    Examples
    --------
    >>> round(paired_t([3.0, 4.0, 5.5], [1.0, 2.5, 3.0]), 4)
    0.0202
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"b: has shape {y.shape}; expected {x.shape} as a")
    if x.size < 2:
        return float("nan")
    difference = x - y
    error = float(difference.std(ddof=1)) / math.sqrt(x.size)
    mean = float(difference.mean())
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return student_two_sided(mean / error, x.size - 1)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p values adjusted for the number of claims; NaN stays NaN and is no claim.

    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.

    Examples
    --------
    >>> holm({"a": 0.25, "b": 0.125, "c": 0.5})
    {'a': 0.5, 'b': 0.375, 'c': 0.5}
    """
    adjusted = dict(p_values)
    known = sorted((name for name in p_values if not math.isnan(p_values[name])), key=p_values.get)  # type: ignore[arg-type]
    running = 0.0
    for place, name in enumerate(known):
        running = max(running, min(1.0, (len(known) - place) * p_values[name]))
        adjusted[name] = running
    return adjusted
