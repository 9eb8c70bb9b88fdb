"""Requests of a log as a client would have sent them: for self-tests, load tests and examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from prerank.log import Log
from prerank.log.format.raw import raw_requests
from prerank.schema import Schema
from prerank.serving.messages import Candidates, RankRequest, User

__all__ = ["requests_of"]


def requests_of(log: Log, rows: Sequence[int], *, columnar: bool = False) -> Iterator[RankRequest]:
    """Yield the requests in some rows of a log with their raw values, in log order.

    Parameters
    ----------
    log : Log
        The log.
    rows : sequence of int
        Request rows.
    columnar : bool
        Histories as one list per column, which is shorter, instead of one object per event.
    """
    wanted = np.unique(np.asarray(rows, dtype=np.int64))
    starts = log._starts
    groups = np.unique(np.searchsorted(starts, wanted, side="right") - 1)
    for group, table in zip(groups.tolist(), raw_requests(log, groups.tolist()), strict=True):
        first, stop = int(starts[group]), int(starts[group + 1])
        mine = wanted[(wanted >= first) & (wanted < stop)] - first
        for row in table.take(mine).to_pylist():
            yield _request(row, log.schema, columnar=columnar)


def _request(row: dict[str, Any], schema: Schema, *, columnar: bool) -> RankRequest:
    features: dict[str, list[Any]] = {
        f.name: row[f.column] for f in schema.stored("candidate") if f.column in row
    }
    if schema.channels:
        features["channel"] = row["candidates.channel"]
    return RankRequest(
        candidates=Candidates(ids=row["candidates.item"], features=features),
        request_id=row["request_id"],
        time=row["time"],
        user=User(row["user"], _owned(row, schema, "user")),
        context=_owned(row, schema, "context"),
        history={stream: _events(row, schema, stream, columnar) for stream in schema.streams},
    )


def _owned(row: dict[str, Any], schema: Schema, owner: Any) -> dict[str, Any]:
    return {f.name: row[f.column] for f in schema.stored(owner) if row[f.column] is not None}


def _events(row: dict[str, Any], schema: Schema, stream: str, columnar: bool) -> Any:
    names = {"item": f"history.{stream}.item", "time": f"history.{stream}.time"}
    names |= {f.name: f.column for f in schema.stored("history") if f.stream == stream}
    columns = {name: row[column] for name, column in names.items()}
    if columnar:
        return columns
    return [dict(zip(columns, event, strict=True)) for event in zip(*columns.values(), strict=True)]
