"""The items of a bundle as they are now: its own, those added, replaced and removed since.

A row of the catalogue is an item. Items keep their rows; new ones follow at the end. A replaced
item keeps its row, its embedding and its history, and gets the features and states that came later.

Shapes: ``U`` rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prerank.log.format.columns import Group
from prerank.log.format.item_stats import ItemStats
from prerank.log.format.items import ItemTable
from prerank.log.format.vocab import MISSING_ROW, UNKNOWN_ROW
from prerank.log.inputs.assemble import Assembler
from prerank.serving.encode import Encoder, Numbered
from prerank.serving.ids import IdIndex
from prerank.serving.messages import Id, Value
from prerank.serving.states import ItemStates

__all__ = ["Added", "AddedItem", "Catalogue", "StatsRow"]

Rows = npt.NDArray[np.int64]
_LONG_AGO = np.iinfo(np.int64).min // 2


class AddedItem(msgspec.Struct, frozen=True, array_like=True):
    """An item that came later: raw id, raw features, when (ms)."""

    id: Id
    features: dict[str, Value]
    added_ms: int = 0


class StatsRow(msgspec.Struct, frozen=True, array_like=True):
    """Statistics of an item from a moment (ms) on."""

    id: Id
    valid_from_ms: int
    values: dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Added:
    """What came after the bundle was made, all segments together.

    Parameters
    ----------
    items : list of AddedItem
        Each id once.
    removed : set of id
        Candidates no more.
    stats : list of StatsRow
        In the order in which they came.
    states : list of dict of str to Tensor
        Packed states of ``items``, one mapping per tier.
    """

    items: list[AddedItem] = field(default_factory=list)
    removed: set[Id] = field(default_factory=set)
    stats: list[StatsRow] = field(default_factory=list)
    states: list[dict[str, Tensor]] = field(default_factory=list)


class Catalogue:
    """Raw ids to rows, features and states.

    Parameters
    ----------
    items : ItemTable
        The bundle's own.
    encoder : Encoder
        For the raw features of added items.
    assemblers : sequence of Assembler
        Over the bundle's own items, one per set of transforms.
    states : sequence of ItemStates
        Of the bundle's own items, one per tier.
    added : Added, optional
        What came later.

    Attributes
    ----------
    items, assemblers, states
        The same with what came later.
    first_seen_ms : ndarray ``[U]`` int64
        When each item first was a candidate or was added.
    """

    def __init__(
        self,
        items: ItemTable,
        encoder: Encoder,
        assemblers: Sequence[Assembler],
        states: Sequence[ItemStates],
        added: Added | None = None,
    ) -> None:
        self.encoder = encoder
        self.added = added or Added()
        self.num_own = items.num_items
        times = items.ids.first_seen_ms.fill_null(_LONG_AGO)
        self.first_seen_ms = np.asarray(times.to_numpy(zero_copy_only=False), dtype=np.int64)
        self._index = IdIndex(items.ids)
        self._state_rows: Tensor | None = None
        self.items, self.assemblers, self.states = items, list(assemblers), list(states)
        if self.added.items:
            self._extend(items, assemblers, states)
        if self.added.stats:
            self._update_stats()
        self._is_gone: npt.NDArray[np.bool_] | None = None
        if self.added.removed:
            self._is_gone = np.zeros(self.num_items, dtype=np.bool_)
            self._is_gone[self._index.find(list(self.added.removed))] = True

    @property
    def num_items(self) -> int:
        """Rows ``U``, two reserved ones included."""
        return self.items.num_items

    @property
    def id_type(self) -> type:
        """Type of raw ids, ``int`` or ``str``."""
        return self._index.kind

    @property
    def num_removed(self) -> int:
        """Rows that are candidates no more."""
        return 0 if self._is_gone is None else int(self._is_gone[UNKNOWN_ROW + 1 :].sum())

    def find(self, ids: Sequence[Any] | bytes) -> Rows:
        """Return the row of each candidate; 1 for an unknown or removed one.

        Raises
        ------
        BadRequestError
            Ids of another type than the bundle's.
        """
        rows = self._index.find(ids)
        if self._is_gone is not None:
            rows = np.where(self._is_gone[rows], UNKNOWN_ROW, rows)
        return rows

    def find_past(self, ids: Sequence[Any]) -> Rows:
        """Return the row of each item of a history, removed ones too; 0 for None."""
        if None not in ids:
            return self._index.find(ids)
        rows = np.full(len(ids), MISSING_ROW, dtype=np.int64)
        rows[[i is not None for i in ids]] = self._index.find([i for i in ids if i is not None])
        return rows

    def raw(self, ids: Sequence[Id] | bytes) -> Sequence[Id]:
        """Return ids as a list, packed ones unpacked."""
        return np.frombuffer(ids, dtype="<i8").tolist() if isinstance(ids, bytes) else ids

    def item_rows(self, index: int, rows: Rows) -> npt.NDArray[np.int32]:
        """Return the row in the table of item ids of catalogue rows, for a set of transforms."""
        table = self.assemblers[index]._item_rows
        if table is None:
            table = _item_rows(self.assemblers[index], self.num_items)
        return table[rows]

    def state_rows(self, rows: Rows) -> Tensor:
        """Return where the states of rows ``[F]`` are; rows beyond the catalogue stay beyond."""
        at = torch.from_numpy(rows)
        if self._state_rows is None:
            return at
        num, moved = self.num_items, self._state_rows
        beyond = at - num + self.num_own + len(self.added.items)
        return torch.where(at < num, moved[at.clamp(max=num - 1)], beyond)

    def _extend(
        self, items: ItemTable, assemblers: Sequence[Assembler], states: Sequence[ItemStates]
    ) -> None:
        """Put added items into place: ``source`` says where each row's values come from."""
        added = self.added.items
        num = items.num_items
        rows = self._index.find([item.id for item in added])
        is_new = rows == UNKNOWN_ROW
        source = np.concatenate([np.arange(num), num + np.flatnonzero(is_new)])
        source[rows[~is_new]] = num + np.flatnonzero(~is_new)
        later = self.encoder.items([item.features for item in added], "items")
        self.items = _merged(items, later, source)
        times = np.array([item.added_ms for item in added], dtype=np.int64)
        self.first_seen_ms = np.concatenate([self.first_seen_ms, times[is_new]])
        new = np.full(int(is_new.sum()), UNKNOWN_ROW, dtype=np.int32)
        self.assemblers = [
            a.over(self.items, np.concatenate([_item_rows(a, num), new])) for a in assemblers
        ]
        self._index = self._index.extended([i.id for i, n in zip(added, is_new, strict=True) if n])
        self._state_rows = torch.from_numpy(source)
        self.states = [
            ItemStates(own.shape, own.base, more)
            for own, more in zip(states, self.added.states, strict=True)
        ]

    def _update_stats(self) -> None:
        stats, rows = self.items.stats, self._index.find([s.id for s in self.added.stats])
        assert stats is not None
        size = max(len(stats.moments), 1)
        item = np.concatenate([stats.keys // size, rows])
        at = stats.moments[stats.keys % size] if len(stats.keys) else stats.keys
        later = np.array([s.valid_from_ms for s in self.added.stats], dtype=np.int64)
        moments, moment = np.unique(np.concatenate([at, later]), return_inverse=True)
        keys = item * len(moments) + moment
        # Of one item and moment, what came last holds.
        last = len(keys) - 1 - np.unique(keys[::-1], return_index=True)[1]
        values = {}
        for name, column in stats.values.items():
            new = [s.values.get(name) for s in self.added.stats]
            values[name] = np.concatenate([column, np.array(new, dtype=np.float32)])[last]
        self.items = ItemTable(
            self.items.ids,
            self.items.scalars,
            self.items.groups,
            ItemStats(moments, keys[last], values),
        )
        # Only lookups as of a request read them: features and states of items stay as they are.
        self.assemblers = [a.over(self.items, a._item_rows) for a in self.assemblers]


def _item_rows(assembler: Assembler, num: int) -> npt.NDArray[np.int32]:
    rows = assembler.maps.get("item")
    return np.arange(num, dtype=np.int32) if rows is None else rows[:num]


def _merged(own: ItemTable, later: ItemTable, source: Rows) -> ItemTable:
    scalars: Mapping[str, Any] = later.scalars
    return ItemTable(
        Numbered(len(source)),
        {
            name: np.concatenate([column, scalars[name].astype(column.dtype)])[source]
            for name, column in own.scalars.items()
        },
        {
            name: Group.cat([group, later.groups[name]]).take(source)
            for name, group in own.groups.items()
        },
        own.stats,
    )
