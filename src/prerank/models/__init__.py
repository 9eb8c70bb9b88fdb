"""Models, one file each, found by name without importing the others.

``TABLE`` names the built-in ones; other packages add theirs as entry points of the group
``prerank.models``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prerank.plugins import lazy_names, lookup

if TYPE_CHECKING:
    from prerank.models.base import Model as Model
    from prerank.models.base import OverTrunk as OverTrunk
    from prerank.models.din import DIN as DIN
    from prerank.models.hap_expressive import HAPExpressive as HAPExpressive
    from prerank.models.hap_light import HAPLight as HAPLight
    from prerank.models.hstu import HSTU as HSTU
    from prerank.models.mlp import MLPPreranker as MLPPreranker
    from prerank.models.two_tower import TwoTower as TwoTower

__all__ = ["TABLE", "get"]

TABLE: dict[str, str] = {
    "two_tower": "prerank.models.two_tower:TwoTower",
    "mlp": "prerank.models.mlp:MLPPreranker",
    "din": "prerank.models.din:DIN",
    "hstu": "prerank.models.hstu:HSTU",
    "hap_light": "prerank.models.hap_light:HAPLight",
    "hap_expressive": "prerank.models.hap_expressive:HAPExpressive",
}
"""Name in a recipe -> module and class, imported when asked for."""

_CLASSES = {target.split(":")[1]: target for target in TABLE.values()}
_CLASSES["Model"] = "prerank.models.base:Model"
_CLASSES["OverTrunk"] = "prerank.models.base:OverTrunk"
__getattr__, __dir__ = lazy_names(__name__, _CLASSES)


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
    unknown = f"model '{name}' is not known"
    return lookup(name, TABLE, group="prerank.models", unknown=unknown)  # type: ignore[no-any-return]
