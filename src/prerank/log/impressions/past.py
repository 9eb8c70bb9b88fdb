"""Histories of a log larger than memory: events on disk in user order, found by request.

Each column of a stream is one raw file; a request needs one run of it, so that all there is to keep
in memory is where that run starts and how long it is.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prerank import expression
from prerank.log.impressions import flat
from prerank.log.impressions.engine import Engine, quoted
from prerank.log.impressions.grouping import Events, as_lists, codes_of, offsets_of, ranges
from prerank.log.impressions.mapping import HistoryRule, ImpressionMap

__all__ = ["PastEvents", "build_past", "whole_groups"]

Index = npt.NDArray[np.int64]

_ROWS = 1 << 19


def whole_groups(path: Path, key: str, num_rows: int) -> Iterator[pa.Table]:
    """Yield tables of about ``num_rows`` rows that end where a value of ``key`` ends.

    Parameters
    ----------
    path : path
        A Parquet file whose rows of one key are neighbours.
    key : str
        The column; never null.
    num_rows : int
        Rows per table; more only where a single value has more.
    """
    pending: list[pa.RecordBatch] = []
    held = 0
    for batch in pq.ParquetFile(path).iter_batches(min(65_536, num_rows)):
        pending.append(batch)
        held += batch.num_rows
        if held < num_rows:
            continue
        table = pa.Table.from_batches(pending)
        keep = int(pc.index(table[key], table[key][-1]).as_py())
        if keep:
            yield table.slice(0, keep)
        pending, held = table.slice(keep).to_batches(), table.num_rows - keep
    if pending:
        yield pa.Table.from_batches(pending)


class PastEvents:
    """Events of one stream, appended in user order, read by request.

    Parameters
    ----------
    folder : path
        Where the files of its columns are made.
    stream : str
        Name of the stream.
    rule : HistoryRule
        Which impressions are events, and what they carry.
    items : Array
        Raw ids of the items by code.
    num_requests : int
        Requests of the log.
    """

    def __init__(
        self, folder: Path, stream: str, rule: HistoryRule, items: pa.Array, num_requests: int
    ) -> None:
        self.stream = stream
        self._rule = rule
        self._columns = {"item": _Column(folder / f"{stream}.0", items)}
        self._columns["time"] = _Column(folder / f"{stream}.1", plain=True)
        for k, name in enumerate(rule.features, start=2):
            self._columns[name] = _Column(folder / f"{stream}.{k}")
        self._start = np.zeros(num_requests, dtype=np.int64)
        self._length = np.zeros(num_requests, dtype=np.int32)
        self._num_events = 0

    def add(self, events: pa.Table, user: Index, asked: Index, at: Index, number: Index) -> None:
        """Append the events of some users and find what their requests see of them.

        Parameters
        ----------
        events : pyarrow.Table
            Chosen impressions ``[N]`` in order of user and time: ``__code``, ``__t``, features.
        user : ndarray ``[N]`` int64
            Their users.
        asked, at, number : ndarray ``[R]`` int64
            User, time and number of the requests of the same users.
        """
        time = events["__t"].to_numpy()
        start, length = Events(user, time).before(asked, at, self._rule.max_len)
        self._start[number] = self._num_events + start
        self._length[number] = length
        self._columns["item"].append_codes(events["__code"].to_numpy())
        self._columns["time"].append(events["__t"].combine_chunks())
        for name, spec in self._rule.features.items():
            self._columns[name].append(flat.feature_values(events, spec)[0])
        self._num_events += len(time)

    def lists(self, low: int, high: int) -> Iterator[tuple[str, pa.Array]]:
        """Yield each column for requests ``low:high`` as lists, oldest event first."""
        length = self._length[low:high].astype(np.int64)
        index, offsets = ranges(self._start[low:high], length), offsets_of(length)
        for name, column in self._columns.items():
            yield name, as_lists(column.take(index), offsets)

    def seal(self) -> None:
        """End the appending; ``lists`` may be read from now on."""
        for column in self._columns.values():
            column.seal()


class _Column:
    """Values of one column in a raw file: codes of distinct values, floats, or plain integers."""

    def __init__(
        self, path: Path, distinct: pa.Array | None = None, *, plain: bool = False
    ) -> None:
        self._file = path.open("wb")
        self._path = path
        self._plain = plain
        self._distinct = distinct
        self._coded = distinct is not None
        self._kind: np.dtype[np.generic] = np.dtype(np.int64)
        self._map: mmap.mmap | None = None

    def append_codes(self, codes: npt.NDArray[np.generic]) -> None:
        codes.astype(np.int64).tofile(self._file)

    def append(self, values: pa.Array) -> None:
        """Append times (int64), numbers (float64, null as NaN) or raw values (coded)."""
        if pa.types.is_floating(values.type):
            self._kind = np.dtype(np.float64)
            np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float64).tofile(self._file)
        elif self._plain:
            values.to_numpy().tofile(self._file)
        else:
            self.append_codes(self._encode(values))

    def _encode(self, values: pa.Array) -> Index:
        self._coded = True
        if self._distinct is None:
            self._distinct = pa.array([], values.type)
        here = values.dictionary_encode()
        known = pc.index_in(here.dictionary, value_set=self._distinct)
        fresh = here.dictionary.filter(known.is_null())
        self._distinct = pa.concat_arrays([self._distinct, fresh])
        place = pc.index_in(here.dictionary, value_set=self._distinct)
        codes = pc.fill_null(place.take(here.indices), -1)
        return np.asarray(codes.to_numpy(zero_copy_only=False), dtype=np.int64)

    def seal(self) -> None:
        self._file.close()
        if self._path.stat().st_size:
            with self._path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def take(self, index: Index) -> pa.Array:
        data: bytes | mmap.mmap = b"" if self._map is None else self._map
        values = np.frombuffer(data, dtype=self._kind)[index]
        if self._map is not None:
            # Pages that were read are no longer needed; without this they count as memory in use.
            with contextlib.suppress(AttributeError, OSError):
                self._map.madvise(mmap.MADV_DONTNEED)
        if self._coded:
            assert self._distinct is not None
            return self._distinct.take(pa.array(values, mask=values < 0))
        if self._kind == np.float64:
            return pa.array(values, mask=np.isnan(values))
        return pa.array(values)


def build_past(
    engine: Engine,
    rules: Mapping[str, HistoryRule],
    mapping: ImpressionMap,
    view: str,
    items: pa.Array,
    num_requests: int,
) -> list[PastEvents]:
    """Sort the events by user and find the history of every request.

    Parameters
    ----------
    engine : Engine
        Holds table ``items`` (``item``, ``code``).
    rules : mapping of str to HistoryRule
        The streams.
    mapping : ImpressionMap
        Names the columns; its time is in ms.
    view : str
        SQL of the sorted impressions with ``file_row_number`` and ``__request``.
    items : Array
        Raw ids of the items by code.
    num_requests : int
        Requests of the log.
    """
    streams = [PastEvents(engine.folder, s, rule, items, num_requests) for s, rule in rules.items()]
    if not streams:
        return []
    labels = {
        name: mapping.labels[name]
        for rule in rules.values()
        for name in (expression.names(rule.where) if rule.where else ())
    }
    carried = [spec if isinstance(spec, str) else spec.column for spec in labels.values()]
    carried += [spec.column for rule in rules.values() for spec in rule.features.values()]
    user, item, time = (quoted(name) for name in (mapping.user, mapping.item, mapping.time))
    columns = "".join(f", f.{quoted(name)}" for name in dict.fromkeys(carried))
    events = (
        f"SELECT f.{user} AS __u, f.{time} AS __t, f.file_row_number AS __p, 0 AS __kind, "
        f"code AS __code{columns} FROM {view} f JOIN items ON f.{item} = items.item"
    )
    requests = (
        f"SELECT arg_min({user}, file_row_number) AS __u, min({time}) AS __t, __request AS __p, "
        f"1 AS __kind FROM {view} GROUP BY __request"
    )
    path = engine.save(
        f"SELECT * FROM ({events} UNION ALL BY NAME {requests}) ORDER BY __u, __t, __kind, __p",
        "events",
    )
    for table in whole_groups(path, "__u", _ROWS):
        is_event = np.asarray(table["__kind"].to_numpy() == 0)
        users = codes_of(flat.ids(table, "__u"))
        asking = table.filter(pa.array(~is_event))
        at, number = (asking[name].to_numpy() for name in ("__t", "__p"))
        past, owner = table.filter(pa.array(is_event)), users[is_event]
        found = {
            name: np.asarray(flat.label_values(past, spec).to_numpy(zero_copy_only=False))
            for name, spec in labels.items()
        }
        for events_of in streams:
            where = rules[events_of.stream].where
            chosen, whose = past, owner
            if where is not None:
                rows = np.flatnonzero(expression.evaluate(where, found) == 1)
                chosen, whose = past.take(pa.array(rows)), owner[rows]
            events_of.add(chosen, whose, users[~is_event], at, number)
    path.unlink()
    for events_of in streams:
        events_of.seal()
    return streams
