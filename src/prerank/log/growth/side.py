"""Side columns: late labels and teacher scores, row-aligned with the requests they belong to.

``columns/NAME/part-*.parquet`` has the rows and row groups of ``requests/part-*.parquet`` and one
column, ``NAME``; it stands in for that column of the request file. The log itself is not rewritten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prerank.errors import InputError, did_you_mean
from prerank.log.format.columns import CANDIDATES, Columns
from prerank.log.format.files import COLUMNS
from prerank.log.growth.revise import revise
from prerank.log.log import Log
from prerank.schema import NUM_RESERVED, Label, Schema

__all__ = ["JoinReport", "add_columns", "join_labels"]

Values = Mapping[str, npt.NDArray[Any]]


def add_columns(
    path: str | Path,
    schema: Schema,
    names: tuple[str, ...],
    compute: Callable[[Log, Columns], Values],
    *,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Add or replace columns of a log, one row group at a time.

    Parameters
    ----------
    path : path
        The log.
    schema : Schema
        Of the changed log, which declares the columns.
    names : tuple of str
        Columns as named in a request row: ``labels.NAME``, ``candidates.score.NAME``,
        ``observed_until``.
    compute : callable
        ``(log, columns) -> {name: values}`` for one row group, ``request_id`` included: float32
        ``[I]`` for lists (NaN = null), int64 ``[R]`` for ``observed_until``.
    """
    with revise(path) as revision:
        log = revision.log
        revision.schema = schema
        writers: dict[str, pq.ParquetWriter] = {}
        current = ""
        try:
            for group, columns in enumerate(log.read(range(log.num_groups), with_ids=True)):
                file = Path(log.file_of(group)).name
                if file != current:
                    _close(writers)
                    writers, current = {}, file
                values = compute(log, columns)
                for name in names:
                    table = pa.table({name: _array(name, values[name], columns)})
                    if name not in writers:
                        target = revision.replace(f"{COLUMNS}/{name}/{file}")
                        writers[name] = pq.ParquetWriter(
                            target, table.schema, compression="zstd", write_page_checksum=True
                        )
                    writers[name].write_table(table, row_group_size=table.num_rows or 1)
                if progress is not None:
                    progress(columns.num_requests)
        finally:
            _close(writers)


def _close(writers: dict[str, pq.ParquetWriter]) -> None:
    for writer in writers.values():
        writer.close()


def _array(name: str, values: npt.NDArray[Any], columns: Columns) -> pa.Array:
    if name == "observed_until":
        return pa.array(values.astype(np.int64))
    flat = values.astype(np.float32)
    offsets = columns.candidates.offsets.astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, mask=np.isnan(flat)))


class JoinReport(msgspec.Struct, frozen=True):
    """What became of late labels.

    Parameters
    ----------
    num_rows, num_matched, num_unmatched : int
        Rows of the table; those that found their candidate, and those that did not.
    changed : dict of str to int
        Candidates per label whose value changed.
    """

    num_rows: int
    num_matched: int
    num_unmatched: int
    changed: dict[str, int]


def join_labels(
    path: str | Path,
    late: pa.Table,
    *,
    observed_until: int | None = None,
    window_ms: Mapping[str, int] | None = None,
    progress: Callable[[int], None] | None = None,
) -> JoinReport:
    """Join late labels to a log.

    Parameters
    ----------
    path : path
        The log.
    late : pyarrow.Table
        ``request_id``, ``item`` (raw) and one column per label. A null leaves what is stored; of
        repeated rows the last value counts.
    observed_until : int, optional
        Until when feedback has now been collected (ms); never moves back.
    window_ms : mapping of str to int, optional
        Windows of labels that are new to the log; without one a null stays unknown.

    Returns
    -------
    JoinReport
        Matched and unmatched rows, changed labels.

    Raises
    ------
    InputError
        No label column, a missing key column, keys of another type than the log's.
    """
    log = Log(Path(path))
    keys = ("request_id", "item")
    for key in keys:
        if key not in late.column_names:
            raise InputError(f"labels: no column '{key}'; {did_you_mean(key, late.column_names)}")
    labels = [name for name in late.column_names if name not in keys]
    if not labels:
        raise InputError("labels: no label column beside request_id and item")
    known = {label.name for label in log.schema.labels}
    new = tuple(Label(name=n, window_ms=(window_ms or {}).get(n)) for n in labels if n not in known)
    schema = msgspec.structs.replace(log.schema, labels=(*log.schema.labels, *new))
    table = _Late(late, labels, log)
    matched = np.zeros(late.num_rows, dtype=np.bool_)
    changed = dict.fromkeys(labels, 0)

    def compute(opened: Log, columns: Columns) -> Values:
        rows, position = table.find(columns)
        matched[rows] = True
        out: dict[str, npt.NDArray[Any]] = {}
        group = columns.groups[CANDIDATES]
        for name in labels:
            key = f"labels.{name}"
            nothing = np.full(int(group.offsets[-1]), np.nan, dtype=np.float32)
            stored = group.values.get(key, nothing).astype(np.float32)
            fresh = table.values[name][rows]
            given = ~np.isnan(fresh)
            merged = stored.copy()
            merged[position[given]] = fresh[given]
            same = (merged == stored) | (np.isnan(merged) & np.isnan(stored))
            changed[name] += int((~same).sum())
            out[key] = merged
        if observed_until is not None:
            out["observed_until"] = np.maximum(columns.scalars["observed_until"], observed_until)
        return out

    names = [f"labels.{name}" for name in labels]
    if observed_until is not None:
        names.append("observed_until")
    add_columns(path, schema, tuple(names), compute, progress=progress)
    num_matched = int(matched.sum())
    return JoinReport(late.num_rows, num_matched, late.num_rows - num_matched, changed)


class _Late:
    """Late labels sorted by (request id, item index), to be looked up by row group."""

    def __init__(self, late: pa.Table, labels: list[str], log: Log) -> None:
        item = log.items.ids.encode(late["item"]).astype(np.int64)
        ids = late["request_id"].combine_chunks()
        first = next(log.read([0], ["request_id"])).scalars["request_id"]
        stored = pa.array(first).type
        try:
            self.ids = ids.cast(stored)
        except pa.ArrowException:
            raise InputError(
                f"labels: column 'request_id' is {ids.type}; the log has {stored}"
            ) from None
        self.item = np.where(item >= NUM_RESERVED, item, -1)
        self.values: dict[str, npt.NDArray[np.float32]] = {}
        for name in labels:
            try:
                column = late[name].cast(pa.float32())
            except pa.ArrowException:
                raise InputError(
                    f"labels: column '{name}' is {late[name].type}; expected numbers"
                ) from None
            self.values[name] = column.to_numpy()

    def find(self, columns: Columns) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return rows of the table and the candidates ``[I]`` they belong to, in table order."""
        here = pa.array(columns.scalars["request_id"])
        request = pc.fill_null(pc.index_in(self.ids, value_set=here), -1).to_numpy()
        rows = np.flatnonzero((request >= 0) & (self.item >= 0))
        group = columns.groups[CANDIDATES]
        lengths = np.diff(group.offsets)
        owner = np.repeat(np.arange(len(lengths)), lengths)
        size = np.int64(1) << 32
        key = owner * size + group.values["item"]
        order = np.argsort(key, kind="stable")
        wanted = request[rows].astype(np.int64) * size + self.item[rows]
        at = np.searchsorted(key[order], wanted)
        at = np.minimum(at, max(len(key) - 1, 0))
        hit = (key[order][at] == wanted) if len(key) else np.zeros(len(rows), np.bool_)
        return rows[hit], order[at[hit]]
