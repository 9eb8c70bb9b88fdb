"""HAP's expressive model: attention over what the towers made; for the candidates worth it.

Source: HAP (arXiv 2603.03770), figure. Stated there: the trunk of the light model, one attention
layer directly after the product was joined, an MLP of N > M layers; trained on the hard sources.
A reader's digest adds: about 6.2M parameters. The paper is silent on what the attention reads, its
heads and all widths. Our readings: ``tokens``, self-attention among user, item and product and a
token per group of fields, within one candidate; ``history``, the candidate attends to the last
events. Ours too: the layer's residual and its output projection are the split first layer of the
MLP, which reads the trunk beside what was attended; and the option of a shared trunk.

Shapes: ``R`` requests, ``U`` unique items, ``I`` candidates, ``D`` tower width, ``H`` first hidden
width, ``E`` encoded width, ``A`` width of the attention, ``h`` heads, ``F`` tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, cast

import msgspec
import torch
from torch import Tensor, nn

from prerank.batch import Features, Inputs, Pairs
from prerank.jagged import Jagged
from prerank.models.base import Model
from prerank.models.hap_light import HAPLight, Preset
from prerank.models.towers import CrossedTowers, Join
from prerank.models.towers import ItemState as TowerItem
from prerank.models.towers import RequestState as TowerRequest
from prerank.nn import (
    MLP,
    Encoders,
    FeatureEncoder,
    HistoryAttention,
    RowKind,
    SplitLinear,
    TokenAttention,
    encode_events,
    last_events,
    used_features,
)
from prerank.schema import Schema

__all__ = ["HAPExpressive", "ItemState", "RequestState"]

_SIZES: dict[Preset, tuple[int, int, tuple[int, ...], int, int]] = {
    "paper": (2304, 384, (1280, 640, 320, 160), 96, 4),
    "study": (800, 96, (320, 160, 80), 32, 2),
}


@dataclass(frozen=True, slots=True)
class RequestState(TowerRequest):
    """User tower and its shares; what the attention needs of the request; the trunk's state.

    ``attend`` holds the request's tokens ``[R, h, F, 3 * A / h]``, or its share ``[R, A]`` of the
    query to each stream; ``events`` key and value ``[L, 2 * A]`` of each stream.
    """

    attend: tuple[Tensor, ...] = ()
    events: tuple[Jagged, ...] = ()
    light: TowerRequest | None = None


@dataclass(frozen=True, slots=True)
class ItemState(TowerItem):
    """Item tower and its shares; what the attention needs of the item; the trunk's state."""

    attend: tuple[Tensor, ...] = ()
    light: TowerItem | None = None


class HAPExpressive(CrossedTowers):
    """``logits = MLP([u; v; u * v; context; candidate; attended]) + linear skip but of attended``.

    Parameters
    ----------
    schema : Schema
        Features, streams and tasks.
    config : HAPExpressive.Config
        Sizes.

    Examples
    --------
    >>> from prerank.schema import Feature, Label
    >>> item = Feature(name="item", owner="item", kind="categorical")
    >>> schema = Schema(features=(item,), labels=(Label(name="click"),))
    >>> model = HAPExpressive.Config.preset("study").build(schema)
    >>> model.tokens.kinds
    {'user': 'request', 'item': 'item', 'item_fields': 'item', 'product': 'candidate'}
    """

    class Config(CrossedTowers.Config, frozen=True):
        """Sizes of an expressive model.

        Parameters
        ----------
        tables, history, exclude, tower, width, head
            Of :class:`~prerank.models.towers.CrossedTowers`; with a ``trunk``, all but ``head``
            are the trunk's.
        join, skip
            As for the light model.
        attention : {"tokens", "history", "none"}
            What the attention reads; ``none`` is for ablations.
        attention_width : int
            Width of its queries, keys and values, all heads together.
        num_heads : int
            Heads.
        num_events : int
            ``history`` reads the most recent ones of each stream.
        trunk : HAPLight.Config, optional
            Build over a light model: its embeddings and towers are this model's, and its states
            can be passed on; see :meth:`HAPExpressive.over`.
        frozen : bool
            Leave the trunk as it is. Off: its embeddings and towers learn too (its own head does
            not), so whatever light model it came from no longer fits it.
        """

        join: Join = "concat"
        skip: bool = True
        attention: Literal["tokens", "history", "none"] = "tokens"
        attention_width: int = 32
        num_heads: int = 2
        num_events: int = 50
        trunk: HAPLight.Config | None = None
        frozen: bool = True

        @classmethod
        def preset(cls, name: Preset, **changes: Any) -> Self:
            """Return a configuration of a known size; ``changes`` replace its fields."""
            tower, width, head, attention_width, num_heads = _SIZES[name]
            sizes = cls(
                tower=MLP.Config(hidden=(tower,)),
                width=width,
                head=MLP.Config(hidden=head),
                attention_width=attention_width,
                num_heads=num_heads,
            )
            return msgspec.structs.replace(sizes, **changes)

        def build(self, schema: Schema) -> HAPExpressive:
            """Make the model for a schema."""
            return HAPExpressive(schema, self)

    light: HAPLight | None
    tokens: TokenAttention | None

    def __init__(self, schema: Schema, config: Config) -> None:
        super().__init__(schema)
        self.config = config
        self.light = None if config.trunk is None else config.trunk.build(schema)
        if self.light is None:
            self._build_towers(config)
        else:
            self.light.requires_grad_(False)
            for part in (self.light.encode, self.light.user_tower, self.light.item_tower):
                part.requires_grad_(not config.frozen)
        width = (config.trunk or config).width
        attended = self._build_attention(width)
        more: dict[str, tuple[RowKind, int]] = {"attended": ("candidate", attended)}
        self._build_head(width, config.head, join=config.join, skip=config.skip, more=more)

    @classmethod
    def over(cls, light: HAPLight, config: Config) -> HAPExpressive:
        """Build over a trained light model: its weights are copied in, its transforms are shared.

        Parameters
        ----------
        light : HAPLight
            The trunk; it is left as it is.
        config : HAPExpressive.Config
            Sizes; its ``trunk`` is replaced by the light model's configuration.
        """
        model = cls(light.schema, msgspec.structs.replace(config, trunk=light.config))
        assert model.light is not None
        model.light.load_state_dict(light.state_dict())
        model.transforms = light.transforms
        if model.skip is not None and light.skip is not None:
            model.skip.load_state_dict(light.skip.state_dict())
        return model

    @property
    def encoders(self) -> Encoders:
        """Its own, or the trunk's."""
        return self.encode if self.light is None else self.light.encode

    def train(self, mode: bool = True) -> Self:
        """Set the mode; a frozen trunk stays in eval mode."""
        super().train(mode)
        if self.light is not None and self.config.frozen:
            self.light.eval()
        return self

    def _build_attention(self, width: int) -> int:
        """Make the attention over towers of a width; return the width of its result."""
        config, encode = self.config, self.encoders
        self.tokens = None
        if config.attention == "none":
            return 0
        if config.attention == "tokens":
            tokens: dict[str, tuple[RowKind, int]] = {
                "user": ("request", width),
                "user_fields": ("request", encode.user_width - encode.history_width),
                "history": ("request", encode.history_width),
                "context": ("request", encode.context_width),
                "item": ("item", width),
                "item_fields": ("item", encode.item_width),
                "product": ("candidate", width),
                "candidate": ("candidate", encode.candidate_width),
            }
            self.tokens = TokenAttention(tokens, config.attention_width, config.num_heads)
            return self.tokens.out_width
        features = used_features(self.schema, exclude=(config.trunk or config).exclude)
        self.events = nn.ModuleList(
            FeatureEncoder(self.schema, "history", encode.tables, stream=stream, features=features)
            for stream in self.schema.streams
        )
        self.histories = nn.ModuleList(
            HistoryAttention(
                encode.item_width + cast(FeatureEncoder, encoder).width + 1,
                config.attention_width,
                config.num_heads,
            )
            for encoder in self.events
        )
        parts: dict[str, tuple[RowKind, int]] = {
            "user": ("request", width),
            "item": ("item", width),
            "cross": ("candidate", width),
        }
        self.queries = nn.ModuleList(
            SplitLinear(parts, config.attention_width) for _ in self.schema.streams
        )
        return config.attention_width * len(self.schema.streams)

    def request_state_from(self, trunk_state: TowerRequest, inputs: Inputs) -> RequestState:
        """Return the request state, given the light trunk's."""
        items_UE = self.encode_items(inputs.items)
        user_RE = self.encoders.user(inputs, items_UE)
        return self._request_over(inputs, items_UE, user_RE, trunk_state)

    def item_state_from(self, trunk_state: TowerItem, items: Features) -> ItemState:
        """Return the item state, given the light trunk's."""
        return self._item_over(self.encode_items(items), trunk_state)

    def is_over(self, other: Model) -> bool:
        """Say whether another model is the trunk, or equal to it in sizes and weights."""
        if self.light is None or not isinstance(other, HAPLight):
            return False
        if other.config != self.light.config:
            return False
        mine, theirs = self.light.state_dict(), other.state_dict()
        return mine.keys() == theirs.keys() and all(
            mine[name].shape == theirs[name].shape and torch.equal(mine[name], theirs[name])
            for name in mine
        )

    def _request(self, inputs: Inputs, items_UE: Tensor) -> RequestState:
        user_RE = self.encoders.user(inputs, items_UE)
        light = None if self.light is None else self.light._user(user_RE)
        return self._request_over(inputs, items_UE, user_RE, light)

    def _request_over(
        self, inputs: Inputs, items_UE: Tensor, user_RE: Tensor, light: TowerRequest | None
    ) -> RequestState:
        vector_RD = self.user_tower(user_RE) if light is None else light.vector
        attend: tuple[Tensor, ...] = ()
        events: tuple[Jagged, ...] = ()
        if self.tokens is not None:
            own = user_RE.shape[1] - self.encoders.history_width
            tokens = {
                "user": vector_RD,
                "user_fields": user_RE[:, :own],
                "history": user_RE[:, own:],
            }
            attend = (self.tokens.project(tokens),)
        elif self.config.attention == "history":
            attend = self._query_shares("user", vector_RD)
            events = tuple(
                self._events(k, inputs, items_UE) for k in range(len(self.schema.streams))
            )
        return RequestState(vector_RD, *self._shares("user", vector_RD), attend, events, light)

    def _events(self, k: int, inputs: Inputs, items_UE: Tensor) -> Jagged:
        history = last_events(inputs.history[self.schema.streams[k]], self.config.num_events)
        encoder = cast(FeatureEncoder, self.events[k])
        events_LE = encode_events(history, items_UE, encoder, self.encoders.tables)
        return cast(HistoryAttention, self.histories[k]).project(
            history.item_of.with_values(events_LE)
        )

    def _item(self, items_UE: Tensor) -> ItemState:
        light = None if self.light is None else self.light._item(items_UE)
        return self._item_over(items_UE, light)

    def _item_over(self, items_UE: Tensor, light: TowerItem | None) -> ItemState:
        vector_UD = self.item_tower(items_UE) if light is None else light.vector
        attend: tuple[Tensor, ...] = ()
        if self.tokens is not None:
            attend = (self.tokens.project({"item": vector_UD, "item_fields": items_UE}),)
        elif self.config.attention == "history":
            attend = self._query_shares("item", vector_UD)
        return ItemState(vector_UD, *self._shares("item", vector_UD), attend, light)

    def _query_shares(self, name: str, vector_ND: Tensor) -> tuple[Tensor, ...]:
        return tuple(cast(SplitLinear, query).project(name, vector_ND) for query in self.queries)

    def _more(
        self,
        request_state: RequestState,
        item_state: ItemState,
        pairs: Pairs,
        context_RE: Tensor,
        at_candidates: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Attend within each candidate."""
        cross_ID = at_candidates["cross"]
        if self.tokens is not None:
            context = self.tokens.project({"context": context_RE})
            requests = torch.cat([request_state.attend[0], context], dim=2)
            tokens = {"product": cross_ID, "candidate": at_candidates["candidate"]}
            candidates = self.tokens.project(tokens)
            attended_IA = self.tokens(requests, item_state.attend[0], candidates, pairs)
            return {"attended": attended_IA}
        parts = [cross_ID[:, :0]]
        for k, events in enumerate(request_state.events):
            shares = {"user": request_state.attend[k], "item": item_state.attend[k]}
            query_IA = cast(SplitLinear, self.queries[k]).combine(
                shares, pairs, {"cross": cross_ID}
            )
            parts.append(self.histories[k](query_IA, events, pairs.request_of))
        return {"attended": torch.cat(parts, dim=1)}
