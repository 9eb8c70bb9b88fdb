"""HAP's light model: it scores every candidate, and learns from negatives of every source.

Source: HAP (arXiv 2603.03770), figure. Stated there: a user tower and an item tower, the
element-wise product of their outputs, that product joined with both outputs, an MLP of M layers
of shrinking width, a sigmoid. A reader's digest adds: about 1.8M parameters. Inferred: M and every
width; whether "joined" means concatenated or added (the drawing allows both); where context and
candidate features enter (here beside the product); that the count is of dense parameters. Ours:
the split first layer, so that only the product and the candidate's features pay per candidate, and
the linear skip that starts as a dot product.

Shapes: ``R`` requests, ``U`` unique items, ``I`` candidates, ``D`` tower width.
"""

from __future__ import annotations

from typing import Any, Literal, Self

import msgspec

from prerank.models.towers import CrossedTowers, ItemState, Join, RequestState
from prerank.nn import MLP
from prerank.schema import Schema

__all__ = ["HAPLight", "ItemState", "Preset", "RequestState"]

Preset = Literal["paper", "study"]
"""``paper``: about the parameters that the authors' models have. ``study``: a tenth of that."""

_SIZES: dict[Preset, tuple[int, int, tuple[int, ...]]] = {
    "paper": (1536, 192, (800, 400, 200)),
    "study": (256, 64, (256, 128)),
}


class HAPLight(CrossedTowers):
    """``logits = MLP([u; v; u * v; context; candidate]) + linear skip of the same``.

    Parameters
    ----------
    schema : Schema
        Features, streams and tasks.
    config : HAPLight.Config
        Sizes.

    Examples
    --------
    >>> from prerank.schema import Feature, Label
    >>> item = Feature(name="item", owner="item", kind="categorical")
    >>> schema = Schema(features=(item,), labels=(Label(name="click"),))
    >>> HAPLight.Config.preset("study", skip=False).build(schema).first.widths
    {'user': 64, 'context': 0, 'item': 64, 'cross': 64, 'candidate': 0}
    """

    class Config(CrossedTowers.Config, frozen=True):
        """Sizes of a light model.

        Parameters
        ----------
        tables, history, exclude, tower, width, head
            Of :class:`~prerank.models.towers.CrossedTowers`; ``head`` has one width per hidden
            layer.
        join : {"concat", "sum"}
            How the product meets the towers' outputs.
        skip : bool
            The linear skip from everything to the logits, which starts as the dot product of the
            towers. Off is the figure to the letter, and takes far longer to train.
        """

        join: Join = "concat"
        skip: bool = True

        @classmethod
        def preset(cls, name: Preset, **changes: Any) -> Self:
            """Return a configuration of a known size; ``changes`` replace its fields."""
            tower, width, head = _SIZES[name]
            sizes = cls(
                tower=MLP.Config(hidden=(tower,)), width=width, head=MLP.Config(hidden=head)
            )
            return msgspec.structs.replace(sizes, **changes)

        def build(self, schema: Schema) -> HAPLight:
            """Make the model for a schema."""
            return HAPLight(schema, self)

    def __init__(self, schema: Schema, config: Config) -> None:
        super().__init__(schema)
        self.config = config
        self._build_towers(config)
        self._build_head(config.width, config.head, join=config.join, skip=config.skip)
