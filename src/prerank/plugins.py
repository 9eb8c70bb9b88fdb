"""Tables of names and what stands behind them, imported only when asked for.

A target is ``package.module:name``, or ``package.module`` for the module itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from prerank.errors import InputError, did_you_mean

__all__ = ["lazy_names", "load", "lookup"]


def load(target: str) -> Any:
    """Import a target.

    Examples
    --------
    >>> load("collections:OrderedDict").__name__, load("collections.abc").__name__
    ('OrderedDict', 'collections.abc')
    """
    module, _, name = target.partition(":")
    found = import_module(module)
    return getattr(found, name) if name else found


def lookup(name: str, table: Mapping[str, str], *, group: str, unknown: str) -> Any:
    """Return what a name stands for: in the table, or else among installed entry points.

    Parameters
    ----------
    name : str
        What the user wrote.
    table : mapping of str to str
        Built-in names and their targets; they win over entry points.
    group : str
        Entry point group in which other packages add names.
    unknown : str
        How the error begins when there is no such name.

    Raises
    ------
    InputError
        No such name (the nearest is given), or the package that adds it cannot be imported.

    Examples
    --------
    >>> table = {"ordered": "collections:OrderedDict"}
    >>> lookup("ordred", table, group="prerank.examples", unknown="no dict 'ordred'")
    Traceback (most recent call last):
        ...
    prerank.errors.InputError: no dict 'ordred'; did you mean 'ordered'?
    """
    if name in table:
        return load(table[name])
    from importlib.metadata import entry_points

    plugged = {point.name: point for point in entry_points(group=group)}
    if name not in plugged:
        raise InputError(f"{unknown}; {did_you_mean(name, [*table, *plugged])}")
    point = plugged[name]
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"'{name}' is added by another package as {point.value} (entry point group {group}), "
            f"which cannot be imported: {reason}"
        ) from error


def lazy_names(
    module: str, targets: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of a module whose names are imported at first use.

    Parameters
    ----------
    module : str
        Its ``__name__``.
    targets : mapping of str to str
        Name -> target.

    Examples
    --------
    >>> get, names = lazy_names(__name__, {"OrderedDict": "collections:OrderedDict"})
    >>> get("OrderedDict").__name__, "OrderedDict" in names()
    ('OrderedDict', True)
    >>> get("Ordered")
    Traceback (most recent call last):
        ...
    AttributeError: module 'prerank.plugins' has no attribute 'Ordered'
    """

    def get(name: str) -> Any:
        if name not in targets:
            raise AttributeError(f"module '{module}' has no attribute '{name}'")
        return load(targets[name])

    def names() -> list[str]:
        return sorted({*vars(sys.modules[module]), *targets})

    return get, names
