"""MLP pre-ranker: two towers whose product, with all other features, feeds a small network.

Source: the light model of HAP (arXiv 2603.03770, figure: towers, element-wise product, MLP); the
split first layer follows IKBO (PyTorch blog) and COLD (arXiv 2007.16122). Widths, the linear skip
and the place of context and candidate features are inferred or ours.

Shapes: ``R`` requests, ``U`` unique items, ``I`` candidates, ``T`` tasks, ``D`` tower width, ``H``
first hidden width, ``E`` encoded width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prerank.batch import Features, Inputs, Pairs, Rows, Scores
from prerank.models.base import Model
from prerank.nn import MLP, Encoders, RowKind, SplitLinear, finish
from prerank.schema import Schema

__all__ = ["ItemState", "MLPPreranker", "RequestState"]


@dataclass(frozen=True, slots=True)
class RequestState(Rows):
    """User tower ``vector [R, D]``, its share of ``first [R, H]`` and of ``skip [R, T]``."""

    vector: Tensor
    first: Tensor
    skip: Tensor


@dataclass(frozen=True, slots=True)
class ItemState(Rows):
    """Item tower ``vector [U, D]``, its share of ``first [U, H]`` and of ``skip [U, T]``."""

    vector: Tensor
    first: Tensor
    skip: Tensor


class MLPPreranker(Model):
    """``logits = MLP([u; v; u * v; candidate; context]) + linear skip of the same``.

    The first layer is split: user and context pay at ``R`` rows, items at ``U``; only the product
    ``u * v`` and the candidate features pay per candidate. The skip starts as the plain dot product
    ``<u, v>`` in each task: without it a small network is slow to learn what two towers know from
    the start.

    Parameters
    ----------
    schema : Schema
        Features, streams and tasks.
    config : MLPPreranker.Config
        Sizes.

    Examples
    --------
    >>> from prerank.schema import Feature, Label
    >>> item = Feature(name="item", owner="item", kind="categorical")
    >>> label = Label(name="click")
    >>> schema = Schema(features=(item,), labels=(label,), vocabularies={"item": 100})
    >>> model = MLPPreranker.Config(width=8, head=MLP.Config(hidden=(16,))).build(schema)
    >>> model.first.widths
    {'user': 8, 'context': 0, 'item': 8, 'cross': 8, 'candidate': 0}
    """

    class Config(Encoders.Config, frozen=True):
        """Sizes of an MLP pre-ranker.

        Parameters
        ----------
        tables, history, exclude
            Of :class:`~prerank.nn.Encoders`.
        tower : MLP.Config
            Hidden layers of either tower.
        width : int
            Width ``D`` of the towers' outputs.
        head : MLP.Config
            Layers over the crossing; the first one is split, so at least one.
        """

        tower: MLP.Config = MLP.Config(hidden=(64,))
        width: int = 32
        head: MLP.Config = MLP.Config(hidden=(64, 32))

        def build(self, schema: Schema) -> MLPPreranker:
            """Make the model for a schema."""
            return MLPPreranker(schema, self)

    def __init__(self, schema: Schema, config: Config) -> None:
        super().__init__(schema)
        self.config = config
        self.encode = Encoders(schema, config)
        D, H = config.width, config.head.hidden[0]
        self.user_tower = config.tower.build(self.encode.user_width, D)
        self.item_tower = config.tower.build(self.encode.item_width, D)
        parts: dict[str, tuple[RowKind, int]] = {
            "user": ("request", D),
            "context": ("request", self.encode.context_width),
            "item": ("item", D),
            "cross": ("candidate", D),
            "candidate": ("candidate", self.encode.candidate_width),
        }
        # Two layers, not one of H + T outputs: products of an odd width are far slower.
        self.first = SplitLinear(parts, H)
        self.skip = SplitLinear(parts, self.num_tasks)
        self.finish = finish(H, config.head)
        rest = MLP.Config(
            hidden=config.head.hidden[1:],
            activation=config.head.activation,
            layer_norm=config.head.layer_norm,
            dropout=config.head.dropout,
        )
        self.rest = rest.build(H, self.num_tasks)
        with torch.no_grad():
            for name, weight in self.skip.weights.items():
                weight.fill_(1.0 if name == "cross" else 0.0)
            self.skip.bias.zero_()

    def request_state(self, inputs: Inputs) -> RequestState:
        """Run the user tower and its block of the first layer, ``R`` rows."""
        return self._request(inputs, self.encode.item(inputs.items))

    def item_state(self, items: Features) -> ItemState:
        """Run the item tower and its block of the first layer, ``U`` rows."""
        return self._item(self.encode.item(items))

    def forward(self, inputs: Inputs) -> Scores:
        """Score all candidates; items are looked up once for history and item side."""
        items_UE = self.encode.item(inputs.items)
        return self.score(self._request(inputs, items_UE), self._item(items_UE), inputs.pairs)

    def _request(self, inputs: Inputs, items_UE: Tensor) -> RequestState:
        user_RE = self.encode.user(inputs, items_UE)
        vector_RD = self.user_tower(user_RE)
        first_RH = self.first.project("user", vector_RD)
        return RequestState(vector_RD, first_RH, self.skip.project("user", vector_RD))

    def _item(self, items_UE: Tensor) -> ItemState:
        vector_UD = self.item_tower(items_UE)
        first_UH = self.first.project("item", vector_UD)
        return ItemState(vector_UD, first_UH, self.skip.project("item", vector_UD))

    def score(self, request_state: RequestState, item_state: ItemState, pairs: Pairs) -> Scores:
        """Cross the towers' outputs and run the head, ``I`` rows."""
        user_ID = request_state.vector.index_select(0, pairs.request_of)
        item_ID = item_state.vector.index_select(0, pairs.item_of)
        context_RE = self.encode.context(pairs.context)
        at_candidates = {
            "cross": user_ID * item_ID,
            "candidate": self.encode.candidate(pairs.candidate),
        }

        def crossed(layer: SplitLinear, user_RX: Tensor, item_UX: Tensor) -> Tensor:
            context_RX = layer.project("context", context_RE)
            projected = {"user": user_RX, "context": context_RX, "item": item_UX}
            return layer.combine(projected, pairs, at_candidates)

        hidden_IH = self.finish(crossed(self.first, request_state.first, item_state.first))
        skip_IT = crossed(self.skip, request_state.skip, item_state.skip)
        return Scores(skip_IT + self.rest(hidden_IH))
