"""Vocabularies: raw values to indices, append-only, rows 0 (missing) and 1 (unknown) reserved."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from prerank.errors import InputError
from prerank.log.format.files import DAMAGED, first_line, read_table, write_table
from prerank.schema import NUM_RESERVED

__all__ = ["MISSING_ROW", "NEVER", "UNKNOWN_ROW", "Vocabulary", "check_index"]

MISSING_ROW = 0
UNKNOWN_ROW = 1
NEVER = np.iinfo(np.int64).max
"""``first_seen_ms`` of a value that no request had yet, inside a vocabulary."""


class Vocabulary:
    """Raw values of one kind and their indices; grows at the end, never reorders.

    Parameters
    ----------
    name : str
        Used in errors and as the file name.

    Examples
    --------
    >>> colours = Vocabulary("colour")
    >>> colours.encode(pa.array(["red", None, "blue", "red"]), grow=True)
    array([2, 0, 3, 2], dtype=int32)
    >>> colours.encode(pa.array(["green", "blue"]))
    array([1, 3], dtype=int32)
    >>> colours.decode(np.array([3, 0])).to_pylist()
    ['blue', None]
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._index: dict[Any, int] = {}
        self._values: list[Any] = []
        self._first_seen = np.zeros(0, dtype=np.int64)
        self._type: pa.DataType | None = None
        self._array: pa.Array | None = None

    def __len__(self) -> int:
        return NUM_RESERVED + len(self._values)

    @property
    def values(self) -> pa.Array:
        """Raw values by index; null in the two reserved rows."""
        if self._array is None or len(self._array) != len(self):
            values = [None] * NUM_RESERVED + self._values
            self._array = pa.array(values, type=self._type or pa.string())
        return self._array

    def encode(
        self,
        values: pa.Array | pa.ChunkedArray,
        *,
        grow: bool = False,
        times: npt.NDArray[np.int64] | None = None,
    ) -> npt.NDArray[np.int32]:
        """Return the index of each raw value: 0 for null, 1 for a value not known.

        Parameters
        ----------
        values : Array ``[N]``
            Integers or strings.
        grow : bool
            Append values not known yet, in the order in which they come.
        times : ndarray ``[N]`` int64, optional
            When each value was seen, in ms, to keep the earliest.
        """
        values = self._typed(values)
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        encoded = values.dictionary_encode()
        codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
        unique = encoded.dictionary.to_pylist()
        if grow:
            for value in unique:
                if value not in self._index:
                    self._index[value] = NUM_RESERVED + len(self._values)
                    self._values.append(value)
        rows = [*(self._index.get(v, UNKNOWN_ROW) for v in unique), MISSING_ROW]
        table: npt.NDArray[np.int32] = np.array(rows, dtype=np.int32)
        if grow and times is not None and len(unique):
            self._see(table, codes, times)
        encoded_rows: npt.NDArray[np.int32] = table[codes]
        return encoded_rows

    def find(self, values: Sequence[Any]) -> npt.NDArray[np.int32]:
        """Return the index of each plain value, as :meth:`encode` does without arrow's overhead.

        Raises
        ------
        InputError
            A value that is neither None nor of the vocabulary's type.

        Examples
        --------
        >>> colours = Vocabulary.of(pa.array([None, None, "red", "blue"]), "colour")
        >>> colours.find(["blue", None, "green"])
        array([3, 0, 1], dtype=int32)
        """
        kinds = set(map(type, values))
        expected = int if self._type == pa.int64() else str
        wrong = kinds - {expected, type(None)}
        if (self._type is not None and wrong) or wrong - {int, str}:
            found = next(v for v in values if type(v) in wrong)
            raise InputError(
                f"value {found!r:.60} is {type(found).__name__}, not {expected.__name__}"
            )
        get, absent = self._index.get, repeat(UNKNOWN_ROW)
        rows = np.fromiter(map(get, values, absent), np.int32, len(values))
        if type(None) in kinds:
            rows[[value is None for value in values]] = MISSING_ROW
        return rows

    def _typed(self, values: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        if pa.types.is_null(values.type):
            return values.cast(self._type or pa.string())
        kind = _raw_type(values.type)
        if kind is None:
            raise InputError(
                f"vocabulary '{self.name}': raw values are {values.type}; expected integers or "
                "strings; cast the column first"
            )
        if self._type is None:
            self._type = kind
        if kind != self._type:
            raise InputError(
                f"vocabulary '{self.name}': raw values are {kind}, but earlier ones were "
                f"{self._type}; use one type everywhere"
            )
        try:
            return values.cast(kind)
        except pa.ArrowException as error:
            raise InputError(
                f"vocabulary '{self.name}': raw values do not fit {kind} ({first_line(error)}); "
                "cast the column first"
            ) from None

    def _see(
        self, table: npt.NDArray[Any], codes: npt.NDArray[Any], times: npt.NDArray[np.int64]
    ) -> None:
        grown = np.full(len(self._values), NEVER, dtype=np.int64)
        grown[: len(self._first_seen)] = self._first_seen
        earliest = np.full(len(table), NEVER, dtype=np.int64)
        np.minimum.at(earliest, codes, times)
        known = table[:-1] - NUM_RESERVED
        grown[known] = np.minimum(grown[known], earliest[:-1])
        self._first_seen = grown

    def decode(self, index: npt.NDArray[Any]) -> pa.Array:
        """Return the raw value of each index ``[N]``; null for 0 and 1."""
        return self.values.take(pa.array(np.where(index < len(self), index, UNKNOWN_ROW)))

    @property
    def first_seen_ms(self) -> pa.Array:
        """Earliest time of each row in ms; null where never seen in a request."""
        times = np.full(len(self), NEVER, dtype=np.int64)
        times[NUM_RESERVED : NUM_RESERVED + len(self._first_seen)] = self._first_seen
        return pa.array(times, mask=times == NEVER)

    def digest(self, size: int | None = None) -> str:
        """Return a fingerprint of the first ``size`` rows: equal prefix, equal indices."""
        prefix = self._values[: (size or len(self)) - NUM_RESERVED]
        text = f"{self._type}\n" + "\n".join(map(repr, prefix))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Write ``value, index, first_seen_ms`` as Parquet."""
        index = pa.array(np.arange(len(self), dtype=np.int32))
        write_table(
            pa.table({"value": self.values, "index": index, "first_seen_ms": self.first_seen_ms}),
            path,
        )

    @classmethod
    def load(cls, path: Path, name: str) -> Vocabulary:
        """Read a vocabulary; an index out of place or a repeated value is an error."""
        table = read_table(path, ("value", "index", "first_seen_ms"))
        if table["first_seen_ms"].type != pa.int64():
            found = table["first_seen_ms"].type
            raise InputError(f"{path}: column 'first_seen_ms' holds {found}, expected int64")
        times = pc.fill_null(table["first_seen_ms"], NEVER).to_numpy()
        check_index(table["index"], path)
        return cls.of(table["value"].combine_chunks(), name, times, where=str(path))

    @classmethod
    def of(
        cls,
        values: pa.Array,
        name: str,
        first_seen_ms: npt.NDArray[np.int64] | None = None,
        *,
        where: str = "",
    ) -> Vocabulary:
        """Make a vocabulary from all its raw values, the two reserved rows first."""
        vocab = cls(name)
        where = where or f"vocabulary '{name}'"
        if _raw_type(values.type) != values.type:
            raise InputError(f"{where}: raw values are {values.type}, expected int64 or string")
        vocab._type = values.type
        try:
            vocab._values = values.to_pylist()[NUM_RESERVED:]
        except UnicodeDecodeError:
            raise InputError(f"{where}: a raw value is not UTF-8; {DAMAGED}") from None
        vocab._index = {value: NUM_RESERVED + i for i, value in enumerate(vocab._values)}
        if len(values) < NUM_RESERVED or values[:NUM_RESERVED].null_count != NUM_RESERVED:
            raise InputError(f"{where}: rows 0 and 1 are reserved and must be null")
        if None in vocab._index or len(vocab._index) != len(vocab._values):
            raise InputError(f"{where}: a raw value is null or stands twice; the file is damaged")
        if first_seen_ms is not None:
            vocab._first_seen = np.asarray(first_seen_ms[NUM_RESERVED:], dtype=np.int64)
        return vocab


def check_index(index: pa.ChunkedArray, path: Path) -> None:
    """Raise unless a stored vocabulary's column ``index`` counts 0, 1, 2, ..."""
    if index.type != pa.int32() or not np.array_equal(index.to_numpy(), np.arange(len(index))):
        raise InputError(f"{path}: column 'index' is not 0, 1, 2, ...; {DAMAGED}")


def _raw_type(kind: pa.DataType) -> pa.DataType | None:
    """Return how raw values of a type are kept: as int64, as string, or not at all."""
    if pa.types.is_integer(kind):
        return pa.int64()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    return None
