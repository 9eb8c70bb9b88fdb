"""Side columns: late labels and teacher scores, row-aligned with the requests they belong to.

``columns/NAME/part-*.parquet`` has the rows and row groups of ``requests/part-*.parquet`` and one
column, ``NAME``; it stands in for that column of the request file. The log itself is not rewritten.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
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

_KEYS = ("request_id", "item")
Values = Mapping[str, npt.NDArray[Any]]
Compute = Callable[[Columns], Values]
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def add_columns(
    path: str | Path,
    plan: Callable[[Log], tuple[Schema, Sequence[str], Compute]],
    *,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Add or replace columns of a log, one row group at a time.

    Parameters
    ----------
    path : path
        The log.
    plan : callable
        Given the log as it is when no one else can change it, returns the schema of the changed
        log, which declares the columns; their names as in a request row (``labels.NAME``,
        ``candidates.score.NAME``, ``observed_until``); and ``compute``: columns of one row group,
        ``request_id`` included, to values by name, float32 ``[I]`` for lists (NaN = null), int64
        ``[R]`` for ``observed_until``.
    progress : callable, optional
        Called with the number of requests just done.

    Raises
    ------
    InputError
        A name that cannot be a column; a value that is infinite.
    """
    with revise(path) as revision:
        log = revision.log
        revision.schema, names, compute = plan(log)
        for name in names:
            _check_name(name)
        writers: dict[str, pq.ParquetWriter] = {}
        current = ""
        try:
            for group, columns in enumerate(log.read(range(log.num_groups), with_ids=True)):
                file = Path(log.file_of(group)).name
                if file != current:
                    _close(writers)
                    writers, current = {}, file
                values = compute(columns)
                for name in names:
                    table = pa.table({name: _array(name, values[name], columns)})
                    if name not in writers:
                        target = revision.replace(f"{COLUMNS}/{name}/{file}")
                        writers[name] = pq.ParquetWriter(
                            target, table.schema, compression="zstd", write_page_checksum=True
                        )
                    writers[name].write_table(table, row_group_size=table.num_rows)
                if progress is not None:
                    progress(columns.num_requests)
        finally:
            _close(writers)


def _check_name(column: str) -> None:
    name = column.removeprefix("labels.").removeprefix("candidates.score.")
    if not _NAME.fullmatch(name):
        raise InputError(
            f"column '{column}': a name is of letters, digits, '_', '.' and '-' "
            "and begins with a letter or digit"
        )


def _close(writers: dict[str, pq.ParquetWriter]) -> None:
    for writer in writers.values():
        writer.close()


def _array(name: str, values: npt.NDArray[Any], columns: Columns) -> pa.Array:
    if name == "observed_until":
        return pa.array(values.astype(np.int64))
    flat = values.astype(np.float32)
    if np.isinf(flat).any():
        raise InputError(f"column '{name}': a value is infinite; expected numbers or null")
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
        ``request_id``, ``item`` (raw) and one column per label, all others. A null leaves what is
        stored; of repeated rows the last value counts.
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
        No label column, a missing key column, keys of another type than the log's, a value that
        is no number, a window of a label that has another one or is not joined.

    Examples
    --------
    >>> import tempfile
    >>> from prerank.log import write_log
    >>> from prerank.schema import Schema
    >>> def day(start):
    ...     return pa.table({
    ...         "request_id": [start, start + 1],
    ...         "user": [start, 7],
    ...         "time": [start * 86_400_000, start * 86_400_000 + 1],
    ...         "candidates.item": [[1, start + 2]] * 2,
    ...         "candidates.stage": [["exposed", "exposed"]] * 2,
    ...         "labels.click": [[1.0, 0.0]] * 2,
    ...     })
    >>> path = tempfile.mkdtemp() + "/log"
    >>> _ = write_log(path, Schema(labels=(Label(name="click"),)), [day(1)])
    >>> late = pa.table({"request_id": [1, 2, 9], "item": [3, 1, 1], "buy": [1.0, 1.0, 1.0]})
    >>> join_labels(path, late, observed_until=2 * 86_400_000, window_ms={"buy": 3_600_000})
    JoinReport(num_rows=3, num_matched=2, num_unmatched=1, changed={'buy': 2})
    """
    for key in _KEYS:
        if key not in late.column_names:
            raise InputError(f"labels: no column '{key}'; {did_you_mean(key, late.column_names)}")
    labels = [name for name in late.column_names if name not in _KEYS]
    if not labels:
        raise InputError("labels: no label column beside request_id and item")
    matched = np.zeros(late.num_rows, dtype=np.bool_)
    changed = dict.fromkeys(labels, 0)

    def plan(log: Log) -> tuple[Schema, list[str], Compute]:
        schema = _with_labels(log.schema, labels, window_ms or {})
        table = _Late(late, labels, log)

        def compute(columns: Columns) -> Values:
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
                before = columns.scalars["observed_until"]
                out["observed_until"] = np.maximum(before, observed_until)
            return out

        names = [f"labels.{name}" for name in labels]
        return schema, names + ["observed_until"] * (observed_until is not None), compute

    add_columns(path, plan, progress=progress)
    num_matched = int(matched.sum())
    return JoinReport(late.num_rows, num_matched, late.num_rows - num_matched, changed)


def _with_labels(schema: Schema, labels: Sequence[str], windows: Mapping[str, int]) -> Schema:
    """Declare labels that are new."""
    known = {label.name: label for label in schema.labels}
    for name, window in windows.items():
        if name not in labels:
            raise InputError(f"labels: window of '{name}'; {did_you_mean(name, labels)}")
        if name in known and known[name].window_ms != window:
            raise InputError(
                f"labels: window of '{name}' is {window} ms, but the log has the label with "
                f"{known[name].window_ms or 'none'}; leave the window out"
            )
    new = tuple(Label(name=n, window_ms=windows.get(n)) for n in labels if n not in known)
    return msgspec.structs.replace(schema, labels=(*schema.labels, *new))


class _Late:
    """Late labels, to be looked up by row group."""

    def __init__(self, late: pa.Table, labels: list[str], log: Log) -> None:
        try:
            item = log.items.ids.encode(late["item"]).astype(np.int64)
        except InputError as error:
            raise InputError(f"labels: column 'item': {error}") from None
        stored = pa.array(next(log.read([0], ["request_id"])).scalars["request_id"]).type
        ids = late["request_id"]
        try:
            ids = ids.cast(stored)
        except pa.ArrowException:
            raise InputError(
                f"labels: column 'request_id' is {ids.type}; the log has {stored}"
            ) from None
        known = np.flatnonzero(pc.is_valid(ids).to_numpy() & (item >= NUM_RESERVED))
        values = ids.take(pa.array(known)).to_numpy()
        order = np.argsort(values, kind="stable")
        self.ids: npt.NDArray[Any] = values[order]
        self.rows: npt.NDArray[np.int64] = known[order]
        self.item = item
        self.values: dict[str, npt.NDArray[np.float32]] = {}
        for name in labels:
            try:
                column = late[name].cast(pa.float32())
            except pa.ArrowException:
                raise InputError(
                    f"labels: column '{name}' is {late[name].type}; expected numbers"
                ) from None
            self.values[name] = column.to_numpy().astype(np.float32, copy=False)

    def find(self, columns: Columns) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return rows of the table and the candidates ``[I]`` they belong to, in table order."""
        here = columns.scalars["request_id"]
        low = np.searchsorted(self.ids, here, side="left")
        count = np.searchsorted(self.ids, here, side="right") - low
        ends = np.cumsum(count)
        place = np.arange(ends[-1]) + np.repeat(low - ends + count, count)
        request = np.repeat(np.arange(len(here)), count)
        by_row = np.argsort(self.rows[place], kind="stable")
        request, rows = request[by_row], self.rows[place][by_row]
        group = columns.groups[CANDIDATES]
        owner = np.repeat(np.arange(len(here)), np.diff(group.offsets))
        size = np.int64(1) << 32
        key = owner * size + group.values["item"]
        order = np.argsort(key, kind="stable")
        wanted = request * size + self.item[rows]
        at = np.searchsorted(key[order], wanted)
        hit = np.zeros(len(rows), dtype=np.bool_)
        inside = at < len(key)
        hit[inside] = key[order[at[inside]]] == wanted[inside]
        return rows[hit], order[at[hit]]
