"""Samplers, one file per way to choose training candidates, found by name.

``TABLE`` names the built-in ones; other packages add theirs as entry points of the group
``prerank.sampling``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prerank.plugins import lazy_names, lookup

if TYPE_CHECKING:
    from prerank.sampling.base import Sampler as Sampler
    from prerank.sampling.base import sampled as sampled
    from prerank.sampling.counts import SamplingCounts as SamplingCounts
    from prerank.sampling.counts import tally as tally
    from prerank.sampling.hap import HAPSampler as HAPSampler

__all__ = ["TABLE", "get"]

TABLE: dict[str, str] = {
    "hap": "prerank.sampling.hap:HAPSampler",
}
"""Name in a recipe -> module and class, imported when asked for."""

_CLASSES = {target.split(":")[1]: target for target in TABLE.values()}
_CLASSES["Sampler"] = "prerank.sampling.base:Sampler"
_CLASSES["SamplingCounts"] = "prerank.sampling.counts:SamplingCounts"
_CLASSES["sampled"] = "prerank.sampling.base:sampled"
_CLASSES["tally"] = "prerank.sampling.counts:tally"
__getattr__, __dir__ = lazy_names(__name__, _CLASSES)


def get(name: str) -> Any:
    """Return a sampler class by its name.

    Raises
    ------
    InputError
        No such sampler; the nearest name is given.

    Examples
    --------
    >>> get("hap").__name__
    'HAPSampler'
    >>> get("happ")
    Traceback (most recent call last):
        ...
    prerank.errors.InputError: sampler 'happ' is not known; did you mean 'hap'?
    """
    unknown = f"sampler '{name}' is not known"
    return lookup(name, TABLE, group="prerank.sampling", unknown=unknown)
