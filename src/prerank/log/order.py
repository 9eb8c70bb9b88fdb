"""The order in which requests are read: a pure function of (seed, epoch, request row).

Row groups are visited in a hashed order; a *window* of consecutive ones is read and its requests
are sorted by their own hash. So shuffling needs memory for one window only, any batch can be
found without reading those before it, and neither workers nor ranks can change the order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prerank.log.split import RowRanges
from prerank.rng import hash64, stream

__all__ = ["Window", "plan_windows", "shuffled", "skip_windows"]

Rows = npt.NDArray[np.int64]
_GROUPS = stream("order/groups")
_ROWS = stream("order/rows")


@dataclass(frozen=True, slots=True)
class Window:
    """Row groups read together and how many chosen requests they hold."""

    groups: tuple[int, ...]
    num_requests: int


def plan_windows(
    rows: RowRanges, starts: Rows, seed: int, epoch: int, *, shuffle: bool, groups_per_window: int
) -> list[Window]:
    """Cut an epoch into windows.

    Parameters
    ----------
    rows : RowRanges
        The requests of the part.
    starts : ndarray ``[num_groups + 1]`` int64
        First request row of each row group, then the number of requests.
    seed, epoch : int
        Keys of the order.
    shuffle : bool
        False keeps log order.
    groups_per_window : int
        Row groups read together.
    """
    counts = np.diff(rows.rank(starts))
    chosen = np.flatnonzero(counts)
    if shuffle:
        chosen = chosen[np.argsort(hash64(_GROUPS, seed, epoch, starts[chosen]), kind="stable")]
    return [
        Window(tuple(map(int, piece)), int(counts[piece].sum()))
        for piece in (
            chosen[i : i + groups_per_window] for i in range(0, len(chosen), groups_per_window)
        )
    ]


def shuffled(rows: Rows, seed: int, epoch: int) -> Rows:
    """Return positions that put request rows ``[R]`` into their hashed order."""
    order: Rows = np.argsort(hash64(_ROWS, seed, epoch, rows), kind="stable")
    return order


def skip_windows(windows: Sequence[Window], num_requests: int) -> tuple[int, int]:
    """Return the window that holds a position of the epoch, and the position inside it."""
    index = 0
    while index < len(windows) and num_requests >= windows[index].num_requests:
        num_requests -= windows[index].num_requests
        index += 1
    return index, num_requests
