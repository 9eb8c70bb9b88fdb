"""The same impressions on disk in three layouts: request rows, flat sorted, flat shuffled.

All three are written as logs with the same columns, so one reader reads them; a flat row is a
request with one candidate. A shuffled log is out of time order, as tables of impressions usually
are: fine to train on, no log that ``data check`` would pass.

Shapes: ``R`` requests, ``I`` candidates.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prerank.log import Log, Part, open_log
from prerank.log.format.columns import CANDIDATES
from prerank.log.format.files import (
    ITEMS,
    MANIFEST,
    REQUESTS,
    SCHEMA,
    VOCAB,
    FileEntry,
    Manifest,
    atomic_folder,
    digest,
    log_id_of,
    write_json,
)
from prerank.log.format.layout import Column, request_columns
from prerank.log.format.parts import PartWriter
from prerank.log.order import plan_windows
from prerank.rng import hash64, stream, uniform
from prerank.sampling.choose import evenly, place_in_segment

__all__ = ["LAYOUTS", "Layout", "request_bytes", "write_layout"]

Layout = Literal["requests", "sorted", "shuffled"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
"""One row per request; one per impression, those of a request together; one in random order."""

Index = npt.NDArray[np.int64]
_PICK, _ORDER = stream("layouts/pick"), stream("layouts/order")


def write_layout(
    source: Part,
    out: str | Path,
    layout: Layout,
    *,
    per_request: int,
    max_history: int | None = None,
) -> Log:
    """Write some candidates of every request of a part as a log of the given layout.

    Which candidates does not depend on the layout: of each request up to half from the shown ones,
    the rest from the others, evenly.

    Parameters
    ----------
    source : Part
        What to take from.
    out : path
        Folder to make.
    layout : {"requests", "sorted", "shuffled"}
        How impressions lie on disk.
    per_request : int
        Candidates of each request; all it has, if they are fewer.
    max_history : int, optional
        Keep only the last events of each history, those that a model will read.
    """
    log, out = source.log, Path(out)
    columns = request_columns(log.schema)
    with atomic_folder(out) as folder:
        (folder / REQUESTS).mkdir()
        shutil.copy(log.path / ITEMS, folder / ITEMS)
        if (log.path / VOCAB).is_dir():
            shutil.copytree(log.path / VOCAB, folder / VOCAB)
        tables = [_chosen(t, columns, log, per_request, max_history) for t in _tables(source)]
        with contextlib.closing(PartWriter(folder / REQUESTS)) as writer:
            for table in _laid_out(tables, columns, layout):
                writer.add(table)
            writer.finish()
        files = {
            str(path.relative_to(folder)): FileEntry(
                path.stat().st_size, digest(path), *writer.rows.get(path.name, (0, 0))
            )
            for path in sorted(folder.rglob("*.parquet"))
        }
        log_id = log_id_of(files)
        lineage = msgspec.structs.replace(log.schema.lineage, log_id=log_id, revision=0)
        write_json(msgspec.structs.replace(log.schema, lineage=lineage), folder / SCHEMA)
        num_rows = sum(entry.rows for entry in files.values())
        num_candidates = sum(int(_lists(t, "candidates.item")[0][-1]) for t in tables)
        manifest = Manifest(log_id, log_id, num_rows, num_candidates, files, {})
        write_json(manifest, folder / MANIFEST)
    return open_log(out)


def request_bytes(log: Log) -> int:
    """Return the bytes of the request rows on disk, without items and vocabularies."""
    files = log.manifest.files.items()
    return sum(entry.bytes for name, entry in files if name.startswith(f"{REQUESTS}/"))


def _tables(part: Part) -> Iterator[pa.Table]:
    """Yield the encoded rows of a part, one row group at a time."""
    log = part.log
    columns = request_columns(log.schema)
    windows = plan_windows(part.rows, log._starts, 0, 0, shuffle=False, groups_per_window=1)
    groups = [group for window in windows for group in window.groups]
    for first, _, table in log.tables(groups, columns):
        rows = part.rows.within(first, first + table.num_rows) - first
        yield table.take(pa.array(rows)).append_column("row", pa.array(rows + first))


def _lists(table: pa.Table, name: str) -> tuple[Index, pa.Array]:
    """Return offsets ``[R + 1]`` from 0 and the flat values of a list column."""
    array = table[name].combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    ends = array.offsets.to_numpy().astype(np.int64)
    return ends - ends[0], array.flatten()


def _as_lists(values: pa.Array, lengths: Index) -> pa.Array:
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), values)


def _chosen(
    table: pa.Table, columns: list[Column], log: Log, per_request: int, max_history: int | None
) -> pa.Table:
    """Return the request rows with their chosen candidates and the end of their histories."""
    ends, stage = _lists(table, "candidates.stage")
    num = table.num_rows
    of = np.repeat(np.arange(num), np.diff(ends))
    is_shown = stage.to_numpy() == len(log.schema.stages) - 1
    place = place_in_segment(of, num)
    draws = uniform(_PICK, table["row"].to_numpy()[of], place)
    shown, other = np.flatnonzero(is_shown), np.flatnonzero(~is_shown)
    num_other = np.bincount(of[other], minlength=num)
    half = np.full(num, max(1, per_request // 2))
    shown = shown[evenly(draws[shown], of[shown], np.maximum(half, per_request - num_other))]
    rest = per_request - np.bincount(of[shown], minlength=num)
    other = other[evenly(draws[other], of[other], rest)]
    kept = np.sort(np.concatenate([shown, other]))
    lengths = np.bincount(of[kept], minlength=num)
    result = table
    for column in columns:
        if column.group == CANDIDATES:
            values = _lists(table, column.name)[1].take(pa.array(kept))
            result = _with(result, column.name, _as_lists(values, lengths))
        elif column.name.startswith("history.") and max_history is not None:
            starts, values = _lists(table, column.name)
            num_events = np.minimum(np.diff(starts), max_history)
            events = np.repeat(starts[1:] - np.cumsum(num_events), num_events)
            events += np.arange(num_events.sum())
            result = _with(
                result, column.name, _as_lists(values.take(pa.array(events)), num_events)
            )
    return result


def _with(table: pa.Table, name: str, array: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, array)


def _laid_out(tables: list[pa.Table], columns: list[Column], layout: Layout) -> Iterator[pa.Table]:
    names = [column.name for column in columns]
    if layout == "requests":
        yield from (table.select(names) for table in tables)
        return
    whole = tables if layout == "sorted" else [pa.concat_tables(tables)]
    for table in whole:
        ends, _ = _lists(table, "candidates.item")
        of = np.repeat(np.arange(table.num_rows), np.diff(ends))
        order = np.arange(len(of))
        if layout == "shuffled":
            order = np.argsort(hash64(_ORDER, order), kind="stable")
        at, rows = pa.array(order), pa.array(of[order])
        ones = np.ones(len(of), dtype=np.int64)
        yield pa.table(
            {
                column.name: _as_lists(_lists(table, column.name)[1].take(at), ones)
                if column.group == CANDIDATES
                else table[column.name].take(rows)
                for column in columns
            }
        )
