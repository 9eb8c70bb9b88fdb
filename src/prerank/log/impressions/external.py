"""Flat impressions that do not fit in memory: sorted on disk, grouped a few requests at a time.

The engine sorts the rows by request once, and the events by user once; both go to Parquet files in
a temporary folder. Requests are then cut from the first, histories from the second, with the same
code that groups tables in memory: the log is the same, byte for byte. In memory stay one chunk of
requests, the items, and 12 bytes per request and history stream.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from prerank.errors import InputError
from prerank.log.impressions import flat
from prerank.log.impressions.engine import Engine, quoted
from prerank.log.impressions.grouping import codes_of, window_starts
from prerank.log.impressions.mapping import ImpressionMap
from prerank.log.impressions.past import build_past, whole_groups
from prerank.log.impressions.rows import CHUNK_ROWS, ImpressionRows, chunk_stops
from prerank.log.impressions.source import BatchSource, FlatSource
from prerank.schema import Schema

__all__ = ["External"]

Index = npt.NDArray[np.int64]
Drop = Callable[[pa.Table, ImpressionMap], tuple[pa.Table, dict[str, int]]]

_TIME, _UNTIL, _ROW, _NUMBER = "__time", "__until", "__row", "__request"


class External:
    """Impressions on their way through the engine.

    Parameters
    ----------
    engine : Engine
        Where they are sorted.
    source : FlatSource
        Where they come from.
    mapping : ImpressionMap
        Which column is what.
    drop : callable
        Takes rows without user, item, time or request out of a table; returns what it counted.
    """

    def __init__(
        self, engine: Engine, source: FlatSource | BatchSource, mapping: ImpressionMap, drop: Drop
    ) -> None:
        self.engine = engine
        self.mapping = msgspec.structs.replace(
            mapping,
            time=_TIME,
            time_unit="ms",
            observed_until=None if mapping.observed_until is None else _UNTIL,
            history={},
        )
        self.num_rows = self.num_kept = self.num_candidates = 0
        self.dropped: Counter[str] = Counter()
        self.conflicts: Counter[str] = Counter()
        self._load(source, mapping, drop)
        self._sorted = self._sort()
        self.items = self._items()
        self.dims = self._dims()
        self.channels = self._channels()
        self.num_requests, self.num_users = self._sizes()
        self._past = build_past(
            engine,
            mapping.history,
            self.mapping,
            self._view(),
            self.items["item_id"].combine_chunks(),
            self.num_requests,
        )
        self._schema = mapping.schema(dims=self.dims, channels=self.channels)

    @property
    def schema(self) -> Schema:
        """Schema of the log."""
        return self._schema

    def _view(self) -> str:
        return self.engine.view(self._sorted)

    def _load(self, source: FlatSource | BatchSource, mapping: ImpressionMap, drop: Drop) -> None:
        schema, batches = source.batches(mapping.columns())
        plain = pa.schema([pa.field(f.name, _plain(f.type)) for f in schema])
        extra = [_ROW, _TIME, *([_UNTIL] if mapping.observed_until is not None else [])]
        full = pa.schema([*plain, *(pa.field(name, pa.int64()) for name in extra)])

        def cleaned() -> Iterator[Any]:
            for batch in batches:
                table = pa.Table.from_batches([batch])
                self.num_rows += table.num_rows
                arrays = [
                    flat.column_array(table, n).cast(plain.field(n).type) for n in plain.names
                ]
                table, dropped = drop(pa.table(arrays, schema=plain), mapping)
                self.dropped.update(dropped)
                row = pa.array(np.arange(self.num_kept, self.num_kept + table.num_rows))
                self.num_kept += table.num_rows
                columns = {**{n: table[n] for n in plain.names}, _ROW: row}
                columns[_TIME] = flat.times(table, mapping.time, mapping.time_unit)
                if mapping.observed_until is not None:
                    columns[_UNTIL] = flat.times(table, mapping.observed_until, mapping.time_unit)
                yield from pa.table(columns, schema=full).combine_chunks().to_batches()

        self.engine.load("flat", full, cleaned())
        if not self.num_kept:
            lost = dict(self.dropped)
            raise InputError(f"no impression left of {self.num_rows} rows; dropped as null: {lost}")

    def _sort(self) -> Path:
        """Give requests their numbers in log order and write the rows in that order."""
        key = self.mapping.request_id
        if key is None:
            self._assign_windows()
            grouped, joined = (
                "assigned JOIN flat USING (__row)",
                "assigned USING (__row) JOIN requests",
            )
            named = "__key"
        else:
            grouped, joined, named = "flat", "requests", quoted(key)
        self.engine.run(
            f"CREATE TABLE requests AS SELECT __key, row_number() OVER (ORDER BY t, f) - 1 AS "
            f"{_NUMBER} FROM (SELECT {named} AS __key, min({_TIME}) AS t, min({_ROW}) AS f "
            f"FROM {grouped} GROUP BY 1)"
        )
        on = "USING (__key)" if key is None else f"ON {named} = __key"
        path = self.engine.save(
            f"SELECT flat.*, {_NUMBER} FROM flat JOIN {joined} {on} "
            f"ORDER BY {_NUMBER}, {_TIME}, {_ROW}",
            "sorted",
        )
        for table in ("flat", "requests", *(["assigned"] if key is None else [])):
            self.engine.run(f"DROP TABLE {table}")
        return path

    def _assign_windows(self) -> None:
        """Make table ``assigned``: the window that each row falls in, users one after another."""
        user, mapping = self.mapping.user, self.mapping
        assert mapping.window_ms is not None
        path = self.engine.save(
            f"SELECT {quoted(user)}, {_TIME}, {_ROW} FROM flat ORDER BY {quoted(user)}, 2, 3",
            "by_user",
        )
        schema = pa.schema([(_ROW, pa.int64()), ("__key", pa.int64())])

        def assigned() -> Iterator[Any]:
            base = 0
            for table in whole_groups(path, user, 1 << 20):
                codes = codes_of(flat.ids(table, user))
                times = table[_TIME].to_numpy()
                starts = window_starts(codes, times, mapping.window_ms or 1, mapping.max_candidates)
                marks = np.zeros(len(codes), dtype=np.int64)
                marks[starts] = 1
                keys = base + np.cumsum(marks) - 1
                base += len(starts)
                arrays = [table[_ROW].combine_chunks(), pa.array(keys)]
                yield from pa.table(arrays, schema=schema).to_batches()

        self.engine.load("assigned", schema, assigned())
        path.unlink()

    def _items(self) -> pa.Table:
        """Return ``item_id`` and the first value of every item feature, in order of appearance."""
        specs = self.mapping.features.get("item", {})
        first, item = "file_row_number", quoted(self.mapping.item)
        wanted = [f"{item} AS item", f"min({first}) AS first"]
        for k, spec in enumerate(specs.values()):
            column = quoted(spec.column)
            wanted.append(f"arg_min({column}, {first}) FILTER ({column} IS NOT NULL) AS v{k}")
            wanted.append(f"(min({column}) IS DISTINCT FROM max({column}))::INT AS d{k}")
        query = f"SELECT {', '.join(wanted)} FROM {self._view()} GROUP BY 1 ORDER BY 2"
        self.engine.run(
            f"CREATE TABLE items AS SELECT *, row_number() OVER (ORDER BY first) - 1 AS code "
            f"FROM ({query})"
        )
        found = self.engine.table("SELECT * FROM items ORDER BY code")
        columns = {"item_id": flat.ids(found, "item")}
        for k, (name, spec) in enumerate(specs.items()):
            named = pa.table({spec.column: found[f"v{k}"]})
            columns[name] = flat.feature_values(named, spec)[0]
            self.conflicts[f"item.{name}"] = int(pc.sum(found[f"d{k}"]).as_py() or 0)
        return pa.table(columns)

    def _dims(self) -> dict[tuple[str, str], int]:
        dims: dict[tuple[str, str], int] = {}
        for owner, specs in self.mapping.features.items():
            for name, spec in specs.items():
                if spec.kind != "vector":
                    continue
                length = f"len({quoted(spec.column)})"
                query = f"SELECT min({length}) AS low, max({length}) AS high FROM {self._view()}"
                widths = self.engine.table(query).to_pylist()[0]
                if widths["low"] != widths["high"] or not widths["high"]:
                    raise InputError(
                        f"column '{spec.column}': vectors of {widths['low']} to {widths['high']} "
                        "numbers; expected one width"
                    )
                dims[owner, name] = int(widths["high"])
        return dims

    def _channels(self) -> tuple[str, ...]:
        if self.mapping.channel is None:
            return ()
        column = quoted(self.mapping.channel)
        found = self.engine.table(
            f"SELECT DISTINCT {column} AS c FROM {self._view()} WHERE {column} IS NOT NULL"
        )
        return tuple(sorted(flat.words(found, "c").to_pylist()))

    def _sizes(self) -> tuple[int, int]:
        user = quoted(self.mapping.user)
        row = self.engine.table(
            f"SELECT max({_NUMBER}) + 1 AS r, count(DISTINCT {user}) AS u FROM {self._view()}"
        ).to_pylist()[0]
        return int(row["r"]), int(row["u"])

    def tables(self) -> Iterator[pa.Table]:
        """Yield raw request tables in time order."""
        base, rest = 0, None
        for table in whole_groups(self._sorted, _NUMBER, CHUNK_ROWS):
            if rest is not None:
                table = pa.concat_tables([rest, table])  # noqa: PLW2901
            starts = _starts(table)
            # The last chunk may go on in the next table; chunks are those of a table in memory.
            stops = chunk_stops(starts, table.num_rows)
            whole = stops[-2] if len(stops) > 1 else 0
            cut = int(starts[whole])
            yield from self._requests(table.slice(0, cut), starts[:whole], base)
            base, rest = base + whole, table.slice(cut)
        if rest is not None:
            yield from self._requests(rest, _starts(rest), base)

    def _requests(self, table: pa.Table, starts: Index, base: int) -> Iterator[pa.Table]:
        if not len(starts):
            return
        number = table[_NUMBER]
        assert (number[0].as_py(), number[-1].as_py()) == (base, base + len(starts) - 1)
        rows = ImpressionRows(table, starts, self.mapping)
        self.num_candidates += int(rows.offsets[-1])
        self.conflicts.update(rows.conflicts)
        for made in rows.tables():
            low, base = base, base + made.num_rows
            columns = {name: made[name] for name in made.column_names}
            if self.mapping.request_id is None:
                columns["request_id"] = pa.array(np.arange(low, base))
            for past in self._past:
                for name, values in past.lists(low, base):
                    columns[f"history.{past.stream}.{name}"] = values
            yield pa.table(columns)


def _starts(table: pa.Table) -> Index:
    return np.flatnonzero(np.diff(table[_NUMBER].to_numpy(), prepend=-1))


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return the type in which the engine keeps a column."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_null(kind) or pa.types.is_large_string(kind):
        return pa.string()
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_plain(kind.value_type))
    return kind
