"""Objectives, one file per training signal, found by name without importing the others.

``TABLE`` names the built-in ones; other packages add theirs as entry points of the group
``prerank.objectives``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prerank.plugins import lazy_names, lookup

if TYPE_CHECKING:
    from prerank.objectives.base import Objective as Objective
    from prerank.objectives.bce import BCE as BCE
    from prerank.objectives.ghcl import GHCL as GHCL

__all__ = ["TABLE", "get"]

TABLE: dict[str, str] = {
    "bce": "prerank.objectives.bce:BCE",
    "ghcl": "prerank.objectives.ghcl:GHCL",
}
"""Name in a recipe -> module and class, imported when asked for."""

_CLASSES = {target.split(":")[1]: target for target in TABLE.values()}
_CLASSES["Objective"] = "prerank.objectives.base:Objective"
__getattr__, __dir__ = lazy_names(__name__, _CLASSES)


def get(name: str) -> Any:
    """Return an objective class by its name.

    Raises
    ------
    InputError
        No such objective; the nearest name is given.

    Examples
    --------
    >>> get("bce").__name__
    'BCE'
    >>> get("bec")
    Traceback (most recent call last):
        ...
    prerank.errors.InputError: objective 'bec' is not known; did you mean 'bce'?
    """
    unknown = f"objective '{name}' is not known"
    return lookup(name, TABLE, group="prerank.objectives", unknown=unknown)
