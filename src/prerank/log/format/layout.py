"""Columns of ``requests/part-*.parquet`` and ``items.parquet`` as the schema implies them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from prerank.log.format.columns import CANDIDATES, history_key
from prerank.schema import Feature, Schema

__all__ = [
    "ARROW",
    "Column",
    "Shape",
    "group_columns",
    "is_wanted",
    "item_columns",
    "request_columns",
]

Coding = Literal["vocab", "stage", "channel", "int", "float", "bool", "time", "raw"]
Shape = Literal["scalar", "list"]

ARROW: dict[Coding, tuple[pa.DataType, ...]] = {
    "vocab": (pa.int32(),),
    "stage": (pa.int8(),),
    "channel": (pa.int8(),),
    "int": (pa.int64(),),
    "float": (pa.float32(), pa.float64()),
    "bool": (pa.bool_(),),
    "time": (pa.int64(),),
    "raw": (pa.int64(), pa.string()),
}
"""Types of stored values by coding, the usual one first."""


@dataclass(frozen=True, slots=True)
class Column:
    """One stored column.

    Parameters
    ----------
    name : str
        Column name in the file.
    coding : str
        ``vocab`` (index of a raw value), ``stage``/``channel`` (code in the schema's list),
        ``int`` (null = -1), ``float`` (null = NaN), ``bool``, ``time`` (ms, never null), ``raw``.
    shape : {"scalar", "list"}
        One value per row, or a list per row.
    group : str
        Key of the ragged group that shares list lengths; the column's own name if none does.
    key : str
        Name of the column inside its group; empty where it is the only one.
    vocab : str
        Vocabulary of a ``vocab`` column.
    required : bool
        Whether a raw table must have it (features may be absent: all missing).
    dim : int
        Width of a vector; 0 for all others.
    """

    name: str
    coding: Coding
    shape: Shape = "scalar"
    group: str = ""
    key: str = ""
    vocab: str = ""
    required: bool = False
    dim: int = 0


def _feature(f: Feature, group: str = "") -> Column:
    coding: Coding = "vocab" if f.kind in ("categorical", "multi") else "float"
    shape: Shape = "list" if group or f.kind in ("multi", "vector") else "scalar"
    key = f.name if group else ""
    vocab = f.vocab if coding == "vocab" else ""
    return Column(f.column, coding, shape, group or f.column, key, vocab, dim=f.dim)


def request_columns(schema: Schema) -> list[Column]:
    """Return the columns of a request row, in file order."""
    columns = [
        Column("request_id", "raw", required=True),
        Column("user", "vocab", vocab="user", required=True),
        Column("time", "time", required=True),
        Column("observed_until", "int"),
    ]
    columns += [_feature(f) for f in schema.stored("user", "context")]
    for stream in schema.streams:
        group, start = history_key(stream), f"history.{stream}"
        columns.append(
            Column(f"{start}.item", "vocab", "list", group, "item", "item", required=True)
        )
        columns.append(Column(f"{start}.time", "time", "list", group, "time", required=True))
        columns += [_feature(f, group) for f in schema.stored("history") if f.stream == stream]
    columns += group_columns(schema)
    return columns


def is_wanted(column: Column, logged: frozenset[str]) -> bool:
    """Say whether a reader of some logged ranks and scores reads a column; others it always does.

    Examples
    --------
    >>> rank = Column("candidates.rank.rank", "int", "list", CANDIDATES, "rank.rank")
    >>> is_wanted(rank, frozenset()), is_wanted(rank, frozenset({"rank.rank"}))
    (False, True)
    """
    if column.name == f"{CANDIDATES}.scored_online":
        return any(name.startswith("score.") for name in logged)
    is_logged = column.name.startswith((f"{CANDIDATES}.rank.", f"{CANDIDATES}.score."))
    return not is_logged or column.key in logged


def group_columns(schema: Schema) -> list[Column]:
    """Return the columns of the candidates and their labels."""

    def column(name: str, coding: Coding, *, vocab: str = "", required: bool = False) -> Column:
        key = name.removeprefix(f"{CANDIDATES}.")
        return Column(name, coding, "list", CANDIDATES, key, vocab, required)

    columns = [
        column("candidates.item", "vocab", vocab="item", required=True),
        column("candidates.stage", "stage", required=True),
    ]
    if schema.channels:
        columns.append(column("candidates.channel", "channel"))
    columns += [column(f"candidates.rank.{stage}", "int") for stage in schema.ranks]
    columns += [column(f"candidates.score.{name}", "float") for name in schema.scores]
    for name in ("weight", "propensity", "sample_prob"):
        if getattr(schema, f"has_{name}"):
            columns.append(column(f"candidates.{name}", "float", required=True))
    if schema.has_scored_online:
        columns.append(column("candidates.scored_online", "bool", required=True))
    columns += [_feature(f, CANDIDATES) for f in schema.stored("candidate")]
    columns += [column(f"labels.{label.name}", "float") for label in schema.labels]
    return columns


def item_columns(schema: Schema) -> list[Column]:
    """Return the feature columns of ``items.parquet`` (beside ``item_id``)."""
    return [_feature(f) for f in schema.stored("item")]
