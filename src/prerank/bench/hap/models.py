"""The study's model sizes: about 0.18, 0.35, 0.62 million dense parameters, and the paper's."""

from __future__ import annotations

from prerank.bench.hap.grid import Line
from prerank.models.base import Model
from prerank.models.hap_expressive import HAPExpressive
from prerank.models.hap_light import HAPLight, Preset
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
    preset: Preset = "paper" if line.size.startswith("paper_") else "study"
    common = {"tables": _TABLES, "exclude": exclude}
    if line.size in ("light", "paper_light"):
        return HAPLight.Config.preset(preset, **common).build(schema)
    if line.size == "medium":
        return HAPLight.Config.preset(preset, **{**common, **_MEDIUM}).build(schema)
    heavy = HAPExpressive.Config.preset(preset, attention=line.attention, **common)
    if trunk is not None:
        assert isinstance(trunk, HAPLight)
        return HAPExpressive.over(trunk, heavy)
    return heavy.build(schema)
