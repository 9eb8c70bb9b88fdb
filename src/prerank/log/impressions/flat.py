"""Columns of flat tables converted to raw log values: ids, words, numbers, times, features."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from prerank.errors import InputError
from prerank.log.impressions.mapping import ColumnMap, LabelMap, TimeUnit

__all__ = ["column_array", "feature_values", "ids", "label_values", "numbers", "times", "words"]

_PER_MS = {"s": 1000.0, "ms": 1.0, "us": 1e-3, "ns": 1e-6}
_HAS_ZONE = r"[T ].*(Z|[+-]\d\d(:?\d\d)?)$"


def column_array(table: pa.Table, column: str) -> pa.Array:
    """Return one column as one array ``[N]``, dictionaries decoded, NaN as null."""
    array = table[column]
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    array = array.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)
    return array


def _as_ids(array: pa.Array, column: str) -> pa.Array:
    kind = array.type
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return array.cast(pa.int64())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return array.cast(pa.string())
    if pa.types.is_null(kind):
        return array.cast(pa.string())
    if pa.types.is_floating(kind):
        try:  # readers turn integers with gaps into floats; real fractions are refused
            return array.cast(pa.int64())
        except pa.ArrowInvalid:
            pass
    raise InputError(
        f"column '{column}' is {kind}; an id or category is an integer or text; declare the column "
        "dense, or turn it into buckets first"
    )


def ids(table: pa.Table, column: str) -> pa.Array:
    """Return a column of ids or categories as int64 or string ``[N]``."""
    return _as_ids(column_array(table, column), column)


def words(table: pa.Table, column: str) -> pa.Array:
    """Return a column of names as string ``[N]``."""
    array = column_array(table, column)
    text = pa.types.is_string(array.type) or pa.types.is_large_string(array.type)
    if not text and array.null_count < len(array):
        raise InputError(f"column '{column}' is {array.type}; expected names (text)")
    return array.cast(pa.string())


def numbers(table: pa.Table, column: str, kind: pa.DataType | None = None) -> pa.Array:
    """Return a numeric or boolean column as float32 (or ``kind``) ``[N]``."""
    return _as_numbers(column_array(table, column), column, kind or pa.float32())


def _as_numbers(array: pa.Array, column: str, kind: pa.DataType) -> pa.Array:
    found = array.type
    numeric = (
        pa.types.is_integer(found)
        or pa.types.is_floating(found)
        or pa.types.is_decimal(found)
        or pa.types.is_boolean(found)
        or pa.types.is_null(found)
    )
    if not numeric:
        raise InputError(f"column '{column}' is {found}; expected numbers")
    if pa.types.is_boolean(found):
        array = array.cast(pa.int8())
    if pa.types.is_decimal(found):
        array = array.cast(pa.float64())
    try:
        # Rounding to the width of a float is wanted; a fraction where an integer belongs is not.
        return array.cast(kind, safe=not pa.types.is_floating(kind))
    except pa.ArrowInvalid:
        raise InputError(
            f"column '{column}' holds fractions or too large numbers; expected {kind}"
        ) from None


def label_values(table: pa.Table, spec: str | LabelMap) -> pa.Array:
    """Return a label as float32 ``[N]``; null = not observed.

    Examples
    --------
    >>> table = pa.table({"event": ["view", "buy", None]})
    >>> label_values(table, LabelMap(column="event", values=("buy", "cart"))).to_pylist()
    [0.0, 1.0, None]
    """
    if isinstance(spec, str):
        return numbers(table, spec)
    found = ids(table, spec.column)
    text = pa.types.is_string(found.type)
    wanted = pa.array([v for v in spec.values if isinstance(v, str) == text], found.type)
    if len(wanted) < len(spec.values):
        kind = "text" if text else "integers"
        raise InputError(
            f"column '{spec.column}' holds {kind}, but a label lists {list(spec.values)}; "
            f"give {kind}"
        )
    held = pc.is_in(found, value_set=wanted).cast(pa.float32())
    return pc.if_else(found.is_valid(), held, pa.scalar(None, pa.float32()))


def times(table: pa.Table, column: str, unit: TimeUnit) -> pa.Array:
    """Return a column of times as int64 milliseconds since 1970 UTC ``[N]``, rounded down.

    Examples
    --------
    >>> table = pa.table({"t": ["2019-11-09T18:42:51+01:00", "2019-11-09", None]})
    >>> times(table, "t", "ms").to_pylist()
    [1573321371000, 1573257600000, None]
    >>> times(pa.table({"t": [1.5, -0.5]}), "t", "s").to_pylist()
    [1500, -500]
    """
    array = column_array(table, column)
    kind = array.type
    if pa.types.is_date(kind):
        return array.cast(pa.timestamp("ms")).cast(pa.int64())
    if pa.types.is_timestamp(kind):
        array, unit = array.cast(pa.int64()), kind.unit
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        array, unit = _parse_iso(array, column).cast(pa.int64()), "us"
    elif pa.types.is_null(kind):
        array = array.cast(pa.int64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise InputError(f"column '{column}' is {kind}; expected times")
    if pa.types.is_integer(array.type):
        return _to_ms(array.cast(pa.int64()), unit)
    scaled = pc.floor(pc.multiply(array.cast(pa.float64()), _PER_MS[unit]))
    return scaled.cast(pa.int64())


def _to_ms(array: pa.Array, unit: str) -> pa.Array:
    if unit in ("s", "ms"):
        return pc.multiply(array, 1000 if unit == "s" else 1)
    value = np.asarray(array.fill_null(0), dtype=np.int64) // (1000 if unit == "us" else 1_000_000)
    return pa.array(value, mask=array.is_null().to_numpy(zero_copy_only=False))


def _parse_iso(array: pa.Array, column: str) -> pa.Array:
    text = pc.utf8_trim_whitespace(array.cast(pa.string()))
    dates = pc.equal(pc.utf8_length(text), 10)
    text = pc.if_else(dates, pc.binary_join_element_wise(text, "T00:00:00", ""), text)
    zoned = pc.match_substring_regex(text, _HAS_ZONE)
    text = pc.if_else(zoned, text, pc.binary_join_element_wise(text, "Z", ""))
    try:
        return text.cast(pa.timestamp("us", "UTC"))
    except pa.ArrowInvalid as error:
        reason = str(error).splitlines()[0].removesuffix("Z'")
        raise InputError(
            f"column '{column}': {reason}; expected ISO 8601 times (2019-11-09T18:42:51Z), or "
            "numbers with time_unit"
        ) from None


def feature_values(table: pa.Table, spec: ColumnMap) -> tuple[pa.Array, int]:
    """Return a feature's raw values ``[N]`` and, for a vector, its width (else 0)."""
    if spec.kind == "categorical":
        return ids(table, spec.column), 0
    if spec.kind == "dense":
        return numbers(table, spec.column, pa.float64()), 0
    array = column_array(table, spec.column)
    if spec.kind == "multi" and spec.separator is not None and pa.types.is_string(array.type):
        return _split(array, spec.separator), 0
    if not (pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type)):
        fix = "; give its separator" if spec.kind == "multi" else ""
        raise InputError(f"column '{spec.column}' is {array.type}; expected a list per row{fix}")
    if pa.types.is_fixed_size_list(array.type):
        array = array.cast(pa.list_(array.type.value_type))
    return _as_lists(array, spec)


def _as_lists(array: pa.Array, spec: ColumnMap) -> tuple[pa.Array, int]:
    lengths = pc.list_value_length(array)
    flat = array.flatten()
    width = 0
    if spec.kind == "vector":
        widths: npt.NDArray[np.int32] = pc.unique(lengths.drop_null()).to_numpy()
        if len(widths) != 1:
            raise InputError(
                f"column '{spec.column}': vectors of {len(widths)} different widths "
                f"({sorted(widths.tolist())[:3]}); expected one"
            )
        width = int(widths[0])
        flat = _as_numbers(flat, spec.column, pa.float32())
    else:
        flat = _as_ids(flat, spec.column)
    ends = np.concatenate([[0], np.cumsum(lengths.fill_null(0).to_numpy())]).astype(np.int32)
    mask = array.is_null() if array.null_count else None
    return pa.ListArray.from_arrays(pa.array(ends), flat, mask=mask), width


def _split(array: pa.Array, separator: str) -> pa.Array:
    parts = pc.split_pattern(array, separator)
    flat = pc.utf8_trim_whitespace(parts.flatten())
    keep = pc.greater(pc.utf8_length(flat), 0)
    parent = pc.list_parent_indices(parts).filter(keep).to_numpy()
    lengths = np.bincount(parent, minlength=len(array))
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    mask = array.is_null() if array.null_count else None
    return pa.ListArray.from_arrays(pa.array(ends), flat.filter(keep), mask=mask)
