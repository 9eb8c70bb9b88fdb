"""Pooling of the past events of a request into one vector.

Shapes: ``R`` requests, ``U`` unique items, ``L`` events of all requests, ``E`` item width, ``W``
event width (item and event features side by side).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from prerank.batch import History
from prerank.config import Config as BaseConfig
from prerank.jagged import Jagged, lengths_to_offsets, ranges, segment_softmax, segment_sum
from prerank.nn.features import FeatureEncoder
from prerank.nn.tables import FusedTables
from prerank.schema import Feature, Schema

__all__ = ["Histories", "HistoryPooling", "encode_events", "last_events"]

_MS_PER_DAY = 86_400_000.0


def encode_events(
    history: History, items_UE: Tensor, encoder: FeatureEncoder, tables: FusedTables
) -> Tensor:
    """Return each event's item, own features and log age side by side, ``[L, E + W + 1]``.

    Parameters
    ----------
    history : History
        One stream.
    items_UE : Tensor ``[U, E]``
        Encodings of ``inputs.items``.
    encoder : FeatureEncoder
        Of the features of the stream's events, ``W`` wide.
    tables : FusedTables
        What the encoder was made for.
    """
    items_LE = items_UE.index_select(0, history.item_of.values)
    own_LW = encoder.events(history, tables)
    age_L1 = torch.log1p(history.age_ms.values.to(items_LE.dtype) / _MS_PER_DAY).unsqueeze(1)
    return torch.cat([items_LE, own_LW, age_L1], dim=1)


def last_events(history: History, limit: int) -> History:
    """Return the most recent ``limit`` events of each request.

    Examples
    --------
    >>> from prerank.jagged import Jagged
    >>> item_of = Jagged.from_lengths(torch.tensor([5, 6, 7]), torch.tensor([2, 1]))
    >>> none = Jagged(torch.zeros(3, 0), item_of.offsets)
    >>> last_events(History(item_of, item_of, none, none), 1).item_of.values
    tensor([6, 7])
    """
    lengths = history.item_of.lengths
    kept = lengths.clamp(max=limit)
    if bool((kept == lengths).all()):
        return history
    index = ranges(history.item_of.offsets[1:] - kept, kept)
    offsets = lengths_to_offsets(kept)

    def cut(jagged: Jagged) -> Jagged:
        return Jagged(jagged.values.index_select(0, index), offsets)

    return History(
        cut(history.item_of), cut(history.age_ms), cut(history.categorical), cut(history.dense)
    )


class HistoryPooling(nn.Module):
    """Weighted mean of the events of one stream, per request.

    An event is its item's encoding beside its own features. The weights of a request sum to 1:
    ``mean`` gives equal ones; ``recency`` halves them every ``half_life_days`` (learned from
    there); ``attention`` is the softmax of a learned query's scaled products. They depend on the
    request's own events only, never on the longest history of the batch or on the context.

    Parameters
    ----------
    schema, stream
        Which events.
    item_width : int
        Width ``E`` of the item encodings that calls will pass.
    tables : FusedTables
        Tables of the event features.
    config : HistoryPooling.Config
        The pooling.
    features : sequence of Feature, optional
        Features to read; default all.

    Examples
    --------
    >>> from prerank.schema import Label
    >>> schema = Schema(streams=("clicks",), labels=(Label(name="click"),))
    >>> tables = FusedTables.Config().build({})
    >>> pooling = HistoryPooling(schema, "clicks", 2, tables, HistoryPooling.Config())
    >>> offsets = torch.tensor([0, 2, 2])  # two events of the first request, none of the second
    >>> none = Jagged(torch.zeros(2, 0), offsets)
    >>> ages = Jagged(torch.tensor([9, 5]), offsets)
    >>> clicks = History(Jagged(torch.tensor([1, 0]), offsets), ages, none.to(torch.int64), none)
    >>> pooling(clicks, torch.tensor([[1.0, 2.0], [3.0, 4.0]]), tables).tolist()
    [[2.0, 3.0], [0.0, 0.0]]
    """

    class Config(BaseConfig, frozen=True):
        """How events are weighted and what an empty history gives."""

        kind: Literal["mean", "recency", "attention"] = "mean"
        half_life_days: float = 7.0
        empty: Literal["learned", "zero"] = "learned"

    def __init__(
        self,
        schema: Schema,
        stream: str,
        item_width: int,
        tables: FusedTables,
        config: Config,
        *,
        features: Sequence[Feature] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.event = FeatureEncoder(schema, "history", tables, stream=stream, features=features)
        self.width = item_width + self.event.width
        if config.kind == "recency":
            self.log_half_life = nn.Parameter(torch.tensor(math.log(config.half_life_days)))
        if config.kind == "attention":
            self.query = nn.Parameter(torch.randn(self.width) / math.sqrt(self.width))
        if config.empty == "learned":
            self.empty = nn.Parameter(torch.zeros(self.width))

    def forward(self, history: History, items_UE: Tensor, tables: FusedTables) -> Tensor:
        """Pool the events of each request.

        Parameters
        ----------
        history : History, ``R`` rows
            The stream.
        items_UE : Tensor ``[U, E]``
            Encodings of ``inputs.items``.
        tables : FusedTables
            Tables of the event features.

        Returns
        -------
        Tensor ``[R, width]``
        """
        num_requests = history.item_of.num_rows
        events_LW = items_UE.index_select(0, history.item_of.values)
        if self.event.width:
            events_LW = torch.cat([events_LW, self.event.events(history, tables)], dim=1)
        row_L = history.item_of.row_of
        weights_L = self._weights(history, events_LW, row_L)
        pooled_RW = segment_sum(events_LW * weights_L.unsqueeze(1), row_L, num_requests)
        if self.config.empty == "learned":
            is_empty_R = (history.item_of.lengths == 0).to(pooled_RW.dtype)
            pooled_RW = pooled_RW + is_empty_R.unsqueeze(1) * self.empty
        return pooled_RW

    def _weights(self, history: History, events_LW: Tensor, row_L: Tensor) -> Tensor:
        num_requests = history.item_of.num_rows
        match self.config.kind:
            case "mean":
                count_R = history.item_of.lengths.clamp(min=1).to(events_LW.dtype)
                return count_R.reciprocal().index_select(0, row_L)
            case "recency":
                age_days_L = history.age_ms.values.to(events_LW.dtype) / _MS_PER_DAY
                logits_L = -math.log(2.0) * age_days_L * torch.exp(-self.log_half_life)
            case "attention":
                logits_L = events_LW @ self.query / math.sqrt(self.width)
        return segment_softmax(logits_L, row_L, num_requests)


class Histories(nn.Module):
    """The pooled histories of all streams side by side, ``[R, width]``; no stream gives width 0.

    Parameters are those of :class:`HistoryPooling`, for every stream of the schema.
    """

    def __init__(
        self,
        schema: Schema,
        item_width: int,
        tables: FusedTables,
        config: HistoryPooling.Config,
        *,
        features: Sequence[Feature] | None = None,
    ) -> None:
        super().__init__()
        self.streams = schema.streams
        # A list, not a dict by name: a stream may be called "items" or "keys".
        self.poolings = nn.ModuleList(
            HistoryPooling(schema, stream, item_width, tables, config, features=features)
            for stream in schema.streams
        )
        self.width = sum(cast(HistoryPooling, pooling).width for pooling in self.poolings)

    def forward(
        self, history: Mapping[str, History], items_UE: Tensor, tables: FusedTables
    ) -> list[Tensor]:
        """Return one pooled tensor ``[R, W]`` per stream, in the schema's order."""
        return [
            pooling(history[stream], items_UE, tables)
            for stream, pooling in zip(self.streams, self.poolings, strict=True)
        ]
