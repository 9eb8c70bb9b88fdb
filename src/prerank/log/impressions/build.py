"""Flat impressions to requests: group the rows, verify them, build histories, write the log.

Everything is a sort and segment operations over columns: in memory, or on disk with a memory limit.
Histories are cut out request by request while writing, so they never all exist at once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from prerank.config import Config
from prerank.errors import InputError
from prerank.log.format.files import check_free
from prerank.log.impressions import flat
from prerank.log.impressions.engine import open_engine
from prerank.log.impressions.external import External
from prerank.log.impressions.grouping import codes_of, group_of, window_starts
from prerank.log.impressions.mapping import ImpressionMap
from prerank.log.impressions.rows import ImpressionRows
from prerank.log.impressions.source import BatchSource, open_source, read_flat
from prerank.log.write import write_log
from prerank.schema import Schema

__all__ = ["ImpressionReport", "from_impressions", "group_impressions"]

Index = npt.NDArray[np.int64]


class ImpressionReport(Config, frozen=True):
    """What became of the rows of a flat table.

    Parameters
    ----------
    num_rows : int
        Rows read.
    num_requests, num_candidates, num_users, num_items : int
        What they make up.
    num_merged : int
        Rows that showed an item again in the same request: labels merged by maximum, stage by
        the deepest, everything else from the first.
    dropped : dict of str to int
        Rows left out, by the column that was null.
    conflicts : dict of str to int
        Requests (items, for ``item.NAME``) that hold more than one value where one is expected:
        ``user``, ``time``, ``user.NAME``, ``context.NAME``, ``item.NAME``. The first value was
        kept (of ``time`` the earliest).
    """

    num_rows: int
    num_requests: int
    num_candidates: int
    num_users: int
    num_items: int
    num_merged: int = 0
    dropped: dict[str, int] = msgspec.field(default_factory=dict)
    conflicts: dict[str, int] = msgspec.field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """All of it that is not the size of the log, as named numbers."""
        return {
            "rows": self.num_rows,
            "merged_rows": self.num_merged,
            **{f"dropped:{name}": count for name, count in self.dropped.items()},
            **{f"conflicts:{name}": count for name, count in self.conflicts.items()},
        }


def from_impressions(
    source: pa.Table | BatchSource | str | Path,
    mapping: ImpressionMap,
    out: str | Path,
    *,
    memory_limit: str | None = None,
    made_by: str = "impressions",
    progress: Callable[[int], None] | None = None,
) -> ImpressionReport:
    """Read a flat table, group its impressions to requests and write a request log.

    Parameters
    ----------
    source : pyarrow.Table, BatchSource, path or URI
        A table, or what makes one; a CSV or TSV file (also ``.gz``, ``.zst``), a Parquet, Arrow or
        Feather file, or a folder of files of one of these kinds; see `open_source`.
    mapping : ImpressionMap
        Which column is what.
    out : path
        Folder of the log; appears only when the log is whole.
    memory_limit : str, optional
        Do not load the rows but sort them on disk, beside ``out``, with an engine that holds no
        more than this in memory (``2GB``); needs the extra ``frames``. The log is the same.
    progress : callable, optional
        Called with the number of requests just written.

    Raises
    ------
    InputError
        A file or column that is missing or not as the mapping says; ``out`` exists.
    """
    if memory_limit is not None:
        return _from_disk(source, mapping, Path(out), memory_limit, made_by, progress)
    schema, items, requests, report = group_impressions(
        read_flat(source, mapping.columns(), mapping.header), mapping
    )
    write_log(out, _named(schema, made_by), requests, items, progress=progress)
    return report


def _named(schema: Schema, made_by: str) -> Schema:
    lineage = msgspec.structs.replace(schema.lineage, made_by=made_by)
    return msgspec.structs.replace(schema, lineage=lineage)


def _from_disk(
    source: pa.Table | BatchSource | str | Path,
    mapping: ImpressionMap,
    out: Path,
    memory_limit: str,
    made_by: str,
    progress: Callable[[int], None] | None,
) -> ImpressionReport:
    check_free(out)
    opened = source
    if not isinstance(opened, BatchSource):
        opened = open_source(opened, mapping.header)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".impressions.", dir=out.parent) as folder:
        with open_engine(Path(folder), memory_limit) as engine:
            made = External(engine, opened, mapping, _without_nulls)
        pa.default_memory_pool().release_unused()
        write_log(out, _named(made.schema, made_by), made.tables(), made.items, progress=progress)
    return ImpressionReport(
        num_rows=made.num_rows,
        num_requests=made.num_requests,
        num_candidates=made.num_candidates,
        num_users=made.num_users,
        num_items=made.items.num_rows,
        num_merged=made.num_kept - made.num_candidates,
        dropped=dict(made.dropped),
        conflicts={name: count for name, count in made.conflicts.items() if count},
    )


def group_impressions(
    table: pa.Table, mapping: ImpressionMap
) -> tuple[Schema, pa.Table, Iterator[pa.Table], ImpressionReport]:
    """Group flat impressions to the raw tables that ``write_log`` takes.

    Candidates of a request stand in order of time, then of the table.

    Returns
    -------
    tuple
        The schema (vocabularies empty), the raw item table, the raw request tables in time order,
        and the report (complete before the first table is read).

    Examples
    --------
    >>> table = pa.table({
    ...     "uid": ["a", "a", "b", "a"], "vid": [1, 2, 1, 3],
    ...     "ts": [0, 1, 5, 100], "is_click": [1, 0, 0, 1],
    ... })
    >>> mapping = ImpressionMap(
    ...     user="uid", item="vid", time="ts", time_unit="s", window_ms=60_000,
    ...     labels={"click": "is_click"},
    ... )
    >>> schema, items, requests, report = group_impressions(table, mapping)
    >>> next(requests).select(["user", "time", "candidates.item"]).to_pylist()[0]
    {'user': 'a', 'time': 0, 'candidates.item': [1, 2]}
    >>> report.num_requests, report.num_candidates
    (3, 4)
    """
    num_rows = table.num_rows
    table, dropped = _without_nulls(read_flat(table, mapping.columns()), mapping)
    if not table.num_rows:
        raise InputError(f"no impression left of {num_rows} rows; dropped as null: {dropped}")
    order, starts = _sorted_requests(table, mapping)
    rows = ImpressionRows(table.take(pa.array(order)), starts, mapping)
    items = rows.items()
    report = ImpressionReport(
        num_rows=num_rows,
        num_requests=len(starts),
        num_candidates=int(rows.offsets[-1]),
        num_users=int(rows.user.max()) + 1,
        num_items=items.num_rows,
        num_merged=table.num_rows - int(rows.offsets[-1]),
        dropped=dropped,
        conflicts={name: count for name, count in rows.conflicts.items() if count},
    )
    schema = mapping.schema(dims=rows.dims, channels=rows.channels)
    return schema, items, rows.tables(), report


def _without_nulls(table: pa.Table, mapping: ImpressionMap) -> tuple[pa.Table, dict[str, int]]:
    """Drop rows without user, item, time or request; count each under its first null column."""
    dropped: dict[str, int] = {}
    for column in (mapping.request_id, mapping.user, mapping.item, mapping.time):
        if column is None:
            continue
        valid = pc.is_valid(table[column])
        if pa.types.is_floating(table[column].type):
            valid = pc.and_(valid, pc.invert(pc.fill_null(pc.is_nan(table[column]), False)))
        lost = table.num_rows - int(pc.sum(valid).as_py() or 0)
        if lost:
            dropped[column] = lost
            table = table.filter(valid)
    return table, dropped


def _sorted_requests(table: pa.Table, mapping: ImpressionMap) -> tuple[Index, Index]:
    """Return rows sorted by (request time, request, row time) and the first row per request."""
    time = flat.times(table, mapping.time, mapping.time_unit).to_numpy()
    if mapping.request_id is not None:
        key = codes_of(flat.ids(table, mapping.request_id))
        order = np.lexsort((time, key))
        starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    else:
        assert mapping.window_ms is not None
        key = codes_of(flat.ids(table, mapping.user))
        order = np.lexsort((time, key))
        starts = window_starts(key[order], time[order], mapping.window_ms, mapping.max_candidates)
    # Requests of one time keep the order in which the table first names them.
    first_row = np.minimum.reduceat(order, starts)
    by_time = np.lexsort((first_row, time[order[starts]]))
    rank = np.empty(len(starts), dtype=np.int64)
    rank[by_time] = np.arange(len(starts))
    request = rank[group_of(starts, len(order))]
    again = np.argsort(request, kind="stable")
    return order[again], np.flatnonzero(np.diff(request[again], prepend=-1))
