"""Encoded rows of a log back to raw tables, as ``write_log`` and ``append_log`` take them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from prerank.log.format.files import ITEMS, read_table
from prerank.log.format.layout import Column, item_columns, request_columns
from prerank.log.log import Log
from prerank.schema import NUM_RESERVED

__all__ = ["raw_items", "raw_requests"]


def raw_requests(log: Log, groups: Iterable[int] | None = None) -> Iterator[pa.Table]:
    """Yield the requests of a log (of these row groups) as raw tables, in time order."""
    columns = request_columns(log.schema)
    lookups = {c.vocab: log.vocabulary(c.vocab).values for c in columns if c.vocab}
    lookups["stage"] = pa.array(log.schema.stages, type=pa.string())
    lookups["channel"] = pa.array(log.schema.channels, type=pa.string())
    wanted = range(log.num_groups) if groups is None else groups
    for _, _, table in log.tables(wanted, columns):
        arrays = {c.name: _raw(table[c.name].combine_chunks(), c, lookups) for c in columns}
        yield pa.table(arrays)


def raw_items(log: Log) -> pa.Table:
    """Return the item table of a log with raw values, without the reserved rows."""
    columns = item_columns(log.schema)
    table = read_table(Path(log.path / ITEMS), ["item_id", *(c.name for c in columns)])
    lookups = {c.vocab: log.vocabulary(c.vocab).values for c in columns if c.vocab}
    arrays = {"item_id": table["item_id"].combine_chunks()}
    arrays |= {c.name: _raw(table[c.name].combine_chunks(), c, lookups) for c in columns}
    return pa.table(arrays).slice(NUM_RESERVED)


def _raw(array: pa.Array, column: Column, lookups: dict[str, pa.Array]) -> pa.Array:
    lookup = lookups.get(column.vocab or column.coding)
    if lookup is None:
        return array
    if column.shape == "scalar":
        return lookup.take(array)
    offsets = pc.subtract(array.offsets, array.offsets[0])
    return pa.ListArray.from_arrays(offsets, lookup.take(array.flatten()))
