"""Models, one file each, found by name without importing the others.

``TABLE`` names the built-in ones; other packages add theirs as entry points of the group
``prerank.models``.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from prerank.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from prerank.models.base import Model as Model
    from prerank.models.mlp import MLPPreranker as MLPPreranker
    from prerank.models.two_tower import TwoTower as TwoTower

__all__ = ["TABLE", "get"]

TABLE: dict[str, str] = {
    "two_tower": "prerank.models.two_tower:TwoTower",
    "mlp": "prerank.models.mlp:MLPPreranker",
}
"""Name in a recipe -> module and class, imported when asked for."""

_CLASSES = {target.split(":")[1]: target for target in TABLE.values()}
_CLASSES["Model"] = "prerank.models.base:Model"


def get(name: str) -> type[Model]:
    """Return a model class by its name.

    Raises
    ------
    InputError
        No such model; the nearest name is given.

    Examples
    --------
    >>> get("two_tower").__name__
    'TwoTower'
    >>> get("two_towers")
    Traceback (most recent call last):
        ...
    prerank.errors.InputError: model 'two_towers' is not known; did you mean 'two_tower'?
    """
    if name in TABLE:
        return _load(TABLE[name])  # type: ignore[no-any-return]
    plugins = {point.name: point for point in entry_points(group="prerank.models")}
    if name in plugins:
        return plugins[name].load()  # type: ignore[no-any-return]
    hint = did_you_mean(name, [*TABLE, *plugins])
    raise InputError(f"model '{name}' is not known; {hint}")


def _load(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        return _load(_CLASSES[name])
    raise AttributeError(f"module 'prerank.models' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_CLASSES})
