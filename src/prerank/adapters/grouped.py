"""Flat impressions plus tables of users and items, written as a log split by time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from prerank.adapters.parts import BY_TIME, by_time
from prerank.adapters.report import ImportReport
from prerank.log import write_log
from prerank.log.impressions import ImpressionMap, group_impressions
from prerank.schema import Feature, Lineage, Schema

__all__ = ["Sides", "num_unknown", "with_users", "write_grouped"]

Requests = Iterator[pa.Table]


@dataclass(frozen=True, slots=True)
class Sides:
    """What a data set says of users and items outside its impressions.

    Parameters
    ----------
    users : pyarrow.Table, optional
        ``user`` (raw id, distinct) and user features.
    items : pyarrow.Table, optional
        ``item_id`` (raw id, distinct) and item features.
    features : tuple of Feature
        Declarations of these features, and of those made by ``change``.
    streams : tuple of str
        History streams made by ``change``.
    change : callable, optional
        Takes the raw request tables and returns them with more columns.
    """

    users: pa.Table | None = None
    items: pa.Table | None = None
    features: tuple[Feature, ...] = ()
    streams: tuple[str, ...] = ()
    change: Callable[[Requests], Requests] | None = None


def write_grouped(
    out: str | Path,
    table: pa.Table,
    mapping: ImpressionMap,
    sides: Sides,
    *,
    made_by: str,
    notes: tuple[str, ...],
    counts: dict[str, int],
    progress: Callable[[int], None] | None,
) -> ImportReport:
    """Group impressions, add the sides, split by time and write the log.

    Returns
    -------
    ImportReport
        ``counts`` as given, and ``impressions``, ``merged_impressions`` (an item shown again in
        one request), ``users_without_row``, ``items_without_row`` where there are such tables.
    """
    schema, shown, requests, grouped = group_impressions(table, mapping)
    if sides.users is not None:
        requests = with_users(requests, sides.users)
    if sides.change is not None:
        requests = sides.change(requests)
    splits = by_time(_request_times(table, mapping))
    written = write_log(
        out,
        _with_sides(schema, sides, made_by, notes),
        requests,
        shown if sides.items is None else sides.items,
        splits=splits,
        splits_rule=BY_TIME,
        progress=progress,
    )
    counts = {**counts, "impressions": grouped.num_rows, "merged_impressions": grouped.num_merged}
    if sides.users is not None:
        users = pc.unique(table[mapping.user])
        counts["users_without_row"] = num_unknown(users, sides.users["user"])
    if sides.items is not None:
        counts["items_without_row"] = num_unknown(shown["item_id"], sides.items["item_id"])
    return ImportReport(
        num_requests=written.num_requests,
        num_candidates=written.num_candidates,
        num_users=grouped.num_users,
        num_items=written.num_items,
        parts={name: len(rows) for name, rows in splits.items()},
        counts=counts,
        notes=notes,
    )


def _with_sides(schema: Schema, sides: Sides, made_by: str, notes: tuple[str, ...]) -> Schema:
    return msgspec.structs.replace(
        schema,
        features=(*schema.features, *sides.features),
        streams=(*schema.streams, *sides.streams),
        lineage=Lineage(made_by=made_by, notes=notes),
    )


def _request_times(table: pa.Table, mapping: ImpressionMap) -> npt.NDArray[np.int64]:
    """Return the time of every request ``[R]`` in ms, ascending."""
    assert mapping.request_id is not None
    assert mapping.time_unit == "ms"
    grouped = table.group_by(mapping.request_id).aggregate([(mapping.time, "min")])
    return np.sort(np.asarray(grouped[f"{mapping.time}_min"].to_numpy(), dtype=np.int64))


def with_users(requests: Requests, users: pa.Table) -> Requests:
    """Add the columns of the users' table to tables of requests."""
    known = users["user"].combine_chunks()
    for table in requests:
        row = pc.index_in(table["user"], value_set=known)
        for name in users.column_names[1:]:
            table = table.append_column(name, users[name].take(row))  # noqa: PLW2901
        yield table


def num_unknown(found: pa.Array, listed: pa.ChunkedArray) -> int:
    """Return how many of the ids found have no row in a table."""
    return int(pc.sum(pc.invert(pc.is_in(found, value_set=listed.combine_chunks()))).as_py() or 0)
