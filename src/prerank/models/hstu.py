"""HSTU pre-ranker: a sequence model whose history is computed once, whatever is scored against it.

Source: "Actions Speak Louder than Words" (Zhai et al., ICML 2024, arXiv 2402.17152) for the stack
(:mod:`prerank.nn.hstu`); request-level training after ROO (arXiv 2508.05640). Inferred or ours: an
event is one token (item, its own features and age in one linear layer; the published sequences
alternate items and actions), user features are contextual tokens, and the network over the result,
which adds what belongs to the candidate in this request.

Shapes: ``R`` requests, ``U`` unique items, ``I`` candidates, ``L`` events of all streams, ``T``
tasks, ``C`` contextual tokens, ``D`` width, ``E`` encoded width, ``H`` first hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, cast

import msgspec
import torch
from torch import Tensor, nn

from prerank.batch import Features, History, Inputs, Pairs, Rows, Scores
from prerank.config import Config as BaseConfig
from prerank.errors import InputError, did_you_mean
from prerank.jagged import Jagged, lengths_to_offsets
from prerank.models.towers import TwoSided
from prerank.nn import (
    MLP,
    FeatureEncoder,
    FusedTables,
    HSTUStack,
    HSTUState,
    RowKind,
    SplitLinear,
    encode_events,
    finish,
    linear,
    used_features,
)
from prerank.schema import Feature, Schema

__all__ = ["HSTU", "ItemState", "Layers", "RequestState"]


@dataclass(frozen=True, slots=True)
class RequestState(Rows):
    """The stack's keys and values per layer, and the user's share of ``first [R, H]``."""

    history: HSTUState
    first: Tensor


@dataclass(frozen=True, slots=True)
class ItemState(Rows):
    """Candidate ``token [U, D]`` and the item's share of ``first [U, H]``."""

    token: Tensor
    first: Tensor


class Layers(HSTUStack.Config, frozen=True):
    """Sizes and options of the stack, with this model's defaults."""

    width: int = 32
    num_context: int = 1
    position_buckets: int = 32
    time_buckets: int = 32


class HSTU(TwoSided[RequestState, ItemState]):
    """``logits = MLP([user; context; item; stack(history, item); stack * item; candidate])``.

    The history of all chosen streams, merged by time, runs through the stack once per request; a
    candidate token is made of its item alone and crosses what is kept of it.

    Parameters
    ----------
    schema : Schema
        Features and streams.
    config : HSTU.Config
        Sizes and options.

    Raises
    ------
    InputError
        A stream that the schema does not have, or a size the stack refuses.

    Examples
    --------
    >>> from prerank.schema import Feature, Label
    >>> item = Feature(name="item", owner="item", kind="categorical")
    >>> schema = Schema(
    ...     features=(item,), streams=("clicks",), labels=(Label(name="click"),),
    ...     vocabularies={"item": 9},
    ... )
    >>> model = HSTU.Config(stack=Layers(width=8)).build(schema)
    >>> model.stack.config.num_context, len(model.stack.layers)
    (1, 2)
    """

    class Config(BaseConfig, frozen=True):
        """Sizes of an HSTU pre-ranker.

        Parameters
        ----------
        tables : FusedTables.Config
            Embeddings, shared by history and item side.
        stack : Layers
            The layers. With ``num_context`` tokens the user's features stand before the history; 0
            leaves them to the network alone.
        streams : tuple of str
            Streams to read, merged by time; empty: all of the schema.
        head : MLP.Config
            Layers over everything; the first one is split, so at least one.
        exclude : tuple of str
            Features not to read, as ``name`` or ``owner.name``.
        """

        tables: FusedTables.Config = FusedTables.Config()
        stack: Layers = Layers()
        streams: tuple[str, ...] = ()
        head: MLP.Config = MLP.Config(hidden=(64, 32))
        exclude: tuple[str, ...] = ()

        def build(self, schema: Schema) -> HSTU:
            """Make the model for a schema."""
            return HSTU(schema, self)

    def __init__(self, schema: Schema, config: Config) -> None:
        super().__init__(schema)
        self.config = config
        features = used_features(schema, exclude=config.exclude)
        self.streams = _streams(schema, config.streams)
        self.tables = config.tables.build_for(schema, features)
        self.user = self._encoder("user", features)
        self.item = self._encoder("item", features)
        self.context = self._encoder("context", features)
        self.candidate = self._encoder("candidate", features)
        self.stack = config.stack.build()
        D, H = config.stack.width, config.head.hidden[0]
        self.events = nn.ModuleList(
            FeatureEncoder(schema, "history", self.tables, stream=stream, features=features)
            for stream in self.streams
        )
        self.event_layers = nn.ModuleList(
            nn.Linear(self.item.width + cast(FeatureEncoder, encoder).width + 1, D)
            for encoder in self.events
        )
        self.context_layer = (
            linear(self.user.width, config.stack.num_context * D)
            if config.stack.num_context
            else None
        )
        self.token_layer = linear(self.item.width, D)
        parts: dict[str, tuple[RowKind, int]] = {
            "user": ("request", self.user.width),
            "context": ("request", self.context.width),
            "item": ("item", D),
            "read": ("candidate", D),
            "cross": ("candidate", D),
            "candidate": ("candidate", self.candidate.width),
        }
        self.norm = nn.LayerNorm(D)
        self.first = SplitLinear(parts, H)
        self.finish = finish(H, config.head)
        self.rest = msgspec.structs.replace(config.head, hidden=config.head.hidden[1:]).build(
            H, self.num_tasks
        )

    def _encoder(
        self, owner: Literal["user", "item", "context", "candidate"], features: tuple[Feature, ...]
    ) -> FeatureEncoder:
        return FeatureEncoder(self.schema, owner, self.tables, features=features)

    def encode_items(self, items: Features) -> Tensor:
        """Encode items, ``[U, E]``."""
        encoded: Tensor = self.item(items, self.tables)
        return encoded

    def forward(self, inputs: Inputs) -> Scores:
        """Score all candidates; items of the history alone get no candidate token."""
        items_UE = self.encode_items(inputs.items)
        request_state = self._request(inputs, items_UE)
        if inputs.num_candidates < inputs.items.num_rows:
            # A token per candidate is then fewer than one per item.
            items_UE = items_UE.index_select(0, inputs.item_of)
            own = torch.arange(inputs.num_candidates, device=inputs.item_of.device)
            inputs = replace(inputs, item_of=own)
        return self.score(request_state, self._item(items_UE), inputs.pairs)

    def _request(self, inputs: Inputs, items_UE: Tensor) -> RequestState:
        user_RE = self.user(inputs.user, self.tables)
        history, age_ms = self._merged(inputs.history, items_UE, user_RE.shape[0])
        tokens_RCD = None
        if self.context_layer is not None:
            num_context = self.config.stack.num_context
            tokens_RCD = self.context_layer(user_RE).unflatten(1, (num_context, -1))
        state = self.stack.encode(history, age_ms=age_ms, context_RCD=tokens_RCD)
        return RequestState(state, self.first.project("user", user_RE))

    def _merged(
        self, history: Mapping[str, History], items_UE: Tensor, num_requests: int
    ) -> tuple[Jagged, Tensor]:
        """Return the events ``[L, D]`` of all streams, oldest first, and their ages ``[L]``."""
        tokens, ages = [], []
        for k, stream in enumerate(self.streams):
            encoder, events = cast(FeatureEncoder, self.events[k]), history[stream]
            events_LE = encode_events(events, items_UE, encoder, self.tables)
            tokens.append(events.item_of.with_values(self.event_layers[k](events_LE)))
            ages.append(events.age_ms)
        if not tokens:
            none = items_UE.new_zeros(0, self.config.stack.width)
            offsets = lengths_to_offsets(
                torch.zeros(num_requests, dtype=torch.int64, device=items_UE.device)
            )
            return Jagged(none, offsets), torch.zeros(0, dtype=torch.int64, device=items_UE.device)
        if len(tokens) == 1:
            return tokens[0], ages[0].values
        age_L = torch.cat([age.values for age in ages])
        row_L = torch.cat([age.row_of for age in ages])
        # Stable: events of one moment keep the order of the streams.
        order = torch.argsort(age_L, descending=True, stable=True)
        order = order[torch.argsort(row_L[order], stable=True)]
        values = torch.cat([token.values for token in tokens]).index_select(0, order)
        lengths = torch.stack([token.lengths for token in tokens]).sum(0)
        return Jagged.from_lengths(values, lengths), age_L[order]

    def _item(self, items_UE: Tensor) -> ItemState:
        token_UD = self.token_layer(items_UE)
        return ItemState(token_UD, self.first.project("item", token_UD))

    def score(self, request_state: RequestState, item_state: ItemState, pairs: Pairs) -> Scores:
        """Cross candidates with the history of their requests and run the network, ``I`` rows."""
        token_ID = item_state.token.index_select(0, pairs.item_of)
        read_ID = self.stack.cross(request_state.history, token_ID, pairs.request_of)
        read_ID = self.norm(read_ID)
        at_candidates = {
            "read": read_ID,
            "cross": read_ID * token_ID,
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


def _streams(schema: Schema, names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in schema.streams:
            raise InputError(
                f"hstu: streams has '{name}', which the log has not; "
                f"{did_you_mean(name, schema.streams)}"
            )
    return names or schema.streams
