"""DIN: a strong ranker that attends to the history with the candidate as the query.

Source: Deep Interest Network (Zhou et al., KDD 2018, arXiv 1706.06978): an activation unit reads
candidate, event and their product, its outputs weight the events, and a network reads the weighted
sum with all other features. The softmax over events (the paper sums unnormalised weights, here the
option ``plain``), the log age of an event, and the products of candidate and user that enter the
network as cross features are ours.

Shapes: ``R`` requests, ``U`` unique items, ``I`` candidates, ``T`` tasks, ``S`` longest history of
the batch, ``D`` width of keys and events, ``A`` hidden width of the activation unit, ``E`` encoded
width, ``H`` first hidden width of the network; ``B`` blocks of candidates, ``Q`` slots of one block
or of all, ``K = Q * A``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from prerank.batch import Features, History, Inputs, Pairs, Rows, Scores
from prerank.config import Config as BaseConfig
from prerank.jagged import Jagged
from prerank.models.towers import TwoSided
from prerank.nn import (
    MLP,
    FeatureEncoder,
    FusedTables,
    RowKind,
    SplitLinear,
    encode_events,
    finish,
    linear,
    used_features,
)
from prerank.schema import Feature, Schema

__all__ = ["DIN", "ItemState", "RequestState"]

_BLOCK = 16
"""Most candidates of one request that are attended for together; their matrix product is one."""


@dataclass(frozen=True, slots=True)
class RequestState(Rows):
    """User ``vector [R, D]``, its share of ``first [R, H]``, and ``events`` per stream."""

    vector: Tensor
    first: Tensor
    events: tuple[Jagged, ...]


@dataclass(frozen=True, slots=True)
class ItemState(Rows):
    """Item ``key [U, D]`` and its share of ``first [U, H]``."""

    key: Tensor
    first: Tensor


class TargetAttention(nn.Module):
    """Weights the events of one stream for each candidate and adds them up.

    ``weight = w . act(A key + B event + C (key * event))``, turned into a softmax over the events
    of the request or taken as it is.

    Parameters
    ----------
    width : int
        Width ``D`` of keys and events.
    hidden : int
        Width ``A`` of the activation unit.
    weights : {"softmax", "plain"}
        What the weights of a request's events are.
    """

    def __init__(self, width: int, hidden: int, weights: Literal["softmax", "plain"]) -> None:
        super().__init__()
        self.weights = weights
        self.of_key = nn.Linear(width, hidden)
        self.of_event = nn.Linear(width, hidden, bias=False)
        self.of_product = nn.Linear(width, hidden, bias=False)
        # A softmax is blind to a constant.
        self.out = nn.Linear(hidden, 1, bias=weights == "plain")

    def forward(self, events: Jagged, key_ID: Tensor, request_of: Tensor) -> Tensor:
        """Pool events ``[L, D]`` of ``R`` requests for keys ``[I, D]``; no event gives zeros."""
        lengths = events.lengths
        longest = int(lengths.max()) if lengths.numel() else 0
        if not longest or not len(key_ID):
            return torch.zeros_like(key_ID)
        # Key by key the products with events would be a tensor [I, S, D]. Here ``A key`` is added
        # to ``(B + C key) event``, so a candidate brings a matrix [A, D], shorter than its events,
        # and candidates of one request share the events they are multiplied with.
        slot_I, request_B, size = _blocks(request_of, events.num_rows)
        num_blocks, D = len(request_B), key_ID.shape[1]
        key_QD = key_ID.new_zeros(num_blocks * size, D).index_copy(0, slot_I, key_ID)
        events_BSD = events.to_padded(longest).index_select(0, request_B)
        matrix_QAD = torch.addcmul(
            self.of_event.weight, key_QD.unsqueeze(1), self.of_product.weight
        )
        of_key_BK = self.of_key(key_QD).view(num_blocks, 1, -1)
        matrix_BKD = matrix_QAD.view(num_blocks, -1, D)
        hidden_BSK = torch.baddbmm(of_key_BK, events_BSD, matrix_BKD.transpose(1, 2))
        hidden_BSK = torch.relu_(hidden_BSK).view(num_blocks, longest, size, -1)
        weight_BSQ = self.out(hidden_BSK).squeeze(-1)
        if self.weights == "softmax":
            places = torch.arange(longest, device=lengths.device)
            is_none_BS = places >= lengths.index_select(0, request_B).unsqueeze(1)
            # A finite floor: a row without events would turn -inf into NaN.
            floor = torch.finfo(weight_BSQ.dtype).min
            weight_BSQ = weight_BSQ.masked_fill(is_none_BS.unsqueeze(2), floor).softmax(dim=1)
        # Weights of padding need no zeros: its events are zeros.
        attended_BQD = torch.bmm(weight_BSQ.transpose(1, 2), events_BSD)
        return attended_BQD.view(-1, D).index_select(0, slot_I)


def _blocks(request_of: Tensor, num_requests: int) -> tuple[Tensor, Tensor, int]:
    """Put the candidates of each request into blocks of its own, of one number of slots.

    Returns
    -------
    slot_I : Tensor ``[I]`` int64
        Slot of each candidate, in any order of them.
    request_B : Tensor ``[B]`` int64
        Request of each block.
    size : int
        Slots of a block: no more than the largest request fills.
    """
    count_R = torch.bincount(request_of, minlength=num_requests)
    size = min(_BLOCK, int(count_R.max()))
    blocks_R = (count_R + (size - 1)) // size
    order_I = torch.argsort(request_of, stable=True)
    # From the place among all to the place among the slots of all: what each request is moved by.
    moved_R = (blocks_R.cumsum(0) - blocks_R) * size - (count_R.cumsum(0) - count_R)
    place_I = torch.empty_like(order_I)
    place_I[order_I] = torch.arange(len(order_I), device=order_I.device)
    requests = torch.arange(num_requests, device=request_of.device)
    slot_I = place_I + moved_R.index_select(0, request_of)
    return slot_I, requests.repeat_interleave(blocks_R), size


class DIN(TwoSided[RequestState, ItemState]):
    """``logits = MLP([user; context; item; attended history; crosses; candidate])``.

    The crosses are the products of the item's key with the attended history and with the user's
    vector. All that belongs to the request or the item alone is paid there: the events' own
    projections once per event, the first layer's user, context and item blocks once per row.

    Parameters
    ----------
    schema : Schema
        Features, streams and tasks.
    config : DIN.Config
        Sizes.

    Examples
    --------
    >>> from prerank.schema import Label
    >>> item = Feature(name="item", owner="item", kind="categorical")
    >>> label = Label(name="click")
    >>> schema = Schema(
    ...     features=(item,),
    ...     streams=("clicks",),
    ...     labels=(label,),
    ...     vocabularies={"item": 100},
    ... )
    >>> model = DIN.Config(width=8, head=MLP.Config(hidden=(16,))).build(schema)
    >>> model.first.widths
    {'user': 8, 'context': 0, 'item': 8, 'attended': 8, 'cross': 16, 'candidate': 0}
    """

    class Config(BaseConfig, frozen=True):
        """Sizes of a DIN.

        Parameters
        ----------
        tables : FusedTables.Config
            Embeddings, shared by history and item side.
        width : int
            Width ``D`` of user vector, item keys and events.
        attention : int
            Hidden width ``A`` of the activation unit.
        weights : {"softmax", "plain"}
            Whether the weights of a request's events add up to one.
        head : MLP.Config
            Layers over everything; the first one is split, so at least one.
        exclude : tuple of str
            Features not to read, as ``name`` or ``owner.name``.
        """

        tables: FusedTables.Config = FusedTables.Config()
        width: int = 16
        attention: int = 8
        weights: Literal["softmax", "plain"] = "softmax"
        head: MLP.Config = MLP.Config(hidden=(64, 32))
        exclude: tuple[str, ...] = ()

        def build(self, schema: Schema) -> DIN:
            """Make the model for a schema."""
            return DIN(schema, self)

    def __init__(self, schema: Schema, config: Config) -> None:
        super().__init__(schema)
        self.config = config
        features = used_features(schema, exclude=config.exclude)
        self.tables = config.tables.build_for(schema, features)
        self.user = self._encoder("user", features)
        self.item = self._encoder("item", features)
        self.context = self._encoder("context", features)
        self.candidate = self._encoder("candidate", features)
        D, H = config.width, config.head.hidden[0]
        self.events = nn.ModuleList(
            FeatureEncoder(schema, "history", self.tables, stream=stream, features=features)
            for stream in schema.streams
        )
        self.event_layers = nn.ModuleList(
            nn.Linear(self.item.width + cast(FeatureEncoder, encoder).width + 1, D)
            for encoder in self.events
        )
        self.attentions = nn.ModuleList(
            TargetAttention(D, config.attention, config.weights) for _ in schema.streams
        )
        self.user_layer = linear(self.user.width, D)
        self.key_layer = linear(self.item.width, D)
        num_streams = len(schema.streams)
        parts: dict[str, tuple[RowKind, int]] = {
            "user": ("request", D),
            "context": ("request", self.context.width),
            "item": ("item", D),
            "attended": ("candidate", D * num_streams),
            "cross": ("candidate", D * (num_streams + 1)),
            "candidate": ("candidate", self.candidate.width),
        }
        self.first = SplitLinear(parts, H)
        self.finish = finish(H, config.head)
        rest = MLP.Config(
            hidden=config.head.hidden[1:],
            activation=config.head.activation,
            layer_norm=config.head.layer_norm,
            dropout=config.head.dropout,
        )
        self.rest = rest.build(H, self.num_tasks)

    def _encoder(
        self, owner: Literal["user", "item", "context", "candidate"], features: tuple[Feature, ...]
    ) -> FeatureEncoder:
        return FeatureEncoder(self.schema, owner, self.tables, features=features)

    def encode_items(self, items: Features) -> Tensor:
        """Encode items, ``[U, E]``."""
        encoded: Tensor = self.item(items, self.tables)
        return encoded

    def _request(self, inputs: Inputs, items_UE: Tensor) -> RequestState:
        vector_RD = self.user_layer(self.user(inputs.user, self.tables))
        events = tuple(
            self._events(inputs.history[stream], items_UE, k)
            for k, stream in enumerate(self.schema.streams)
        )
        return RequestState(vector_RD, self.first.project("user", vector_RD), events)

    def _events(self, history: History, items_UE: Tensor, k: int) -> Jagged:
        encoder = cast(FeatureEncoder, self.events[k])
        events_LE = encode_events(history, items_UE, encoder, self.tables)
        return history.item_of.with_values(self.event_layers[k](events_LE))

    def _item(self, items_UE: Tensor) -> ItemState:
        key_UD = self.key_layer(items_UE)
        return ItemState(key_UD, self.first.project("item", key_UD))

    def score(self, request_state: RequestState, item_state: ItemState, pairs: Pairs) -> Scores:
        """Attend to the history of each candidate's request and run the network, ``I`` rows."""
        key_ID = item_state.key.index_select(0, pairs.item_of)
        user_ID = request_state.vector.index_select(0, pairs.request_of)
        attended = [
            attention(events, key_ID, pairs.request_of)
            for attention, events in zip(self.attentions, request_state.events, strict=True)
        ]
        crosses = [key_ID * x_ID for x_ID in (user_ID, *attended)]
        at_candidates = {
            "attended": torch.cat(attended, dim=1) if attended else key_ID[:, :0],
            "cross": torch.cat(crosses, dim=1),
            "candidate": self.candidate(pairs.candidate, self.tables),
        }
        context_RE = self.context(pairs.context, self.tables)
        projected = {
            "user": request_state.first,
            "context": self.first.project("context", context_RE),
            "item": item_state.first,
        }
        hidden_IH = self.first.combine(projected, pairs, at_candidates)
        return Scores(self.rest(self.finish(hidden_IH)))
