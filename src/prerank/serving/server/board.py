"""Numbers that all processes of a server share: a row per worker in memory without a file name.

Each worker writes its own row and whoever is asked adds the rows up. A worker that takes a dead
one's place goes on in its row, so counters never go back and nothing is left behind on disk.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from multiprocessing import reduction
from typing import Any

__all__ = ["BOUNDS_S", "Board", "Key", "Meter", "histogram_keys", "make_layout"]

Key = tuple[str, ...]
"""Name of a metric, then the values of its labels."""
_FINE = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075)
BOUNDS_S = (*_FINE, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, float("inf"))
"""Upper ends of the buckets of every histogram, in seconds."""


def histogram_keys(key: Key) -> Iterator[Key]:
    """Yield the keys under which a histogram is kept: one per bucket, then the sum."""
    for bound in BOUNDS_S:
        yield (*key, "le", str(bound))
    yield (*key, "sum")


def make_layout(plain: Iterable[Key], histograms: Iterable[Key]) -> dict[Key, int]:
    """Return the place of every number in a row."""
    keys = [*plain, *(part for key in histograms for part in histogram_keys(key))]
    assert len(set(keys)) == len(keys)
    return {key: place for place, key in enumerate(keys)}


class Board:
    """Rows of numbers in shared memory.

    Parameters
    ----------
    num_rows, width : int
    fd : int, optional
        Of the memory of another process's board.

    Examples
    --------
    >>> board = Board(2, 3)
    >>> board.set(0, 1, 2.0), board.set(1, 1, 3.0), board.total(1)
    (None, None, 5.0)
    """

    def __init__(self, num_rows: int, width: int, fd: int | None = None) -> None:
        self.num_rows, self.width = num_rows, width
        if fd is None:
            fd = os.memfd_create("prerank-metrics", os.MFD_CLOEXEC)
            os.ftruncate(fd, num_rows * width * 8)
        self._fd = fd
        self._values = memoryview(mmap.mmap(fd, num_rows * width * 8)).cast("d")

    def __reduce__(self) -> tuple[Any, ...]:
        return _attach, (self.num_rows, self.width, reduction.DupFd(self._fd))

    def get(self, row: int, place: int) -> float:
        """Return a number of one row."""
        return self._values[row * self.width + place]

    def set(self, row: int, place: int, value: float) -> None:
        """Put a number in its place; only the owner of a row does."""
        self._values[row * self.width + place] = value

    def total(self, place: int) -> float:
        """Return the sum over all rows."""
        return sum(self._values[place :: self.width])


def _attach(num_rows: int, width: int, fd: Any) -> Board:
    return Board(num_rows, width, fd.detach())


class Meter:
    """Writes one row of a board; called from one thread.

    Parameters
    ----------
    board : Board
    layout : dict of Key to int
        From :func:`make_layout`.
    row : int
        Whose.
    """

    def __init__(self, board: Board, layout: dict[Key, int], row: int) -> None:
        self.board, self.row = board, row
        self._layout = layout
        self._buckets = {
            key[:-2]: place for key, place in layout.items() if key[-2:] == ("le", str(BOUNDS_S[0]))
        }

    def knows(self, *key: str) -> bool:
        """Say whether there is a place for a number."""
        return key in self._layout

    def add(self, *key: str, amount: float = 1.0) -> None:
        """Count; what has no place (a tier beyond the last one kept) is not counted."""
        place = self._layout.get(key)
        if place is not None:
            self.board.set(self.row, place, self.board.get(self.row, place) + amount)

    def set(self, *key: str, value: float) -> None:
        """Say what is now."""
        place = self._layout.get(key)
        if place is not None:
            self.board.set(self.row, place, value)

    def observe(self, *key: str, value: float) -> None:
        """Count a time in its bucket."""
        first = self._buckets.get(key)
        if first is None:
            return
        board, row = self.board, self.row
        place = first + bisect_left(BOUNDS_S, value)
        board.set(row, place, board.get(row, place) + 1)
        total = first + len(BOUNDS_S)
        board.set(row, total, board.get(row, total) + value)
