"""Public data sets to request logs, one file per layout; ``get`` imports only what is asked for."""

from __future__ import annotations

from collections.abc import Callable

from prerank.adapters.report import ImportReport
from prerank.plugins import lookup

__all__ = ["TABLE", "Importer", "get"]

Importer = Callable[..., ImportReport]
"""``importer(src, out, *, progress=None, **options) -> ImportReport``."""

TABLE: dict[str, str] = {
    "kuairand": "prerank.adapters.kuairand:import_kuairand",
    "mind": "prerank.adapters.mind:import_mind",
    "movielens": "prerank.adapters.movielens:import_movielens",
    "obd": "prerank.adapters.obd:import_obd",
    "recflow": "prerank.adapters.recflow:import_recflow",
    "taobao": "prerank.adapters.taobao:import_taobao",
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
    group, unknown = "prerank.adapters", f"no adapter '{name}'"
    return lookup(name, TABLE, group=group, unknown=unknown)  # type: ignore[no-any-return]
