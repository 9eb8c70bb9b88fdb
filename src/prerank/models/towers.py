"""What models of two towers share: items encoded once for both sides, and the crossing of towers.

:class:`TwoSided` composes a model from three hooks. :class:`CrossedTowers` adds the trunk that HAP
(arXiv 2603.03770, figure) draws for both of its models: a user tower, an item tower, the
element-wise product of their outputs joined with both, a network over it.

Shapes: ``R`` requests, ``U`` unique items, ``I`` candidates, ``T`` tasks, ``D`` tower width, ``H``
first hidden width, ``E`` encoded width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor

from prerank.batch import Features, Inputs, Pairs, Rows, Scores
from prerank.models.base import Model
from prerank.nn import MLP, Encoders, RowKind, SplitLinear, finish

__all__ = ["CrossedTowers", "ItemState", "Join", "RequestState", "TwoSided"]

Join = Literal["concat", "sum"]
"""How the product meets the towers' outputs."""

Request = TypeVar("Request", bound=Rows)
Item = TypeVar("Item", bound=Rows)


class TwoSided(Model, Generic[Request, Item]):
    """A model whose request side reads item encodings too: those of the history.

    ``forward`` encodes the items of a batch once for both sides; alone, each state encodes what
    it needs.
    """

    @abstractmethod
    def encode_items(self, items: Features) -> Tensor:
        """Encode items, ``[U, E]``: what both sides start from."""

    @abstractmethod
    def _request(self, inputs: Inputs, items_UE: Tensor) -> Request:
        """Make the request state from encoded items."""

    @abstractmethod
    def _item(self, items_UE: Tensor) -> Item:
        """Make the item state from encoded items."""

    def request_state(self, inputs: Inputs) -> Request:
        """Compute what is known of each request before any candidate, ``R`` rows."""
        return self._request(inputs, self.encode_items(inputs.items))

    def item_state(self, items: Features) -> Item:
        """Compute what is known of each item alone, ``U`` rows."""
        return self._item(self.encode_items(items))

    def forward(self, inputs: Inputs) -> Scores:
        """Score all candidates; items are looked up once for history and item side."""
        items_UE = self.encode_items(inputs.items)
        return self.score(self._request(inputs, items_UE), self._item(items_UE), inputs.pairs)


@dataclass(frozen=True, slots=True)
class RequestState(Rows):
    """User tower ``vector [R, D]``, its share of ``first [R, H]`` and of ``skip [R, T]``."""

    vector: Tensor
    first: Tensor
    skip: Tensor | None


@dataclass(frozen=True, slots=True)
class ItemState(Rows):
    """Item tower ``vector [U, D]``, its share of ``first [U, H]`` and of ``skip [U, T]``."""

    vector: Tensor
    first: Tensor
    skip: Tensor | None


class CrossedTowers(TwoSided[RequestState, ItemState]):
    """``logits = MLP([u; v; u * v; context; candidate]) + linear skip of the same``.

    The first layer is split: user and context pay at ``R`` rows, items at ``U``; only the product
    ``u * v`` and what else depends on the candidate pay per candidate. The skip is ours: it starts
    as the plain dot product ``<u, v>`` in each task; without it a small network is slow to learn
    what two towers know from the start. A subclass calls :meth:`_build_towers`, then
    :meth:`_build_head`.
    """

    class Config(Encoders.Config, frozen=True):
        """Sizes of two towers and the network over them.

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

    skip: SplitLinear | None

    def _build_towers(self, config: Config) -> None:
        self.encode = Encoders(self.schema, config)
        self.user_tower = config.tower.build(self.encode.user_width, config.width)
        self.item_tower = config.tower.build(self.encode.item_width, config.width)

    def _build_head(
        self,
        width: int,
        config: MLP.Config,
        *,
        join: Join = "concat",
        skip: bool = True,
        more: Mapping[str, tuple[RowKind, int]] | None = None,
    ) -> None:
        """Make the layers over towers of a width; ``more`` parts follow in the first layer."""
        parts: dict[str, tuple[RowKind, int]] = {
            "user": ("request", width),
            "context": ("request", self.encoders.context_width),
            "item": ("item", width),
            "cross": ("candidate", width),
            "candidate": ("candidate", self.encoders.candidate_width),
        }
        H = config.hidden[0]
        # A sum under one matrix is that matrix under each of its terms.
        tied = {"item": "user", "cross": "user"} if join == "sum" else {}
        # Two layers, not one of H + T outputs: products of an odd width are far slower.
        self.first = SplitLinear({**parts, **(more or {})}, H, tied=tied)
        self.skip = SplitLinear(parts, self.num_tasks) if skip else None
        self.finish = finish(H, config)
        rest = MLP.Config(
            hidden=config.hidden[1:],
            activation=config.activation,
            layer_norm=config.layer_norm,
            dropout=config.dropout,
        )
        self.rest = rest.build(H, self.num_tasks)
        if self.skip is not None:
            with torch.no_grad():
                for name, weight in self.skip.weights.items():
                    weight.fill_(1.0 if name == "cross" else 0.0)
                self.skip.bias.zero_()

    def forward(self, inputs: Inputs) -> Scores:
        """Score all candidates; the item tower runs on their items, not on history alone."""
        items_UE = self.encode_items(inputs.items)
        request_state = self._request(inputs, items_UE)
        if inputs.items.num_rows and inputs.item_of.device.type == "cpu":
            # Elsewhere the count of such items would have to be waited for.
            is_scored_U = torch.zeros(inputs.items.num_rows, dtype=torch.bool)
            is_scored_U[inputs.item_of] = True
            items_UE = items_UE.index_select(0, is_scored_U.nonzero().squeeze(1))
            row_U = is_scored_U.cumsum(0) - 1
            inputs = replace(inputs, item_of=row_U.index_select(0, inputs.item_of))
        return self.score(request_state, self._item(items_UE), inputs.pairs)

    @property
    def encoders(self) -> Encoders:
        """What turns inputs into numbers; a subclass may read another model's."""
        return self.encode

    def encode_items(self, items: Features) -> Tensor:
        """Encode items, ``[U, E]``."""
        return self.encoders.item(items)

    def _request(self, inputs: Inputs, items_UE: Tensor) -> RequestState:
        return self._user(self.encoders.user(inputs, items_UE))

    def _user(self, user_RE: Tensor) -> RequestState:
        vector_RD = self.user_tower(user_RE)
        return RequestState(vector_RD, *self._shares("user", vector_RD))

    def _item(self, items_UE: Tensor) -> ItemState:
        vector_UD = self.item_tower(items_UE)
        return ItemState(vector_UD, *self._shares("item", vector_UD))

    def _shares(self, name: str, vector_ND: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return what a tower's output adds to the first layer and to the skip."""
        skip_NT = None if self.skip is None else self.skip.project(name, vector_ND)
        return self.first.project(name, vector_ND), skip_NT

    def score(self, request_state: RequestState, item_state: ItemState, pairs: Pairs) -> Scores:
        """Cross the towers' outputs and run the head, ``I`` rows."""
        user_ID = request_state.vector.index_select(0, pairs.request_of)
        item_ID = item_state.vector.index_select(0, pairs.item_of)
        context_RE = self.encoders.context(pairs.context)
        at_candidates = {
            "cross": user_ID * item_ID,
            "candidate": self.encoders.candidate(pairs.candidate),
        }
        more = self._more(request_state, item_state, pairs, context_RE, at_candidates)

        def crossed(layer: SplitLinear, user_RX: Tensor, item_UX: Tensor, **more: Tensor) -> Tensor:
            context_RX = layer.project("context", context_RE)
            projected = {"user": user_RX, "context": context_RX, "item": item_UX}
            return layer.combine(projected, pairs, {**at_candidates, **more})

        first_IH = crossed(self.first, request_state.first, item_state.first, **more)
        logits_IT: Tensor = self.rest(self.finish(first_IH))
        if self.skip is None or request_state.skip is None or item_state.skip is None:
            return Scores(logits_IT)
        return Scores(crossed(self.skip, request_state.skip, item_state.skip) + logits_IT)

    def _more(
        self,
        request_state: Any,
        item_state: Any,
        pairs: Pairs,
        context_RE: Tensor,
        at_candidates: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Return the parts ``[I, width]`` of the first layer that a subclass adds; none here."""
        return {}
