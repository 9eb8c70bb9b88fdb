"""The items that random negatives are drawn from, and with what probability.

Shapes: ``N`` items of the pool, oldest first; ``R`` requests; ``M`` draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from prerank.errors import InputError
from prerank.log.format.files import ITEMS, read_table
from prerank.log.format.vocab import NEVER
from prerank.schema import NUM_RESERVED

if TYPE_CHECKING:
    from prerank.log import Log, Part

__all__ = ["ItemPool", "count_items"]

Index = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class ItemPool:
    """Items in the order in which requests first saw them, and running sums of their weights.

    Parameters
    ----------
    items : ndarray ``[N]`` int64
        Item index in the log.
    place : ndarray ``[num_items]`` int64
        Where each item of the log is in ``items``; -1 for those that are never drawn.
    first_seen : ndarray ``[N]`` int64, optional
        Ascending times in ms; an item belongs to the pool of later requests only. None: of all.
    weights : ndarray ``[N]`` float64, optional
        None: all weigh 1.
    ends : ndarray ``[N + 1]`` float64, optional
        Running sums of the weights, from 0.

    Examples
    --------
    >>> pool = ItemPool.of(np.arange(2, 6), 6, first_seen=np.array([10, 0, 20, 5]))
    >>> pool.items, pool.size_at(np.array([0, 6, 99]))
    (array([3, 5, 2, 4]), array([0, 2, 4]))
    """

    items: Index
    place: Index
    first_seen: Index | None = None
    weights: Floats | None = None
    ends: Floats | None = None

    @classmethod
    def of(
        cls,
        items: Index,
        num_items: int,
        *,
        first_seen: Index | None = None,
        weights: npt.NDArray[Any] | None = None,
    ) -> ItemPool:
        """Put items in order; those that weigh nothing are left out.

        Parameters
        ----------
        items : ndarray ``[N]`` int64
            Item indices.
        num_items : int
            Rows of the item table.
        first_seen, weights : ndarray ``[N]``, optional
            Times in ms and weights of the items.
        """
        chosen = np.arange(len(items))
        if weights is not None:
            chosen = np.flatnonzero(weights > 0)
        if first_seen is not None:
            chosen = chosen[np.argsort(first_seen[chosen], kind="stable")]
        place = np.full(num_items, -1, dtype=np.int64)
        place[items[chosen]] = np.arange(len(chosen))
        return cls(
            items[chosen].astype(np.int64),
            place,
            None if first_seen is None else first_seen[chosen],
            None if weights is None else weights[chosen].astype(np.float64),
            None if weights is None else np.concatenate([[0.0], np.cumsum(weights[chosen])]),
        )

    @classmethod
    def read(cls, log: Log, *, alive: bool, weights: Floats | None = None) -> ItemPool:
        """Make the pool of a log.

        Parameters
        ----------
        log : Log
            Its items, the two reserved rows left out.
        alive : bool
            Whether an item can be drawn only for requests after it was first seen.
        weights : ndarray ``[num_items]`` float64, optional
            By item index.
        """
        size = log.schema.size("item")
        first_seen = None
        if alive:
            times = read_table(log.path / ITEMS, ["first_seen_ms"])["first_seen_ms"]
            first_seen = pc.fill_null(times, NEVER).to_numpy()[NUM_RESERVED:size]
            if (first_seen == NEVER).all():
                raise InputError(
                    f"{log.path / ITEMS}: no item has a first_seen_ms, so none is known to be "
                    "there before a request; set the sampler's option alive to false"
                )
        return cls.of(
            np.arange(NUM_RESERVED, size),
            size,
            first_seen=first_seen,
            weights=None if weights is None else weights[NUM_RESERVED:size],
        )

    def only(self, is_kept: npt.NDArray[np.bool_]) -> ItemPool:
        """Return the pool without the items of the log that are not kept ``[num_items]``.

        Examples
        --------
        >>> ItemPool.of(np.arange(2, 6), 6).only(np.arange(6) != 3).items
        array([2, 4, 5])
        """
        chosen = is_kept[self.items]
        return ItemPool.of(
            self.items[chosen],
            len(self.place),
            first_seen=None if self.first_seen is None else self.first_seen[chosen],
            weights=None if self.weights is None else self.weights[chosen],
        )

    @property
    def num_items(self) -> int:
        """Number of items that can be drawn at all."""
        return len(self.items)

    def size_at(self, times: Index) -> Index:
        """Return how many items, the oldest, each request at ``times [R]`` (ms) can be given."""
        if self.first_seen is None:
            return np.full(len(times), self.num_items, dtype=np.int64)
        return np.searchsorted(self.first_seen, times, side="left").astype(np.int64)

    def mass(self, sizes: Index) -> Floats:
        """Return the weight of the ``sizes [R]`` oldest items."""
        return sizes.astype(np.float64) if self.ends is None else self.ends[sizes]

    def weight(self, places: Index) -> Floats:
        """Return the weight of the items at ``places [M]``."""
        return np.ones(len(places)) if self.weights is None else self.weights[places]

    def pick(self, draws: Floats, sizes: Index) -> Index:
        """Turn uniform draws ``[M]`` into places among the ``sizes [M]`` oldest, by weight."""
        if self.ends is None:
            at = (draws * sizes).astype(np.int64)
        else:
            at = np.searchsorted(self.ends, draws * self.ends[sizes], side="right") - 1
        return np.minimum(at, sizes - 1)


def count_items(part: Part, *, exposed_only: bool, leave_out: tuple[str, ...] = ()) -> Index:
    """Count in how many requests of a part each item was shown, or was a candidate at all.

    Parameters
    ----------
    part : Part
        Read once, two columns of it.
    exposed_only : bool
        Whether only the last stage counts.
    leave_out : tuple of str
        Stages that do not count: what was drawn at random says nothing of popularity.

    Returns
    -------
    ndarray ``[num_items]`` int64
        By item index.
    """
    log = part.log
    stages = log.schema.stages
    counted = np.array([s not in leave_out for s in stages])
    if exposed_only:
        counted[:-1] = False
    counts = np.zeros(log.schema.size("item"), dtype=np.int64)
    for group in range(log.num_groups):
        first, stop = int(log._starts[group]), int(log._starts[group + 1])
        rows = part.rows.within(first, stop) - first
        if len(rows):
            columns = next(log.read([group], ["candidates.item", "candidates.stage"]))
            found = columns.candidates.take(rows).values
            counts += np.bincount(found["item"][counted[found["stage"]]], minlength=len(counts))
    return counts
