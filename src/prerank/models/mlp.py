"""MLP pre-ranker: two towers whose product, with all other features, feeds a small network.

Source: the light model of HAP (arXiv 2603.03770, figure: towers, element-wise product, MLP); the
split first layer follows IKBO (PyTorch blog) and COLD (arXiv 2007.16122). Widths, the linear skip
and the place of context and candidate features are inferred or ours. It is
:class:`~prerank.models.hap_light.HAPLight` without options, for whoever wants a plain baseline.

Shapes: ``R`` requests, ``U`` unique items, ``I`` candidates, ``D`` tower width.
"""

from __future__ import annotations

from prerank.models.towers import CrossedTowers, ItemState, RequestState
from prerank.schema import Schema

__all__ = ["ItemState", "MLPPreranker", "RequestState"]


class MLPPreranker(CrossedTowers):
    """``logits = MLP([u; v; u * v; candidate; context]) + linear skip of the same``.

    User and context pay at ``R`` rows, items at ``U``; only the product ``u * v`` and the candidate
    features pay per candidate; see :class:`~prerank.models.towers.CrossedTowers`.

    Parameters
    ----------
    schema : Schema
        Features, streams and tasks.
    config : MLPPreranker.Config
        Sizes.

    Examples
    --------
    >>> from prerank.nn import MLP
    >>> from prerank.schema import Feature, Label
    >>> item = Feature(name="item", owner="item", kind="categorical")
    >>> label = Label(name="click")
    >>> schema = Schema(features=(item,), labels=(label,), vocabularies={"item": 100})
    >>> model = MLPPreranker.Config(width=8, head=MLP.Config(hidden=(16,))).build(schema)
    >>> model.first.widths
    {'user': 8, 'context': 0, 'item': 8, 'cross': 8, 'candidate': 0}
    """

    class Config(CrossedTowers.Config, frozen=True):
        """Sizes of an MLP pre-ranker, those of :class:`~prerank.models.towers.CrossedTowers`."""

        def build(self, schema: Schema) -> MLPPreranker:
            """Make the model for a schema."""
            return MLPPreranker(schema, self)

    def __init__(self, schema: Schema, config: Config) -> None:
        super().__init__(schema)
        self.config = config
        self._build_towers(config)
        self._build_head(config.width, config.head)
