"""The three model sizes of the HAP study, about 0.18, 0.35 and 0.62 million dense parameters."""

from __future__ import annotations

import msgspec

from prerank.bench.hap.grid import Line
from prerank.models.base import Model
from prerank.models.hap_expressive import HAPExpressive
from prerank.models.hap_light import HAPLight
from prerank.nn import MLP, FusedTables
from prerank.schema import Schema

__all__ = ["build_model"]

_TABLES = FusedTables.Config(dim=16)
_MEDIUM = {
    "tower": MLP.Config(hidden=(448,)),
    "width": 96,
    "head": MLP.Config(hidden=(320, 160)),
}


def build_model(
    line: Line, schema: Schema, trunk: Model | None = None, *, exclude: tuple[str, ...] = ()
) -> Model:
    """Build the model of a line; weights come from torch's seed.

    Parameters
    ----------
    line : Line
        Says which size.
    schema : Schema
        Of the data set.
    trunk : HAPLight, optional
        Trained light model whose embeddings and states the heavy one reads.
    exclude : tuple of str
        Features that it does not read.
    """
    light = msgspec.structs.replace(HAPLight.Config.preset("study"), tables=_TABLES)
    light = msgspec.structs.replace(light, exclude=exclude)
    if line.size == "light":
        return light.build(schema)
    if line.size == "medium":
        return msgspec.structs.replace(light, **_MEDIUM).build(schema)
    heavy = msgspec.structs.replace(HAPExpressive.Config.preset("study"), tables=_TABLES)
    heavy = msgspec.structs.replace(heavy, attention=line.attention, exclude=exclude)
    if trunk is not None:
        assert isinstance(trunk, HAPLight)
        return HAPExpressive.over(trunk, heavy)
    return heavy.build(schema)
