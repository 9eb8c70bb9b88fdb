"""Rules that turn the named parts of an objective into a gradient, one file per rule.

``TABLE`` names the built-in ones; other packages add theirs as entry points of the group
``prerank.combine``. Parts belong to the source that the text after their slash names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prerank.plugins import lazy_names, lookup

if TYPE_CHECKING:
    from prerank.training.combine.base import Combine as Combine
    from prerank.training.combine.harmonised import Harmonised as Harmonised
    from prerank.training.combine.inverse_norm import InverseNorm as InverseNorm
    from prerank.training.combine.pcgrad import PCGrad as PCGrad
    from prerank.training.combine.sum import Sum as Sum

__all__ = ["TABLE", "get"]

TABLE: dict[str, str] = {
    "sum": "prerank.training.combine.sum:Sum",
    "harmonised": "prerank.training.combine.harmonised:Harmonised",
    "inverse_norm": "prerank.training.combine.inverse_norm:InverseNorm",
    "pcgrad": "prerank.training.combine.pcgrad:PCGrad",
}
"""Name in a recipe -> module and class, imported when asked for."""

_CLASSES = {target.split(":")[1]: target for target in TABLE.values()}
_CLASSES["Combine"] = "prerank.training.combine.base:Combine"
__getattr__, __dir__ = lazy_names(__name__, _CLASSES)


def get(name: str) -> Any:
    """Return a combine rule's class by its name.

    Raises
    ------
    InputError
        No such rule; the nearest name is given.

    Examples
    --------
    >>> get("pcgrad").__name__
    'PCGrad'
    >>> get("pcgrd")
    Traceback (most recent call last):
        ...
    prerank.errors.InputError: combine rule 'pcgrd' is not known; did you mean 'pcgrad'?
    """
    unknown = f"combine rule '{name}' is not known"
    return lookup(name, TABLE, group="prerank.combine", unknown=unknown)
