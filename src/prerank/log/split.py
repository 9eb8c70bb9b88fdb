"""Named parts of a log as row ranges, and the rules that make them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from prerank.errors import InputError
from prerank.log.format.files import SPLITS, Count, read_json, write_json

if TYPE_CHECKING:
    from prerank.log.log import Log

__all__ = [
    "NO_PARTS",
    "RowRanges",
    "Splits",
    "check_parts",
    "load_splits",
    "save_splits",
    "split_log",
]

NO_PARTS = "none"
"""Rule of a log without ``splits.json``."""

_FIX = "make it anew: prerank data split LOG"

Rows = npt.NDArray[np.int64]


class RowRanges:
    """A sorted set of request rows as half-open ranges.

    Examples
    --------
    >>> rows = RowRanges.of(np.array([4, 1, 2, 9]))
    >>> rows.pairs.tolist(), len(rows)
    ([[1, 3], [4, 5], [9, 10]], 4)
    >>> rows.within(2, 9).tolist()
    [2, 4]
    """

    def __init__(self, pairs: npt.ArrayLike) -> None:
        self.pairs: Rows = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
        self._ends = np.cumsum(self.pairs[:, 1] - self.pairs[:, 0])

    @classmethod
    def of(cls, rows: Rows) -> RowRanges:
        """Make ranges from rows in any order."""
        rows = np.unique(np.asarray(rows, dtype=np.int64))
        if not len(rows):
            return cls(np.zeros((0, 2), dtype=np.int64))
        breaks = np.flatnonzero(np.diff(rows) > 1)
        starts = rows[np.concatenate([[0], breaks + 1])]
        stops = rows[np.concatenate([breaks, [len(rows) - 1]])] + 1
        return cls(np.stack([starts, stops], axis=1))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def rank(self, rows: npt.ArrayLike) -> Rows:
        """Return how many members lie before each row."""
        rows = np.asarray(rows, dtype=np.int64)
        if not len(self.pairs):
            return np.zeros_like(rows)
        k = np.searchsorted(self.pairs[:, 0], rows, side="right") - 1
        inside = np.minimum(rows, self.pairs[k, 1]) - self.pairs[k, 0]
        before = self._ends[k] - (self.pairs[k, 1] - self.pairs[k, 0]) + inside
        ranks: Rows = np.where(k < 0, 0, before)
        return ranks

    def within(self, start: int, stop: int) -> Rows:
        """Return the members in ``start:stop``."""
        starts = np.clip(self.pairs[:, 0], start, stop)
        lengths = np.clip(self.pairs[:, 1], start, stop) - starts
        keep = lengths > 0
        starts, lengths = starts[keep], lengths[keep]
        ends = np.cumsum(lengths)
        shift = np.repeat(starts - ends + lengths, lengths)
        members: Rows = np.arange(ends[-1] if len(ends) else 0) + shift
        return members

    def overlap(self, other: RowRanges) -> int:
        """Return the number of rows in both."""
        if not len(self.pairs) or not len(other.pairs):
            return 0
        starts, stops = self.pairs[:, 0], self.pairs[:, 1]
        return int((other.rank(stops) - other.rank(starts)).sum())


class Splits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Content of ``splits.json``; ``digest`` guards it against damage (empty: made by hand)."""

    rule: str
    parts: dict[str, list[tuple[Count, Count]]]
    digest: str = ""

    def fingerprint(self) -> str:
        """Return what ``digest`` must be."""
        text = msgspec.json.encode([self.rule, self.parts])
        return hashlib.sha256(text).hexdigest()[:16]


def save_splits(
    folder: Path, parts: Mapping[str, Rows], num_requests: int, *, rule: str
) -> dict[str, int]:
    """Write ``splits.json``; parts must lie inside the log and not overlap. Returns sizes."""
    named = {name: RowRanges.of(rows) for name, rows in parts.items()}
    check_parts(named, num_requests, str(folder / SPLITS))
    splits = Splits(rule, {name: list(map(tuple, r.pairs.tolist())) for name, r in named.items()})
    write_json(msgspec.structs.replace(splits, digest=splits.fingerprint()), folder / SPLITS)
    return {name: len(rows) for name, rows in named.items()}


def check_parts(parts: Mapping[str, RowRanges], num_requests: int, where: str) -> None:
    """Raise unless the parts are ascending ranges inside the log that do not overlap."""
    seen: dict[str, RowRanges] = {}
    for name, rows in parts.items():
        if (np.diff(rows.pairs.ravel()) < 0).any() or (np.diff(rows.pairs) == 0).any():
            raise InputError(
                f"{where}: part '{name}' is not a list of ascending [start, stop] rows; {_FIX}"
            )
        if len(rows.pairs) and (rows.pairs[0, 0] < 0 or rows.pairs[-1, 1] > num_requests):
            raise InputError(
                f"{where}: part '{name}' names rows {rows.pairs[0, 0]} to {rows.pairs[-1, 1]}, "
                f"outside the log's {num_requests} requests; {_FIX}"
            )
        for other, taken in seen.items():
            if rows.overlap(taken):
                raise InputError(
                    f"{where}: parts '{other}' and '{name}' overlap in {rows.overlap(taken)} "
                    f"requests; {_FIX}"
                )
        seen[name] = rows


def load_splits(folder: Path) -> Splits:
    """Read ``splits.json``; a log without one has no parts.

    Raises
    ------
    InputError
        The file is damaged or was changed by hand without removing its digest.
    """
    path = folder / SPLITS
    if not path.exists():
        return Splits(NO_PARTS, {})
    splits = read_json(path, Splits)
    if splits.digest not in ("", splits.fingerprint()):
        raise InputError(
            f"{path}: the parts do not match the file's digest; {_FIX} (or remove its line "
            "'digest' if you changed the parts on purpose)"
        )
    return splits


def split_log(
    log: Log,
    *,
    by: Literal["time", "user-order"] = "time",
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    names: Sequence[str] = ("train", "valid", "test"),
) -> dict[str, int]:
    """Split a log into parts and write ``splits.json``.

    Parameters
    ----------
    log : Log
        The log; requests stay where they are.
    by : {"time", "user-order"}
        ``time``: the first share of all requests is the first part, equal times stay together.
        ``user-order``: the same within every user, each of whom keeps at least one request of
        the first part that has a share; for logs whose clock is not comparable between users.
    fractions, names : sequences of equal length
        Shares (they must add up to 1) and names of the parts, in order.

    Returns
    -------
    dict of str to int
        Requests per part.

    Raises
    ------
    InputError
        Bad shares or names; another process is changing the log.
    """
    if len(fractions) != len(names) or not (
        abs(sum(fractions) - 1.0) <= 1e-9 and min(fractions) >= 0
    ):
        raise InputError(
            f"split: fractions {tuple(fractions)} for parts {tuple(names)} must be as many, not "
            "negative, and add up to 1"
        )
    if by not in ("time", "user-order") or len(set(names)) != len(names):
        raise InputError(
            f"split: by '{by}' into parts {tuple(names)}; expected 'time' or 'user-order' and "
            "distinct names"
        )
    cuts = np.cumsum(fractions)
    times, users = log.request_times()
    share = np.empty(len(times))
    order = np.arange(len(times)) if by == "time" else np.argsort(users, kind="stable")
    user = np.zeros_like(users) if by == "time" else users[order]
    starts = np.flatnonzero(np.diff(user, prepend=-1) != 0)
    lengths = np.diff(np.append(starts, len(order)))
    apart = (np.diff(times[order], prepend=-1) != 0) | (np.diff(user, prepend=-1) != 0)
    first = np.maximum.accumulate(np.where(apart, np.arange(len(order)), 0))
    share[order] = (first - np.repeat(starts, lengths)) / np.repeat(lengths, lengths)
    part = np.minimum(np.searchsorted(cuts - 1e-12, share, side="right"), len(names) - 1)
    rows = {name: np.flatnonzero(part == i) for i, name in enumerate(names)}
    from prerank.log.growth.revise import locked  # which reads logs, and so this module

    with locked(log.path.resolve()):
        return save_splits(log.path, rows, log.num_requests, rule=f"{by} {tuple(fractions)}")
