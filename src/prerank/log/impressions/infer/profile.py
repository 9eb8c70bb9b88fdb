"""What a column of a flat table looks like: type, nulls, distinct values, separators, ranges."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from prerank.errors import InputError
from prerank.log.impressions import flat
from prerank.log.impressions.grouping import codes_of
from prerank.log.impressions.mapping import TimeUnit

__all__ = ["Profile", "Times", "profile_of"]

Index = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_SEPARATORS = ("|", ";", ",", " ")
_MIN_SPLIT = 0.2
# The years 2000 to 2100 in each unit; they do not overlap.
_EPOCH: dict[TimeUnit, tuple[float, float]] = {
    "s": (9.46e8, 4.1e9),
    "ms": (9.46e11, 4.1e12),
    "us": (9.46e14, 4.1e15),
    "ns": (9.46e17, 4.1e18),
}


@dataclass(frozen=True, slots=True)
class Times:
    """A column read as times: milliseconds ``[N]`` (missing: -1) and the unit of its numbers."""

    ms: Index
    unit: TimeUnit | None

    def span(self) -> str:
        """Return the first and the last day."""
        known = self.ms[self.ms >= 0]
        if not len(known):
            return "no time at all"
        first, last = (np.datetime64(int(t), "ms") for t in (known.min(), known.max()))
        return f"{first.astype('datetime64[D]')} to {last.astype('datetime64[D]')}"


@dataclass(frozen=True, slots=True)
class Profile:
    """One column.

    Parameters
    ----------
    name : str
        The column.
    type : pyarrow.DataType
        As read.
    num_rows, num_null, num_distinct : int
        Of the rows that were read; distinct values without null.
    codes : ndarray ``[N]`` int64
        Distinct values numbered in order of appearance; null is -1.
    numbers : ndarray ``[N]`` float64, optional
        Values of a numeric or boolean column; NaN is null.
    values : tuple
        Up to twelve distinct values, the most frequent first.
    separator : str, optional
        What separates the parts of a text, if it looks like a list.
    num_parts : int
        Distinct parts of a list, or of a text with ``separator``.
    times : Times, optional
        The column read as times, if it can be.
    width : int
        Length of the lists, if all have one length; else 0.
    """

    name: str
    type: pa.DataType
    num_rows: int
    num_null: int
    num_distinct: int
    codes: Index
    numbers: Floats | None = None
    values: tuple[Any, ...] = field(default=())
    separator: str | None = None
    num_parts: int = 0
    times: Times | None = None
    width: int = 0

    @property
    def is_list(self) -> bool:
        """Whether the column holds lists."""
        return bool(pa.types.is_list(self.type) or pa.types.is_fixed_size_list(self.type))

    @property
    def is_text(self) -> bool:
        """Whether the column holds text."""
        return bool(pa.types.is_string(self.type) or pa.types.is_large_string(self.type))

    @property
    def is_whole(self) -> bool:
        """Whether all numbers are integers."""
        if self.numbers is None:
            return False
        known = self.numbers[~np.isnan(self.numbers)]
        return bool(len(known)) and bool((known == np.floor(known)).all())

    @property
    def is_binary(self) -> bool:
        """Whether the numbers are 0 and 1, both."""
        if self.numbers is None:
            return False
        return set(np.unique(self.numbers[~np.isnan(self.numbers)]).tolist()) == {0.0, 1.0}

    @property
    def is_id(self) -> bool:
        """Whether the values could be ids: integers or short text without spaces, not a few."""
        if self.is_list or self.is_binary or self.num_distinct < 3:
            return False
        if self.is_text:
            return not any(len(str(v)) > 80 or " " in str(v) for v in self.values)
        return self.is_whole

    @property
    def is_row_number(self) -> bool:
        """Whether (nearly) every row has a value of its own."""
        known = self.num_rows - self.num_null
        return known > 50 and self.num_distinct > 0.98 * known

    def summary(self) -> str:
        """Return the facts in words.

        Examples
        --------
        >>> profile_of("u", pa.chunked_array([[1, 2, 2, None]])).summary()
        '2 distinct values, 25.0 % null'
        """
        share = 100 * self.num_null / max(1, self.num_rows)
        values = "value" if self.num_distinct == 1 else "values"
        return f"{self.num_distinct:,} distinct {values}, {share:.1f} % null"


def profile_of(name: str, column: pa.ChunkedArray) -> Profile:
    """Look at one column of a flat table."""
    array = flat.column_array(pa.table({name: column}), name)
    text = _as_text(array)
    codes = codes_of(text)
    num_distinct = int(codes.max(initial=-1)) + 1
    numbers = _numbers(array)
    separator, num_parts = _separator(array)
    width = 0
    if pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type):
        widths = pc.unique(pc.list_value_length(array).drop_null()).to_pylist()
        width = widths[0] if len(widths) == 1 else 0
        num_parts = pc.count_distinct(array.flatten()).as_py()
    return Profile(
        name=name,
        type=array.type,
        num_rows=len(array),
        num_null=array.null_count,
        num_distinct=num_distinct,
        codes=codes,
        numbers=numbers,
        values=_most_frequent(array, codes, num_distinct),
        separator=separator,
        num_parts=num_parts,
        times=_times(name, array, numbers),
        width=width,
    )


def _as_text(array: pa.Array) -> pa.Array:
    """Return values that can be numbered: lists as one text each, others as they are."""
    if not (pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type)):
        return array
    lists = array.cast(pa.list_(array.type.value_type)).cast(pa.list_(pa.string()))
    return pc.binary_join(lists, "\x1f")


def _numbers(array: pa.Array) -> Floats | None:
    try:
        numbers = flat.numbers(pa.table({"c": array}), "c", pa.float64())
    except InputError:
        return None
    if array.null_count == len(array):
        return None
    return np.asarray(numbers.to_numpy(zero_copy_only=False), dtype=np.float64)


def _most_frequent(array: pa.Array, codes: Index, num_distinct: int) -> tuple[Any, ...]:
    if not num_distinct:
        return ()
    known = codes[codes >= 0]
    order = np.argsort(-np.bincount(known), kind="stable")[:12]
    first = np.full(num_distinct, -1)
    rows = np.flatnonzero(codes >= 0)[::-1]
    first[codes[rows]] = rows
    return tuple(array[int(row)].as_py() for row in first[order])


def _separator(array: pa.Array) -> tuple[str | None, int]:
    """Find what separates the parts of a text, if parts are shared between texts."""
    if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
        return None, 0
    distinct = pc.unique(array.drop_null())
    if len(distinct) < 2:
        return None, 0
    for mark in _SEPARATORS:
        has = pc.mean(pc.match_substring(distinct, mark).cast(pa.float64())).as_py()
        if has < _MIN_SPLIT:
            continue
        parts = pc.split_pattern(distinct, mark).flatten()
        parts = pc.utf8_trim_whitespace(parts)
        num_parts = pc.count_distinct(parts).as_py()
        # Tags are short, few, and return; the words of a title or of a time are not like that.
        longest = pc.max(pc.utf8_length(parts)).as_py()
        few = num_parts <= max(20, len(parts) // (4 if mark in "|;" else 10))
        if longest <= 40 and (few or mark == "|"):
            return mark, int(num_parts)
    return None, 0


def _times(name: str, array: pa.Array, numbers: Floats | None) -> Times | None:
    unit: TimeUnit | None = None
    if numbers is not None:
        if pa.types.is_boolean(array.type):
            return None
        known = numbers[~np.isnan(numbers)]
        middle = float(np.median(known))
        unit = next((u for u, (low, high) in _EPOCH.items() if low <= middle <= high), None)
        if unit is None:
            return None
    elif pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        shown = [str(v) for v in array.drop_null().slice(0, 20).to_pylist()]
        if not shown or not all(re.match(r"\s*\d{4}-\d\d-\d\d", text) for text in shown):
            return None
    elif not (pa.types.is_timestamp(array.type) or pa.types.is_date(array.type)):
        return None
    try:
        ms = flat.times(pa.table({name: array}), name, unit or "ms")
    except InputError:
        return None
    return Times(np.asarray(pc.fill_null(ms, -1).to_numpy(), dtype=np.int64), unit)
