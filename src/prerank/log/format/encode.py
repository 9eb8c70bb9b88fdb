"""Raw tables to encoded ones: vocabulary indices, stage codes, floats; the border of the log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from prerank.errors import InputError, did_you_mean
from prerank.log.format.columns import CANDIDATES, first_bad_row, goes_back
from prerank.log.format.files import first_line
from prerank.log.format.layout import ARROW, Column, item_columns, request_columns
from prerank.log.format.vocab import Vocabulary
from prerank.schema import Schema

__all__ = ["Encoder"]


class Encoder:
    """Encodes raw request and item tables, growing the vocabularies as it goes.

    Parameters
    ----------
    schema : Schema
        Decides the columns.
    vocabularies : dict of str to Vocabulary, optional
        To go on from; new ones otherwise.
    """

    def __init__(self, schema: Schema, vocabularies: dict[str, Vocabulary] | None = None) -> None:
        self.schema = schema
        self.vocabularies = vocabularies or {}
        self.counts: Counter[str] = Counter()
        self.columns = request_columns(schema)
        of_items = item_columns(schema)
        names = [c.vocab for c in (*self.columns, *of_items) if c.vocab]
        for name in ("user", "item", *names):
            self.vocabularies.setdefault(name, Vocabulary(name))
        self._last_time: int | None = None
        self._id_type: pa.DataType | None = None

    def start_after(self, time: int, ids: pa.DataType) -> None:
        """Refuse requests earlier than this time (ms), or with request ids of another type."""
        self._last_time, self._id_type = time, ids

    def requests(self, table: pa.Table) -> pa.Table:
        """Encode one table of request rows; see ``write_log`` for its columns.

        Raises
        ------
        InputError
            A missing or unknown column, lists of unequal length, an unknown stage, a null or
            decreasing time, a history that is not sorted or not before its request, a repeated
            candidate.
        """
        known = [c.name for c in self.columns]
        for name in table.column_names:
            if name not in known:
                raise InputError(
                    f"requests: column '{name}' is not in the schema; {did_you_mean(name, known)}"
                )
        for column in self.columns:
            if column.required and column.name not in table.column_names:
                raise InputError(
                    f"requests: no column '{column.name}', which every table of requests needs; "
                    f"it has {', '.join(table.column_names)}"
                )
        times = self._times(table)
        offsets: dict[str, tuple[str, npt.NDArray[np.int64]]] = {}
        arrays = [self._column(table, column, times, offsets) for column in self.columns]
        encoded = pa.table(arrays, names=known)
        self._check_rows(encoded, times, {k: v for k, (_, v) in offsets.items()})
        return encoded

    def items(self, table: pa.Table) -> pa.Table:
        """Encode an item table: ``item_id`` and stored item features, one row per new item."""
        known = ["item_id", *(c.name for c in item_columns(self.schema))]
        for name in table.column_names:
            if name not in known:
                raise InputError(
                    f"items: column '{name}' is not in the schema; {did_you_mean(name, known)}"
                )
        if "item_id" not in table.column_names:
            raise InputError("items: no column 'item_id', the raw id of each item")
        vocab = self.vocabularies["item"]
        before = len(vocab)
        index = vocab.encode(table["item_id"], grow=True)
        if not np.array_equal(index, before + np.arange(len(index))):
            raise InputError(
                "items: column 'item_id' has a null or repeated id; give each item one row"
            )
        arrays = [
            self._column(table, c, None, {}, where="items") for c in item_columns(self.schema)
        ]
        return pa.table([vocab.values[before:], *arrays], names=known)

    def _times(self, table: pa.Table) -> npt.NDArray[np.int64]:
        if table["time"].null_count:
            raise InputError("requests: column 'time' has a null; every request needs its time")
        times = np.asarray(_times_ms(table["time"], "time").to_numpy(), dtype=np.int64)
        if len(times):
            ahead = np.diff(times, prepend=times[0] if self._last_time is None else self._last_time)
            if (ahead < 0).any():
                row = int(np.flatnonzero(ahead < 0)[0])
                raise InputError(
                    f"requests: time goes back at request {table['request_id'][row]}; "
                    "sort the requests by time"
                )
            self._last_time = int(times[-1])
        return times

    def _column(
        self,
        table: pa.Table,
        column: Column,
        times: npt.NDArray[np.int64] | None,
        offsets: dict[str, tuple[str, npt.NDArray[np.int64]]],
        where: str = "requests",
    ) -> pa.Array:
        if column.name not in table.column_names:
            return self._absent(column, table.num_rows, offsets)
        array = table[column.name].combine_chunks()
        if isinstance(array, pa.ChunkedArray):  # zero chunks stay chunked in some versions
            array = pa.concat_arrays(array.chunks) if array.num_chunks else array.slice(0, 0)
        if column.shape == "scalar":
            if column.name == "user" and array.null_count:
                raise InputError(f"{where}: column 'user' has a null; every request needs its user")
            return self._values(array, column, times)
        ends, flat = _flatten(array, column, where)
        if column.group != column.name:
            first, expected = offsets.setdefault(column.group, (column.name, ends))
            if not np.array_equal(ends, expected):
                row = int(np.flatnonzero(np.diff(ends) != np.diff(expected))[0])
                raise InputError(
                    f"{where}: request {table['request_id'][row]}: list '{column.name}' has "
                    f"{int(np.diff(ends)[row])} values, '{first}' {int(np.diff(expected)[row])}; "
                    "lists of one group must be equally long"
                )
        if column.dim and (np.diff(ends) != column.dim).any():
            raise InputError(f"{where}: vector '{column.name}' is not {column.dim} wide everywhere")
        seen = np.repeat(times, np.diff(ends)) if times is not None else None
        values = self._values(flat, column, seen)
        return pa.ListArray.from_arrays(pa.array(ends.astype(np.int32)), values)

    def _absent(
        self, column: Column, num_rows: int, offsets: dict[str, tuple[str, npt.NDArray[np.int64]]]
    ) -> pa.Array:
        kind = self._type(column)
        if column.shape == "scalar":
            return _missing(column, num_rows, kind)
        if column.group in offsets:
            ends = offsets[column.group][1]
        else:
            ends = np.arange(num_rows + 1, dtype=np.int64) * column.dim
        values = _missing(column, int(ends[-1]), kind)
        return pa.ListArray.from_arrays(pa.array(ends.astype(np.int32)), values)

    def _values(
        self, array: pa.Array, column: Column, times: npt.NDArray[np.int64] | None
    ) -> pa.Array:
        match column.coding:
            case "vocab":
                vocab = self.vocabularies[column.vocab]
                return pa.array(vocab.encode(array, grow=True, times=times))
            case "stage":
                return self._codes(array, self.schema.stages, column.name)
            case "channel":
                return self._codes(array, self.schema.channels, column.name, nullable=True)
            case "float":
                return self._floats(array, column)
            case "raw":
                return self._ids(array, column.name)
            case "time":
                if array.null_count:
                    raise InputError(f"requests: column '{column.name}' has a null time")
                return _times_ms(array, column.name)
            case "int" if pa.types.is_timestamp(array.type):
                return _times_ms(array, column.name)
            case _:
                return _cast(array, ARROW[column.coding][0], column.name)

    def _ids(self, array: pa.Array, name: str) -> pa.Array:
        if array.null_count:
            raise InputError(f"requests: column '{name}' has a null; every request needs its id")
        kind = pa.int64() if pa.types.is_integer(array.type) else pa.string()
        self._id_type = kind if self._id_type is None else self._id_type
        if kind != self._id_type:
            raise InputError(
                f"requests: column '{name}' is {array.type}, but earlier tables had "
                f"{self._id_type}; use one type everywhere"
            )
        return _cast(array, kind, name)

    def _codes(
        self, array: pa.Array, names: Sequence[str], column: str, *, nullable: bool = False
    ) -> pa.Array:
        if array.null_count and not nullable:
            raise InputError(f"requests: column '{column}' has a null; expected one of {names}")
        codes = pc.index_in(array.cast(pa.string()), value_set=pa.array(names, type=pa.string()))
        unknown = pc.and_(pc.is_null(codes), pc.is_valid(array))
        if pc.any(unknown).as_py():
            name = str(array.filter(unknown)[0])
            raise InputError(
                f"requests: column '{column}' says '{name}'; {did_you_mean(name, names)}"
            )
        return codes.cast(pa.int8())

    def _type(self, column: Column) -> pa.DataType:
        # float64 in items.parquet keeps milliseconds exact for age_of
        carriers = [f.of for f in self.schema.features]
        wide = column.coding == "float" and column.name in carriers
        return pa.float64() if wide else ARROW[column.coding][0]

    def _floats(self, array: pa.Array, column: Column) -> pa.Array:
        if pa.types.is_timestamp(array.type):
            array = _times_ms(array, column.name)
        if not pa.types.is_floating(array.type):
            array = _cast(array, pa.float64(), column.name)
        cast = _cast(array, self._type(column), column.name)
        finite = pc.is_finite(cast)
        bad = pc.sum(pc.invert(pc.fill_null(finite, True))).as_py() or 0
        if bad:
            self.counts[f"not_finite:{column.name}"] += int(bad)
            cast = pc.if_else(finite, cast, pa.scalar(None, type=cast.type))
        return cast

    def _check_rows(
        self,
        encoded: pa.Table,
        times: npt.NDArray[np.int64],
        offsets: dict[str, npt.NDArray[np.int64]],
    ) -> None:
        for stream in self.schema.streams:
            name = f"history.{stream}.time"
            ends = offsets[f"history.{stream}"]
            event = encoded[name].combine_chunks().flatten().to_numpy()
            row = first_bad_row(event >= np.repeat(times, np.diff(ends)), ends)
            if row is not None:
                raise InputError(
                    f"requests: request {encoded['request_id'][row]}: '{name}' reaches the "
                    "request's own time or past it; keep only earlier events"
                )
            row = first_bad_row(goes_back(event, ends), ends)
            if row is not None:
                raise InputError(
                    f"requests: request {encoded['request_id'][row]}: '{name}' is not sorted; "
                    "put the oldest event first"
                )
        lengths = np.diff(offsets[CANDIDATES])
        self.counts["requests"] += len(lengths)
        self.counts["candidates"] += int(lengths.sum())
        self.counts["requests_without_candidates"] += int((lengths == 0).sum())
        items = encoded["candidates.item"].combine_chunks().flatten().to_numpy().astype(np.int64)
        key = np.repeat(np.arange(len(lengths)), lengths) * len(self.vocabularies["item"]) + items
        order = np.sort(key)
        twice = order[1:][order[1:] == order[:-1]]
        if len(twice):
            row, item = divmod(int(twice[0]), len(self.vocabularies["item"]))
            raw = self.vocabularies["item"].values[item]
            raise InputError(
                f"requests: request {encoded['request_id'][row]} lists item {raw} twice; merge "
                "repeated exposures first (from_impressions does)"
            )


def _missing(column: Column, length: int, kind: pa.DataType) -> pa.Array:
    if column.coding == "vocab":
        return pa.array(np.zeros(length, dtype=np.int32))
    return pa.nulls(length, type=kind)


def _cast(array: pa.Array | pa.ChunkedArray, kind: pa.DataType, name: str) -> pa.Array:
    try:
        return array.cast(kind)
    except pa.ArrowException as error:
        raise InputError(
            f"column '{name}' is {array.type}; expected {kind} ({first_line(error)})"
        ) from None


def _times_ms(array: pa.Array | pa.ChunkedArray, name: str) -> pa.Array:
    """Return times as int64 ms; timestamps without a zone are UTC."""
    if pa.types.is_timestamp(array.type):
        array = array.cast(pa.timestamp("ms", tz=array.type.tz), safe=False)
    return _cast(array, pa.int64(), name)


def _flatten(array: pa.Array, column: Column, where: str) -> tuple[npt.NDArray[np.int64], pa.Array]:
    name = column.name
    if column.dim and array.null_count:  # a missing vector is one of missing values
        blank = pa.scalar([None] * column.dim, type=array.type)
        array = pc.if_else(pc.is_valid(array), array, blank)
    if pa.types.is_fixed_size_list(array.type):
        array = array.cast(pa.list_(array.type.value_type))
    if pa.types.is_null(array.type):
        array = array.cast(pa.list_(pa.null()))
    if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
        raise InputError(f"{where}: column '{name}' is {array.type}; expected a list per row")
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy()
    ends = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=ends[1:])
    return ends, array.flatten()
