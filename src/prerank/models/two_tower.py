"""Two tower: a user vector and an item vector that meet in a dot product only.

Source: DSSM (Huang et al., CIKM 2013), the "vector product" baseline of COLD (arXiv 2007.16122).
The late context, several tasks over one item vector, and the linear candidate term are ours.

Shapes: ``R`` requests, ``U`` unique items, ``I`` candidates, ``T`` tasks, ``D`` vector width,
``E`` encoded width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prerank.batch import Features, Inputs, Pairs, Rows, Scores
from prerank.models.towers import TwoSided
from prerank.nn import MLP, Encoders, linear
from prerank.schema import Schema

__all__ = ["ItemState", "RequestState", "TwoTower"]


@dataclass(frozen=True, slots=True)
class RequestState(Rows):
    """User vectors ``vector [R, T, D]``, one per task."""

    vector: Tensor


@dataclass(frozen=True, slots=True)
class ItemState(Rows):
    """One item vector for all tasks, ``vector [U, D]``, and a bias per task, ``bias [U, T]``."""

    vector: Tensor
    bias: Tensor


class TwoTower(TwoSided[RequestState, ItemState]):
    """Dot product of a user tower (features and pooled histories) and an item tower.

    ``logit_t = <u_t + C_t context, v> + item bias_t + context bias_t + w_t candidate``

    Each task has its own user vector over one shared item vector: the item index is stored once
    and each task is a query of its own. The context moves the query and adds a bias at ``R`` rows,
    after the request state, so a cached state serves every context. Candidate features enter
    linearly; they never touch the item vector.

    Parameters
    ----------
    schema : Schema
        Features, streams and tasks.
    config : TwoTower.Config
        Sizes.

    Examples
    --------
    >>> from prerank.schema import Feature, Label
    >>> item = Feature(name="item", owner="item", kind="categorical")
    >>> label = Label(name="click")
    >>> schema = Schema(features=(item,), labels=(label,), vocabularies={"item": 100})
    >>> model = TwoTower.Config(width=8).build(schema)
    >>> model.encode.tables
    FusedTables(1 vocabularies, (100, 16))
    """

    class Config(Encoders.Config, frozen=True):
        """Sizes of a two tower.

        Parameters
        ----------
        tables, history, exclude
            Of :class:`~prerank.nn.Encoders`.
        tower : MLP.Config
            Hidden layers of either tower.
        width : int
            Width ``D`` of the vectors that meet.
        cosine : bool
            Normalise both vectors and divide by ``temperature`` (learned from there, per task).
        temperature : float
            Initial temperature of the cosine.
        """

        tower: MLP.Config = MLP.Config(hidden=(64,))
        width: int = 32
        cosine: bool = False
        temperature: float = 0.1

        def build(self, schema: Schema) -> TwoTower:
            """Make the model for a schema."""
            return TwoTower(schema, self)

    def __init__(self, schema: Schema, config: Config) -> None:
        super().__init__(schema)
        self.config = config
        self.encode = Encoders(schema, config)
        T, D = self.num_tasks, config.width
        self.user_tower = config.tower.build(self.encode.user_width, T * D)
        self.item_tower = config.tower.build(self.encode.item_width, D)
        self.item_bias = linear(self.encode.item_width, T)
        if self.encode.context_width:
            self.context_query = nn.Linear(self.encode.context_width, T * D)
            self.context_bias = nn.Linear(self.encode.context_width, T)
        if self.encode.candidate_width:
            self.candidate_linear = nn.Linear(self.encode.candidate_width, T, bias=False)
        if config.cosine:
            self.log_scale_T = nn.Parameter(torch.full((T,), -math.log(config.temperature)))

    def encode_items(self, items: Features) -> Tensor:
        """Encode items, ``[U, E]``."""
        return self.encode.item(items)

    def _request(self, inputs: Inputs, items_UE: Tensor) -> RequestState:
        user_RE = self.encode.user(inputs, items_UE)
        return RequestState(self.user_tower(user_RE).view(-1, self.num_tasks, self.config.width))

    def _item(self, items_UE: Tensor) -> ItemState:
        vector_UD: Tensor = self.item_tower(items_UE)
        if self.config.cosine:
            vector_UD = F.normalize(vector_UD, dim=-1)
        return ItemState(vector_UD, self.item_bias(items_UE))

    def score(self, request_state: RequestState, item_state: ItemState, pairs: Pairs) -> Scores:
        """Take the dot products of candidates with their requests, ``I`` rows."""
        query_RTD = request_state.vector
        if self.encode.context_width:
            context_RE = self.encode.context(pairs.context)
            query_RTD = query_RTD + self.context_query(context_RE).view_as(query_RTD)
        if self.config.cosine:
            query_RTD = F.normalize(query_RTD, dim=-1) * self.log_scale_T.exp().unsqueeze(1)
        query_ITD = query_RTD.index_select(0, pairs.request_of)
        vector_ID = item_state.vector.index_select(0, pairs.item_of)
        logits_IT = (query_ITD * vector_ID.unsqueeze(1)).sum(-1)
        logits_IT = logits_IT + item_state.bias.index_select(0, pairs.item_of)
        if self.encode.context_width:
            logits_IT = logits_IT + self.context_bias(context_RE).index_select(0, pairs.request_of)
        if self.encode.candidate_width:
            candidate_IE = self.encode.candidate(pairs.candidate)
            logits_IT = logits_IT + self.candidate_linear(candidate_IE)
        return Scores(logits_IT)
