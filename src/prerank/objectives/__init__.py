"""Objectives, one file per training signal, found by name without importing the others.

``TABLE`` names the built-in ones; other packages add theirs as entry points of the group
``prerank.objectives``.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from prerank.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from prerank.objectives.base import Objective as Objective
    from prerank.objectives.bce import BCE as BCE

__all__ = ["TABLE", "get"]

TABLE: dict[str, str] = {
    "bce": "prerank.objectives.bce:BCE",
}
"""Name in a recipe -> module and class, imported when asked for."""

_CLASSES = {target.split(":")[1]: target for target in TABLE.values()}
_CLASSES["Objective"] = "prerank.objectives.base:Objective"


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
    if name in TABLE:
        return _load(TABLE[name])
    plugins = {point.name: point for point in entry_points(group="prerank.objectives")}
    if name in plugins:
        return plugins[name].load()
    hint = did_you_mean(name, [*TABLE, *plugins])
    raise InputError(f"objective '{name}' is not known; {hint}")


def _load(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        return _load(_CLASSES[name])
    raise AttributeError(f"module 'prerank.objectives' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_CLASSES})
