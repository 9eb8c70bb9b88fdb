"""The item table of a log, in memory: row number = item index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pyarrow.compute as pc

from prerank.errors import InputError
from prerank.log.format.columns import Group
from prerank.log.format.decode import list_ends, to_numpy
from prerank.log.format.files import DAMAGED, ITEM_STATS, read_table
from prerank.log.format.item_stats import ItemStats
from prerank.log.format.layout import item_columns
from prerank.log.format.vocab import NEVER, Vocabulary
from prerank.schema import ITEM_STATS_FEATURE, Schema

__all__ = ["ItemTable"]


@dataclass(frozen=True, slots=True, eq=False)
class ItemTable:
    """Encoded item features.

    Parameters
    ----------
    ids : Vocabulary
        Raw item ids by index, and when each was first seen.
    scalars : dict of str to ndarray ``[num_items]`` (vectors ``[num_items, dim]``)
        Vocabulary rows of categorical features; raw floats with NaN of dense ones.
    groups : dict of str to Group
        Multi-valued features.
    stats : ItemStats, optional
        Values over time, where the log has statistics.
    """

    ids: Vocabulary
    scalars: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    stats: ItemStats | None = None

    @property
    def num_items(self) -> int:
        """Number of rows, the two reserved ones included."""
        return len(self.ids)

    @classmethod
    def load(
        cls, path: Path, schema: Schema, *, has_grown: Callable[[], bool] = lambda: False
    ) -> ItemTable:
        """Read ``items.parquet``; of one that has grown only the rows that the schema counts.

        Raises
        ------
        InputError
            The file is missing, damaged, or does not fit the schema.
        """
        columns = item_columns(schema)
        table = read_table(path, ["item_id", "first_seen_ms", *(c.name for c in columns)])
        num_rows = table.num_rows
        if num_rows > schema.size("item") and has_grown():
            table = table.slice(0, schema.size("item"))
        times = pc.fill_null(table["first_seen_ms"], NEVER).to_numpy()
        ids = Vocabulary.of(table["item_id"].combine_chunks(), "item", times, where=str(path))
        if len(ids) != schema.size("item"):
            raise InputError(
                f"{path}: {len(ids)} rows, but schema.json counts {schema.size('item')} items; "
                f"{DAMAGED}"
            )
        scalars: dict[str, npt.NDArray[Any]] = {}
        groups: dict[str, Group] = {}
        for column in columns:
            array = table[column.name].combine_chunks()
            at = f"{path}: column '{column.name}'"
            if column.shape == "scalar":
                scalars[column.name] = to_numpy(array, column, schema, at)
                continue
            ends, flat = list_ends(array, column, at)
            values = to_numpy(flat, column, schema, at)
            if column.dim:
                scalars[column.name] = values.reshape(-1, column.dim)
            else:
                groups[column.name] = Group(ends, {column.key: values})
        names = [f.name for f in schema.features if f.of == ITEM_STATS_FEATURE]
        stats = None
        if names:
            stats = ItemStats.load(path.parent / ITEM_STATS / "part-00000.parquet", names, num_rows)
        return cls(ids, scalars, groups, stats)
