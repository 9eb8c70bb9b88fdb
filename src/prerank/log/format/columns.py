"""Request rows in memory: numpy columns, ragged lists that share offsets.

The form between files (or an HTTP body) and a ``RequestBatch``. Shapes: ``R`` requests, ``N``
values of all rows of one ragged group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "CANDIDATES",
    "Array",
    "Columns",
    "Group",
    "first_bad_row",
    "goes_back",
    "history_key",
]

Array = npt.NDArray[Any]
Index = npt.NDArray[np.int64]

_LONG = 64
"""Mean length of rows from which copying a row at a time beats picking single values."""

CANDIDATES = "candidates"
"""Key of the group that holds ``candidates.*`` and ``labels.*``."""


def history_key(stream: str) -> str:
    """Return the key of a history stream's group.

    Examples
    --------
    >>> history_key("clicks")
    'history.clicks'
    """
    return f"history.{stream}"


def goes_back(times: Array, offsets: Index) -> npt.NDArray[np.bool_]:
    """Return which values ``[N]`` are less than the one before them in their row.

    Examples
    --------
    >>> goes_back(np.array([5, 4, 1, 2]), np.array([0, 2, 4]))
    array([False,  True, False, False])
    """
    back = np.zeros(len(times), dtype=np.bool_)
    back[1:] = times[1:] < times[:-1]
    starts = offsets[:-1]
    back[starts[starts < len(times)]] = False
    return back


def first_bad_row(bad: npt.NDArray[np.bool_], offsets: Index) -> int | None:
    """Return the first row that holds a marked value ``[N]``, or None.

    Examples
    --------
    >>> first_bad_row(np.array([False, False, True]), np.array([0, 2, 2, 3]))
    2
    """
    if not bad.any():
        return None
    return int(np.searchsorted(offsets, int(bad.argmax()), side="right")) - 1


@dataclass(frozen=True, slots=True)
class Group:
    """Ragged columns with common row boundaries.

    Parameters
    ----------
    offsets : ndarray ``[R + 1]`` int64
        Row ``r`` holds values ``offsets[r]:offsets[r + 1]``.
    values : dict of str to ndarray ``[N]``
        One array per column.
    """

    offsets: Index
    values: dict[str, Array]

    def take(self, rows: Index) -> Group:
        """Return the given rows, in that order."""
        lengths = np.diff(self.offsets)[rows]
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        if offsets[-1] > _LONG * len(rows):
            starts = self.offsets[rows]
            spans = list(map(slice, starts.tolist(), (starts + lengths).tolist()))
            return Group(
                offsets,
                {n: np.concatenate([c[span] for span in spans]) for n, c in self.values.items()},
            )
        shift = np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        index = np.arange(offsets[-1]) + shift
        return Group(offsets, {name: column[index] for name, column in self.values.items()})

    def slice(self, start: int, stop: int) -> Group:
        """Return rows ``start:stop`` without copying values."""
        low, high = int(self.offsets[start]), int(self.offsets[stop])
        offsets = self.offsets[start : stop + 1] - low
        return Group(offsets, {name: column[low:high] for name, column in self.values.items()})

    def tail(self, length: int) -> Group:
        """Keep at most the last ``length`` values of each row."""
        lengths = np.diff(self.offsets)
        if not len(lengths) or int(lengths.max()) <= length:
            return self
        index = np.arange(self.offsets[-1])
        keep = index >= np.repeat(self.offsets[1:] - length, lengths)
        offsets = np.zeros(len(self.offsets), dtype=np.int64)
        np.cumsum(np.minimum(lengths, length), out=offsets[1:])
        return Group(offsets, {name: column[keep] for name, column in self.values.items()})

    @staticmethod
    def cat(parts: Sequence[Group]) -> Group:
        """Concatenate the rows of several groups."""
        if len(parts) == 1:
            return parts[0]
        ends = np.cumsum([0, *(part.offsets[-1] for part in parts)])
        offsets = [parts[0].offsets[:1]]
        offsets += [part.offsets[1:] + end for part, end in zip(parts, ends, strict=False)]
        values = {
            name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values
        }
        return Group(np.concatenate(offsets), values)


@dataclass(frozen=True, slots=True)
class Columns:
    """Encoded request rows.

    Parameters
    ----------
    scalars : dict of str to ndarray ``[R]`` (vectors ``[R, dim]``)
        ``row``, ``user``, ``time``, ``observed_until``, user and context features; categorical
        values are vocabulary rows, dense ones raw floats with NaN for missing.
    groups : dict of str to Group
        ``candidates``, ``history.STREAM``, and one per multi-valued feature.

    Examples
    --------
    >>> group = Group(np.array([0, 1, 3]), {"item": np.arange(3)})
    >>> rows = Columns({"row": np.arange(2)}, {"candidates": group})
    >>> rows.take(np.array([1])).groups["candidates"].values["item"]
    array([1, 2])
    """

    scalars: dict[str, Array]
    groups: dict[str, Group]

    @property
    def num_requests(self) -> int:
        """Number of requests ``R``."""
        return len(self.scalars["row"])

    @property
    def candidates(self) -> Group:
        """The candidates and their labels."""
        return self.groups[CANDIDATES]

    def take(self, rows: Index) -> Columns:
        """Return the given rows, in that order."""
        return Columns(
            {name: column[rows] for name, column in self.scalars.items()},
            {name: group.take(rows) for name, group in self.groups.items()},
        )

    def slice(self, start: int, stop: int) -> Columns:
        """Return rows ``start:stop`` without copying values."""
        stop = min(stop, self.num_requests)
        return Columns(
            {name: column[start:stop] for name, column in self.scalars.items()},
            {name: group.slice(start, stop) for name, group in self.groups.items()},
        )

    @staticmethod
    def cat(parts: Sequence[Columns]) -> Columns:
        """Concatenate rows."""
        if len(parts) == 1:
            return parts[0]
        first = parts[0]
        return Columns(
            {name: np.concatenate([p.scalars[name] for p in parts]) for name in first.scalars},
            {name: Group.cat([p.groups[name] for p in parts]) for name in first.groups},
        )
