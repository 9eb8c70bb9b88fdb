"""Raw item ids to rows, without a Python loop over candidates."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prerank.log.format.vocab import UNKNOWN_ROW, Vocabulary
from prerank.schema import NUM_RESERVED
from prerank.serving.errors import BadRequestError

__all__ = ["IdIndex"]

# A table by id is taken where it is at most so many times as long as there are ids.
_SPARSE = 8


class IdIndex:
    """Rows of raw ids: a table or a sorted list of integers, a dict of strings.

    Parameters
    ----------
    vocab : Vocabulary
        Raw ids by row, two reserved rows first.
    more : sequence of int or str
        Ids of the rows that follow.

    Examples
    --------
    >>> index = IdIndex(Vocabulary.of(pa.array([None, None, 7, 1 << 40]), "item"))
    >>> index.find([1 << 40, 8, 7]), index.find(np.array([7]).tobytes())
    (array([3, 1, 2]), array([2]))
    """

    def __init__(self, vocab: Vocabulary, more: Sequence[Any] = ()) -> None:
        self._vocab, self._more = vocab, tuple(more)
        values = vocab.values
        self.kind: type = int if pa.types.is_integer(values.type) else str
        self._rows: dict[Any, int] = {}
        self._table: npt.NDArray[np.int32] | None = None
        if self.kind is str:
            ids = [*values.to_pylist()[NUM_RESERVED:], *self._more]
            self._rows = dict(zip(ids, range(NUM_RESERVED, NUM_RESERVED + len(ids)), strict=True))
            return
        own = values[NUM_RESERVED:].to_numpy(zero_copy_only=False).astype(np.int64)
        numbers = np.concatenate([own, np.array(self._more, dtype=np.int64)])
        rows = np.arange(NUM_RESERVED, NUM_RESERVED + len(numbers), dtype=np.int32)
        self._first = int(numbers.min()) if len(numbers) else 0
        span = int(numbers.max()) - self._first if len(numbers) else 0
        if span < _SPARSE * len(numbers) + 65536:
            # One more row, for everything outside.
            self._table = np.full(span + 2, UNKNOWN_ROW, dtype=np.int32)
            self._table[numbers - self._first] = rows
            return
        order = np.argsort(numbers)
        self._sorted, self._sorted_rows = numbers[order], rows[order]

    def extended(self, ids: Sequence[Any]) -> IdIndex:
        """Return an index with more ids, whose rows follow."""
        return IdIndex(self._vocab, (*self._more, *ids)) if ids else self

    def find(self, ids: Sequence[Any] | bytes) -> npt.NDArray[np.int64]:
        """Return the row of each id ``[N]`` int64; 1 for one that is not there.

        Parameters
        ----------
        ids : sequence of int or str, or bytes
            Bytes are packed little-endian int64.

        Raises
        ------
        BadRequestError
            Ids of another type; bytes that are no whole int64s.
        """
        if isinstance(ids, bytes):
            if self.kind is str:
                raise BadRequestError(
                    "candidates.ids: packed integers, but this bundle's item ids are strings"
                )
            if len(ids) % 8:
                raise BadRequestError(
                    f"candidates.ids: {len(ids)} bytes; packed ids are 8 bytes each"
                )
            return self._find(np.frombuffer(ids, dtype="<i8"))
        wrong = set(map(type, ids)) - {self.kind}
        if wrong:
            found = next(i for i in ids if type(i) in wrong)
            raise BadRequestError(
                f"item id {found!r:.60} is {type(found).__name__}; this bundle's item ids are "
                f"{self.kind.__name__}"
            )
        if self.kind is str:
            get = self._rows.get
            return np.fromiter(map(get, ids, repeat(UNKNOWN_ROW)), np.int64, len(ids))
        try:
            return self._find(np.array(ids, dtype=np.int64))
        except OverflowError:
            return self._find(np.array([_int64(i) for i in ids], dtype=np.int64))

    def _find(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        if self._table is not None:
            last = len(self._table) - 1
            # As unsigned numbers those before the first are beyond the end as well.
            at = np.minimum((numbers - self._first).view(np.uint64), np.uint64(last)).view(np.int64)
            return self._table[at].astype(np.int64)
        at = np.minimum(np.searchsorted(self._sorted, numbers), len(self._sorted) - 1)
        found = self._sorted[at] == numbers
        return np.where(found, self._sorted_rows[at], UNKNOWN_ROW).astype(np.int64)


def _int64(value: int) -> int:
    """Return a number that is no id for one that int64 cannot hold."""
    return value if -(1 << 63) <= value < 1 << 63 else -(1 << 63)
