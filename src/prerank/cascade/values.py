"""Rules of forwarding as plain values, for ``cascade.json``, recipes and bundles.

A share or a count is a number; a rule is its fields and its name under ``rule``:
``{"rule": "threshold", "score": 1.5}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from prerank.cascade.routers import Margin
from prerank.cascade.rules import Gap, Mass, Rule, Share, Threshold
from prerank.config import from_values
from prerank.errors import InputError, did_you_mean

__all__ = ["RULES", "forward_from_values", "forward_to_values"]

RULES: dict[str, type[Rule] | type[Margin]] = {
    kind.name: kind for kind in (Gap, Margin, Mass, Share, Threshold)
}
"""Every rule by its name."""

Forward = float | int | Rule | Margin | None
Values = float | int | dict[str, Any] | None


def forward_to_values(forward: Forward) -> Values:
    """Return plain values; fields at their defaults are left out.

    Examples
    --------
    >>> forward_to_values(Threshold(score=1.5)), forward_to_values(0.3)
    ({'rule': 'threshold', 'score': 1.5}, 0.3)
    """
    if not isinstance(forward, Rule | Margin):
        return forward
    defaults = {f.name: f.default for f in msgspec.structs.fields(forward)}
    fields = msgspec.structs.asdict(forward).items()
    kept = {name: value for name, value in fields if value != defaults[name]}
    return {"rule": forward.name, **msgspec.to_builtins(kept)}


def forward_from_values(values: Values, *, where: str) -> Forward:
    """Make a rule from plain values.

    Raises
    ------
    InputError
        An unknown rule or field; the nearest one is named.

    Examples
    --------
    >>> forward_from_values({"rule": "mass", "mass": 0.9}, where="tier").describe()
    '90 % of softmax mass'
    >>> forward_from_values({"rule": "treshold", "score": 1.0}, where="tier")
    Traceback (most recent call last):
        ...
    prerank.errors.InputError: tier: rule 'treshold' is not known; did you mean 'threshold'?
    """
    if not isinstance(values, Mapping):
        return values
    name = values.get("rule")
    if name not in RULES:
        known = did_you_mean(str(name), RULES)
        raise InputError(f"{where}: rule '{name}' is not known; {known}")
    rest = {key: value for key, value in values.items() if key != "rule"}
    return from_values(RULES[str(name)], rest, where=f"{where}: {name}")
