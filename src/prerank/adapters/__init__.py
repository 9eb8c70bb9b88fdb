"""Public data sets to request logs, one file per layout; ``get`` imports only what is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import entry_points

from prerank.adapters.report import ImportReport
from prerank.errors import InputError, did_you_mean

__all__ = ["TABLE", "Importer", "get"]

Importer = Callable[..., ImportReport]
"""``importer(src, out, *, progress=None, **options) -> ImportReport``."""

TABLE: dict[str, str] = {
    "mind": "prerank.adapters.mind:import_mind",
    "movielens": "prerank.adapters.movielens:import_movielens",
}
"""Name -> ``module:function``; packages add theirs in the entry point group prerank.adapters."""


def get(name: str) -> Importer:
    """Return the importer of a data set layout.

    Raises
    ------
    InputError
        No layout of that name.

    Examples
    --------
    >>> get("movielens").__name__
    'import_movielens'
    >>> get("movilens")
    Traceback (most recent call last):
        ...
    prerank.errors.InputError: no adapter 'movilens'; did you mean 'movielens'?
    """
    if name in TABLE:
        module, _, function = TABLE[name].partition(":")
        importer: Importer = getattr(importlib.import_module(module), function)
        return importer
    plugged = {entry.name: entry for entry in entry_points(group="prerank.adapters")}
    if name in plugged:
        found: Importer = plugged[name].load()
        return found
    raise InputError(f"no adapter '{name}'; {did_you_mean(name, [*TABLE, *plugged])}")
