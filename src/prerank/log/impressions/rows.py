"""Columns of sorted impressions to raw request tables: constants, candidates, histories, items."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from prerank import expression
from prerank.errors import InputError, did_you_mean
from prerank.log.impressions import flat
from prerank.log.impressions.grouping import (
    Events,
    as_lists,
    codes_of,
    first_per_group,
    group_of,
    offsets_of,
    repeats,
)
from prerank.log.impressions.mapping import ImpressionMap
from prerank.schema import Owner

__all__ = ["CHUNK_ROWS", "ImpressionRows", "chunk_stops"]

CHUNK_REQUESTS = 4096
CHUNK_ROWS = 1 << 18
"""Rows of a chunk of requests; a single request may have more."""

Index = npt.NDArray[np.int64]


def chunk_stops(starts: Index, num_rows: int) -> list[int]:
    """Cut requests into chunks that are written together; return where each ends.

    Parameters
    ----------
    starts : ndarray ``[R]`` int64
        First row of each request.
    num_rows : int
        Rows of all.

    Examples
    --------
    >>> chunk_stops(np.array([0, 5, CHUNK_ROWS + 9]), CHUNK_ROWS + 12)
    [1, 2, 3]
    """
    ends = np.append(starts[1:], num_rows)
    stops, low = [], 0
    while low < len(starts):
        fitting = int(np.searchsorted(ends, starts[low] + CHUNK_ROWS, side="right"))
        low = min(max(fitting, low + 1), low + CHUNK_REQUESTS)
        stops.append(low)
    return stops


class ImpressionRows:
    """Impressions in log order and what their requests are made of.

    Parameters
    ----------
    table : pyarrow.Table
        Rows of one request are neighbours, in order of time; requests stand in time order.
    starts : ndarray ``[R]`` int64
        First row of each request.
    mapping : ImpressionMap
        Which column is what.
    """

    def __init__(self, table: pa.Table, starts: Index, mapping: ImpressionMap) -> None:
        self.table = table
        self.mapping = mapping
        self.stages = mapping.stages
        self.conflicts: dict[str, int] = {}
        self.dims: dict[tuple[str, str], int] = {}
        self.request = group_of(starts, table.num_rows)
        self.starts = starts
        self.user_ids = flat.ids(table, mapping.user)
        self.user = codes_of(self.user_ids)
        self.item_ids = flat.ids(table, mapping.item)
        self.item = codes_of(self.item_ids)
        self.time: Index = flat.times(table, mapping.time, mapping.time_unit).to_numpy()
        self.labels = {
            name: np.asarray(flat.label_values(table, spec).to_numpy(zero_copy_only=False))
            for name, spec in mapping.labels.items()
        }
        self.channels: tuple[str, ...] = ()
        self.fixed = self._request_columns()
        lengths, self.lists = self._candidate_columns()
        self.offsets = offsets_of(lengths)

    def _constant(self, name: str, values: pa.Array) -> pa.Array:
        """Reduce rows to requests: the first value that is not null; count disagreement."""
        first, conflicts = first_per_group(values, self.request, len(self.starts))
        self.conflicts[name] = conflicts
        return values.take(pa.array(first, mask=first < 0))

    def _request_columns(self) -> dict[str, pa.Array]:
        mapping, last = self.mapping, np.append(self.starts[1:], self.table.num_rows) - 1
        columns: dict[str, pa.Array] = {}
        if mapping.request_id is None:
            columns["request_id"] = pa.array(np.arange(len(self.starts), dtype=np.int64))
        else:
            ids = flat.ids(self.table, mapping.request_id)
            columns["request_id"] = ids.take(pa.array(self.starts))
            self.conflicts["time"] = int(
                np.count_nonzero(self.time[self.starts] != self.time[last])
            )
        columns["user"] = self._constant("user", self.user_ids)
        columns["time"] = pa.array(self.time[self.starts])
        if mapping.observed_until is not None:
            until = flat.times(self.table, mapping.observed_until, mapping.time_unit)
            columns["observed_until"] = self._constant("observed_until", until)
        owners: tuple[Owner, ...] = ("user", "context")
        for owner in owners:
            for name, values in self._features(owner).items():
                columns[name] = self._constant(f"{owner}.{name}", values)
        return columns

    def _features(self, owner: Owner) -> dict[str, pa.Array]:
        arrays = {}
        for name, spec in self.mapping.features.get(owner, {}).items():
            arrays[name], dim = flat.feature_values(self.table, spec)
            if dim:
                self.dims[owner, name] = dim
        return arrays

    def _candidate_columns(self) -> tuple[Index, dict[str, pa.Array]]:
        """Return candidates per request and their flat columns, repeated exposures merged."""
        mapping = self.mapping
        labels = dict(self.labels)
        stage = self._stages()
        again = repeats(self.request, self.item)
        keep = np.arange(self.table.num_rows)
        if again is not None:
            order, starts = again
            shown = order[starts]
            back = np.argsort(shown)
            keep = shown[back]
            # fmax passes over NaN: an observed label wins over one that was not.
            labels = {k: np.fmax.reduceat(v[order], starts)[back] for k, v in labels.items()}
            if stage is not None:
                stage = np.maximum.reduceat(stage[order], starts)[back]
        rows = pa.array(keep)
        columns = {"candidates.item": self.item_ids.take(rows)}
        names = pa.array(self.stages)
        codes = np.full(len(keep), len(self.stages) - 1) if stage is None else stage
        columns["candidates.stage"] = names.take(pa.array(codes))
        if mapping.channel is not None:
            channel = flat.words(self.table, mapping.channel)
            self.channels = tuple(sorted(pc.unique(channel.drop_null()).to_pylist()))
            if self.channels:  # all null: the log has no channels
                columns["candidates.channel"] = channel.take(rows)
        for rank, column in mapping.rank_columns().items():
            columns[f"candidates.rank.{rank}"] = self._ranks(rank, column).take(rows)
        for name, column in mapping.scores.items():
            columns[f"candidates.score.{name}"] = flat.numbers(self.table, column).take(rows)
        for name, given in (("weight", mapping.weight), ("propensity", mapping.propensity)):
            if given is not None:
                columns[f"candidates.{name}"] = flat.numbers(self.table, given).take(rows)
        for name, values in self._features("candidate").items():
            columns[f"candidates.{name}"] = values.take(rows)
        for name, label in labels.items():
            columns[f"labels.{name}"] = pa.array(label, mask=np.isnan(label))
        return np.bincount(self.request[keep], minlength=len(self.starts)), columns

    def _stages(self) -> Index | None:
        if self.mapping.stage is None:
            return None
        found = flat.words(self.table, self.mapping.stage)
        codes = pc.index_in(found, value_set=pa.array(self.stages))
        if codes.null_count:
            name = found[codes.is_null().index(True).as_py()].as_py()
            hint = did_you_mean(str(name), self.stages)
            raise InputError(f"column '{self.mapping.stage}' says '{name}'; {hint}")
        return np.asarray(codes.to_numpy(), dtype=np.int64)

    def _ranks(self, stage: str, column: str) -> pa.Array:
        ranks = flat.numbers(self.table, column, pa.int32())
        first = self.mapping.first_position if stage == self.stages[-1] else 0
        ranks = pc.subtract(ranks, pa.scalar(first, pa.int32()))
        low = pc.min(ranks).as_py()
        if low is not None and low < 0:
            raise InputError(
                f"column '{column}' holds {low + first}; ranks here count from {first} "
                "(first_position)"
            )
        return ranks

    def items(self) -> pa.Table:
        """Return ``item_id`` and the first value of every item feature."""
        num_items = int(self.item.max()) + 1
        _, first = np.unique(self.item, return_index=True)
        columns = {"item_id": self.item_ids.take(pa.array(first))}
        for name, values in self._features("item").items():
            rows, conflicts = first_per_group(values, self.item, num_items)
            self.conflicts[f"item.{name}"] = conflicts
            columns[name] = values.take(pa.array(rows, mask=rows < 0))
        return pa.table(columns)

    def _streams(self) -> Iterator[tuple[str, Events, int, dict[str, pa.Array]]]:
        for stream, rule in self.mapping.history.items():
            rows = np.arange(self.table.num_rows)
            if rule.where is not None:
                rows = np.flatnonzero(expression.evaluate(rule.where, self.labels) == 1)
            chosen = pa.array(rows)
            columns = {
                "item": self.item_ids.take(chosen),
                "time": pa.array(self.time[rows]),
            }
            for name, spec in rule.features.items():
                columns[name] = flat.feature_values(self.table, spec)[0].take(chosen)
            yield stream, Events(self.user[rows], self.time[rows]), rule.max_len, columns

    def tables(self) -> Iterator[pa.Table]:
        """Yield raw request tables in time order."""
        streams = list(self._streams())
        users, times = self.user[self.starts], self.time[self.starts]
        stops = chunk_stops(self.starts, self.table.num_rows)
        for low, high in itertools.pairwise([0, *stops]):
            columns = {name: v.slice(low, high - low) for name, v in self.fixed.items()}
            for stream, events, max_len, values in streams:
                lists = events.lists(users[low:high], times[low:high], max_len, values)
                columns.update({f"history.{stream}.{name}": array for name, array in lists})
            offsets = self.offsets[low : high + 1]
            columns.update({name: as_lists(v, offsets) for name, v in self.lists.items()})
            yield pa.table(columns)
