"""Columns to ``RequestBatch``: the one path that reader, evaluation and server share."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prerank.batch import Features, History, Inputs, Pairs, RequestBatch
from prerank.jagged import Jagged
from prerank.log.format.columns import CANDIDATES, Columns, Group, history_key
from prerank.log.format.items import ItemTable
from prerank.log.inputs.dense import DenseFit, apply_dense, raw_dense
from prerank.log.inputs.evidence import build_evidence
from prerank.schema import NUM_RESERVED, Feature, Owner, Schema

__all__ = ["Assembler", "unique_items"]

_MS_PER_HOUR = 3_600_000
_HOURS_PER_DAY = 24
_THURSDAY = 3  # 1 January 1970, with Monday = 0


def unique_items(
    index: npt.NDArray[Any], num_items: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the distinct item indices, ascending, and the position of each input among them.

    Examples
    --------
    >>> unique_items(np.array([7, 2, 7]), num_items=10)
    (array([2, 7]), array([1, 0, 1]))
    """
    if num_items > 64 * len(index) + 65536:
        distinct, inverse = np.unique(index, return_inverse=True)
        return distinct.astype(np.int64), inverse.astype(np.int64)
    present = np.zeros(num_items, dtype=np.bool_)
    present[index] = True
    distinct = np.flatnonzero(present)
    position = np.empty(num_items, dtype=np.int64)
    position[distinct] = np.arange(len(distinct))
    return distinct, position[index]


class Assembler:
    """Turns columns of one log into batches for one set of fitted transforms.

    Parameters
    ----------
    schema : Schema
        Of the training log: features, tasks.
    log_schema : Schema
        Of the log read: stages, sources, labels.
    dense : dict of str to DenseFit
        Fitted dense transforms by column.
    maps : dict of str to ndarray int32
        Table row of each vocabulary row of the log.
    items : ItemTable
        The log's items.
    max_history : int
        Most recent events kept.
    """

    def __init__(
        self,
        schema: Schema,
        log_schema: Schema,
        dense: dict[str, DenseFit],
        maps: dict[str, npt.NDArray[np.int32]],
        items: ItemTable,
        *,
        max_history: int,
    ) -> None:
        self.schema = schema
        self.log_schema = log_schema
        self.dense = dense
        self.maps = maps
        self.items = items
        self.max_history = max_history
        self._item_rows: npt.NDArray[np.int32] | None = None

    @cached_property
    def item_features(self) -> Features:
        """Features of all items, one row each, transformed once."""
        nothing = Columns({"row": np.zeros(0, np.int64)}, {})
        return self._features("item", nothing, self.items.num_items)

    def over(self, items: ItemTable, item_rows: npt.NDArray[np.int32] | None = None) -> Assembler:
        """Return the same transforms over other items.

        Parameters
        ----------
        items : ItemTable
            Encoded as the log's own.
        item_rows : ndarray ``[num_items]`` int32, optional
            Row of each item in the table of item ids; default: as in the log.
        """
        other = Assembler(
            self.schema,
            self.log_schema,
            self.dense,
            self.maps,
            items,
            max_history=self.max_history,
        )
        other._item_rows = item_rows
        return other

    def batch(self, columns: Columns) -> RequestBatch:
        """Assemble one batch; candidates and histories share one set of unique items."""
        inputs = self.inputs(columns)
        return RequestBatch(inputs, build_evidence(columns, self.log_schema, self.schema))

    def pairs(self, columns: Columns) -> Pairs:
        """Assemble the candidate side alone; ``item_of`` is the item's row in the item table."""
        candidates = columns.groups[CANDIDATES]
        num_requests = columns.num_requests
        request_of = np.repeat(np.arange(num_requests), np.diff(candidates.offsets))
        return Pairs(
            request_of=torch.from_numpy(request_of),
            item_of=torch.from_numpy(candidates.values["item"].astype(np.int64)),
            candidate=self._features("candidate", columns, len(request_of)),
            context=self._features("context", columns, num_requests),
        )

    def inputs(self, columns: Columns) -> Inputs:
        """Assemble what models may read; neither stages nor labels are looked at."""
        candidates = columns.groups[CANDIDATES]
        histories = {
            s: columns.groups[history_key(s)].tail(self.max_history) for s in self.schema.streams
        }
        ids = [candidates.values["item"], *(h.values["item"] for h in histories.values())]
        distinct, item_of = unique_items(np.concatenate(ids), self.items.num_items)
        parts = np.split(item_of, np.cumsum([len(i) for i in ids])[:-1])
        num_requests = columns.num_requests
        offsets = torch.from_numpy(candidates.offsets)
        request_of = np.repeat(np.arange(num_requests), np.diff(candidates.offsets))
        return Inputs(
            user=self._features("user", columns, num_requests),
            context=self._features("context", columns, num_requests),
            history={
                stream: self._history(stream, group, part, columns)
                for (stream, group), part in zip(histories.items(), parts[1:], strict=True)
            },
            items=self.item_features.select(torch.from_numpy(distinct)),
            candidate=self._features("candidate", columns, len(request_of)),
            offsets=offsets,
            request_of=torch.from_numpy(request_of),
            item_of=torch.from_numpy(parts[0]),
        )

    def _features(self, owner: Owner, columns: Columns, num_rows: int) -> Features:
        categorical = [
            self._categorical(f, columns, num_rows) for f in self.schema.of(owner, "categorical")
        ]
        multi = tuple(self._multi(f, columns) for f in self.schema.of(owner, "multi"))
        vectors = tuple(
            _floats(
                np.nan_to_num(
                    self.items.scalars[f.column] if owner == "item" else columns.scalars[f.column]
                )
            )
            for f in self.schema.of(owner, "vector")
        )
        return Features(
            categorical=_stack(categorical, num_rows),
            multi=multi,
            dense=self._dense(self.schema.of(owner, "dense"), columns, num_rows),
            vectors=vectors,
        )

    def _categorical(
        self, feature: Feature, columns: Columns, num_rows: int
    ) -> npt.NDArray[np.int32]:
        times = columns.scalars.get("time")
        if feature.clock is not None and times is not None:
            hours = times // _MS_PER_HOUR
            if feature.clock == "hour":
                value = hours % _HOURS_PER_DAY
            else:
                value = (hours // _HOURS_PER_DAY + _THURSDAY) % 7
            return (NUM_RESERVED + value).astype(np.int32)
        rows = self.maps[feature.vocab]
        index: npt.NDArray[Any]
        match feature.owner:
            case "item" if feature.name == "item":
                if self._item_rows is not None:
                    return self._item_rows
                index = np.arange(num_rows)
            case "item":
                index = self.items.scalars[feature.column]
            case "candidate":
                index = columns.groups[CANDIDATES].values[feature.name]
            case _:
                index = columns.scalars[feature.column]
        taken: npt.NDArray[np.int32] = rows[index]
        return taken

    def _multi(self, feature: Feature, columns: Columns) -> Jagged:
        groups = self.items.groups if feature.owner == "item" else columns.groups
        group = groups[feature.column]
        values = self.maps[feature.vocab][group.values[""]].astype(np.int64)
        return Jagged(torch.from_numpy(values), torch.from_numpy(group.offsets))

    def _dense(self, features: tuple[Feature, ...], columns: Columns, num_rows: int) -> Tensor:
        out = np.zeros((num_rows, 2 * len(features)), dtype=np.float32)
        for k, feature in enumerate(features):
            raw = raw_dense(feature, columns, self.items)
            values = apply_dense(feature, self.dense[feature.column], raw)
            missing = np.isnan(values)
            out[:, k] = np.where(missing, 0.0, values)
            out[:, len(features) + k] = missing
        return torch.from_numpy(out)

    def _history(
        self, stream: str, group: Group, item_of: npt.NDArray[np.int64], columns: Columns
    ) -> History:
        offsets = torch.from_numpy(group.offsets)
        times = np.repeat(columns.scalars["time"], np.diff(group.offsets))
        categorical = [
            self.maps[f.vocab][group.values[f.name]]
            for f in self.schema.of("history", "categorical", stream)
        ]
        cut = Columns(columns.scalars, {history_key(stream): group})
        dense = self._dense(self.schema.of("history", "dense", stream), cut, len(times))
        return History(
            item_of=Jagged(torch.from_numpy(item_of), offsets),
            age_ms=Jagged(torch.from_numpy(times - group.values["time"]), offsets),
            categorical=Jagged(_stack(categorical, len(times)), offsets),
            dense=Jagged(dense, offsets),
        )


def _stack(columns: list[npt.NDArray[np.int32]], num_rows: int) -> Tensor:
    out = np.empty((num_rows, len(columns)), dtype=np.int64)
    for k, column in enumerate(columns):
        out[:, k] = column
    return torch.from_numpy(out)


def _floats(values: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
