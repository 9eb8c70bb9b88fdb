"""Rules of the hypotheses file that more than one place of the page applies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prerank.bench.hap.words import SOURCES, is_known

__all__ = ["TIE", "differ_on_hard_ones", "gains_of", "hardest_gains_most", "ties_of", "wins_of"]

TIE = 0.005
"""Source AUCs this close are a tie."""


def gains_of(by: Mapping[str, Any]) -> dict[str, float]:
    """Return the differences of the source AUCs that are defined, hardest first.

    Examples
    --------
    >>> gains_of({"auc/random": {"value": 0.2}, "auc/exposed": {"value": 0.1}, "auc/macro": {}})
    {'exposed': 0.1, 'random': 0.2}
    """
    known = (source for source in SOURCES if is_known(by.get(f"auc/{source}", {}).get("value")))
    return {source: by[f"auc/{source}"]["value"] for source in known}


def hardest_gains_most(gains: Mapping[str, float]) -> bool:
    """Whether the hardest source has the largest gain, and one above 0.

    Examples
    --------
    >>> hardest_gains_most({"exposed": 0.1, "random": 0.2}), hardest_gains_most({"exposed": 0.1})
    (False, True)
    """
    first = next(iter(gains), None)
    return first is not None and gains[first] > 0 and max(gains.values()) == gains[first]


def ties_of(by: Mapping[str, Any]) -> list[str]:
    """Return the sources on which two lines tie."""
    return [source for source, gain in gains_of(by).items() if abs(gain) <= TIE]


def wins_of(by: Mapping[str, Any]) -> list[str]:
    """Return the sources on which the interval is above 0."""
    return [s for s in gains_of(by) if is_known(low := by[f"auc/{s}"]["low"]) and low > 0]


def differ_on_hard_ones(by: Mapping[str, Any]) -> bool:
    """Whether two sizes tie on the easy sources and the first one wins on the hard ones."""
    return {"prerank", "random"} <= {*ties_of(by)} and {"exposed", "rank"} <= {*wins_of(by)}
