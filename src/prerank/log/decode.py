"""Row groups of a log to ``Columns``, checked: what is damaged is named, never passed on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prerank.errors import InputError
from prerank.log.columns import Array, Columns, Group
from prerank.log.files import DAMAGED, PARQUET_ERRORS
from prerank.log.layout import Column
from prerank.schema import Schema

__all__ = ["decode", "open_part", "read_row_group"]


def open_part(path: Path) -> pq.ParquetFile:
    """Open a part file with page checksums verified."""
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except FileNotFoundError:
        raise InputError(f"{path}: not found; {DAMAGED}") from None
    except PARQUET_ERRORS as error:
        raise InputError(f"{path}: cannot be opened ({_line(error)}); {DAMAGED}") from None


def read_row_group(
    file: pq.ParquetFile, path: Path, index: int, columns: list[Column], expected_rows: int
) -> pa.Table:
    """Read one row group of a part file."""
    names = [c.name for c in columns]
    absent = [name for name in names if name not in file.schema_arrow.names]
    if absent:
        raise InputError(f"{path}: no column '{absent[0]}', which schema.json declares; {DAMAGED}")
    try:
        table = file.read_row_group(index, columns=names, use_threads=False)
    except PARQUET_ERRORS as error:
        raise InputError(
            f"{path}: row group {index} cannot be read ({_line(error)}); {DAMAGED}"
        ) from None
    if table.num_rows != expected_rows:
        raise InputError(
            f"{path}: row group {index} has {table.num_rows} rows, expected {expected_rows}; "
            f"{DAMAGED}"
        )
    return table


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def decode(
    table: pa.Table, columns: list[Column], schema: Schema, first_row: int, where: str
) -> Columns:
    """Turn encoded Arrow columns into numpy ones and check them.

    Raises
    ------
    InputError
        Lists of unequal length, an index outside its vocabulary or list of stages, a value that
        is not finite, a history event at or after its request: with file, row group and column.
    """
    scalars: dict[str, Array] = {"row": np.arange(first_row, first_row + table.num_rows)}
    offsets: dict[str, npt.NDArray[np.int64]] = {}
    values: dict[str, dict[str, Array]] = {}
    for column in columns:
        array = table[column.name].combine_chunks()
        at = f"{where}: column '{column.name}'"
        if column.shape == "scalar":
            scalars[column.name] = _numpy(array, column, schema, at)
            continue
        if not pa.types.is_list(array.type) or array.null_count:
            raise InputError(f"{at} is not a list in every row; {DAMAGED}")
        ends = array.offsets.to_numpy().astype(np.int64)
        ends, flat = ends - ends[0], array.flatten()
        if column.dim:
            if len(flat) != table.num_rows * column.dim:
                raise InputError(f"{at} is not {column.dim} wide in every row; {DAMAGED}")
            scalars[column.name] = _numpy(flat, column, schema, at).reshape(-1, column.dim)
            continue
        if not np.array_equal(offsets.setdefault(column.group, ends), ends):
            raise InputError(f"{at} has lists of another length than '{column.group}'; {DAMAGED}")
        values.setdefault(column.group, {})[column.key] = _numpy(flat, column, schema, at)
    groups = {name: Group(offsets[name], values[name]) for name in values}
    result = Columns(scalars, groups)
    _check_histories(result, where)
    return result


def _numpy(array: pa.Array, column: Column, schema: Schema, at: str) -> npt.NDArray[Any]:
    try:
        match column.coding:
            case "float":
                nulls = array.null_count
                result = array.to_numpy(zero_copy_only=False)
                num_bad = int((~np.isfinite(result)).sum()) - nulls
                if num_bad:
                    raise InputError(f"{at} has {num_bad} values that are not finite; {DAMAGED}")
                return np.asarray(result)
            case "int":
                return np.asarray(pc.fill_null(array, -1).to_numpy(zero_copy_only=False))
            case "bool":
                return np.asarray(pc.fill_null(array, False).to_numpy(zero_copy_only=False))
            case "raw":
                return np.asarray(array.to_numpy(zero_copy_only=False))
            case "channel":
                array = pc.fill_null(array, -1)
        if array.null_count:
            raise InputError(f"{at} has a null; {DAMAGED}")
        result = array.to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        raise InputError(f"{at} cannot be decoded ({_line(error)}); {DAMAGED}") from None
    if column.coding != "time" and len(result):
        low, size = _bounds(column, schema)
        if result.min() < low or result.max() >= size:
            bad = result[(result < low) | (result >= size)][0]
            raise InputError(
                f"{at} has index {bad}, outside its {size} "
                f"{'rows of vocabulary ' + repr(column.vocab) if column.vocab else 'names'}; "
                f"{DAMAGED}"
            )
    return np.asarray(result)


def _bounds(column: Column, schema: Schema) -> tuple[int, int]:
    match column.coding:
        case "stage":
            return 0, len(schema.stages)
        case "channel":
            return -1, len(schema.channels)
        case _:
            return 0, schema.size(column.vocab)


def _check_histories(columns: Columns, where: str) -> None:
    for name, group in columns.groups.items():
        if not name.startswith("history."):
            continue
        times = np.repeat(columns.scalars["time"], np.diff(group.offsets))
        late = group.values["time"] >= times
        if late.any():
            row = int(
                columns.scalars["row"][
                    np.searchsorted(group.offsets, int(np.flatnonzero(late)[0]), side="right") - 1
                ]
            )
            raise InputError(
                f"{where}: '{name}' of request row {row} reaches the request's own time or past "
                "it; a history holds earlier events only"
            )
