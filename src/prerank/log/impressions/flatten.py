"""A request log as flat impressions: one row per candidate, raw values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prerank.log.format.columns import Columns, Group
from prerank.log.format.layout import Column, request_columns
from prerank.log.log import Log, Part
from prerank.schema import Feature

__all__ = ["to_impressions"]


def to_impressions(source: Log | Part, *, batch_size: int = 4096) -> Iterator[pa.Table]:
    """Yield the candidates of a log as flat rows in log order, raw values decoded.

    What was stored once per request or item is repeated for every candidate; histories are left
    out. A missing list (multi-valued feature) comes back empty.

    Parameters
    ----------
    source : Log or Part
        What to read.
    batch_size : int
        Requests per table.

    Yields
    ------
    pyarrow.Table
        ``request_id``, ``user``, ``time`` (ms), ``observed_until``, ``item``, ``stage``,
        ``channel``, ``rank.STAGE``, ``score.NAME``, ``weight``, ``propensity``, ``sample_prob``,
        ``scored_online``, ``label.NAME``, and the stored features as ``user.NAME``,
        ``context.NAME``, ``item.NAME``, ``candidate.NAME``; only those that the log has.
    """
    part = source.all() if isinstance(source, Log) else source
    rows = _Rows(part.log)
    for columns in part.columns(batch_size, with_ids=True):
        yield rows.table(columns)


class _Rows:
    """Decodes batches of one log; vocabularies are read once."""

    def __init__(self, log: Log) -> None:
        self.schema = log.schema
        self.columns = request_columns(log.schema)
        self.items = log.items
        self.owner = {f.column: f.owner for f in self.schema.stored("user", "context")}
        used = {c.vocab for c in self.columns if c.vocab} | {"user", "item"}
        used |= {f.vocab for f in self.schema.stored("item") if f.kind in ("categorical", "multi")}
        self.raw = {name: log.vocabulary(name).values for name in used}

    def table(self, columns: Columns) -> pa.Table:
        candidates = columns.candidates
        request = np.repeat(np.arange(columns.num_requests), np.diff(candidates.offsets))
        of_request = pa.array(request)
        flat: dict[str, pa.Array] = {}
        for column in self.columns:
            if column.name in columns.scalars:
                values = self._array(columns.scalars[column.name], column)
            elif column.group == column.name:
                values = self._lists(columns.groups[column.name], column.key, column.vocab)
            else:
                continue
            owner = self.owner.get(column.name)
            flat[f"{owner}.{column.name}" if owner else column.name] = values.take(of_request)
        for column in self.columns:
            if column.name.startswith(("candidates.", "labels.")):
                values = self._array(candidates.values[column.key], column)
                flat[self._name(column)] = values
        index = candidates.values["item"]
        for feature in self.schema.stored("item"):
            flat[f"item.{feature.name}"] = self._item_feature(feature, index)
        return pa.table(flat)

    def _name(self, column: Column) -> str:
        if column.name.startswith("labels."):
            return "label." + column.name.removeprefix("labels.")
        name = column.name.removeprefix("candidates.")
        stored = {f.column for f in self.schema.stored("candidate")}
        return f"candidate.{name}" if column.name in stored else name

    def _array(self, values: npt.NDArray[Any], column: Column) -> pa.Array:
        if values.ndim == 2:
            return _vectors(values)
        match column.coding:
            case "vocab":
                return self.raw[column.vocab].take(pa.array(values))
            case "stage" | "channel":
                names = self.schema.stages if column.coding == "stage" else self.schema.channels
                codes = pa.array(values, mask=values < 0)
                return pa.array(names, type=pa.string()).take(codes)
            case "int":
                return pa.array(values, mask=values == -1)
            case "float":
                return pa.array(values, mask=np.isnan(values))
            case _:
                return pa.array(values)

    def _lists(self, group: Group, key: str, vocab: str) -> pa.Array:
        values = self.raw[vocab].take(pa.array(group.values[key]))
        return pa.ListArray.from_arrays(pa.array(group.offsets.astype(np.int32)), values)

    def _item_feature(self, feature: Feature, index: npt.NDArray[Any]) -> pa.Array:
        if feature.name in self.items.groups:
            group = self.items.groups[feature.name]
            (key,) = group.values
            return self._lists(group.take(index.astype(np.int64)), key, feature.vocab)
        values = self.items.scalars[feature.name][index]
        if values.ndim == 2:
            return _vectors(values)
        if feature.kind == "categorical":
            return self.raw[feature.vocab].take(pa.array(values))
        return pa.array(values, mask=np.isnan(values))


def _vectors(values: npt.NDArray[Any]) -> pa.Array:
    """``[N, dim]`` to a list per row; a row that was missing is null."""
    missing = np.isnan(values).all(axis=1)
    ends = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    mask = pa.array(missing) if missing.any() else None
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(values.ravel()), mask=mask)
