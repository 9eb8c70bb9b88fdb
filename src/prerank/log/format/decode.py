"""Row groups of a log to ``Columns``, checked: what is damaged is named, never passed on."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prerank.errors import InputError
from prerank.log.format.columns import Array, Columns, Group, first_bad_row
from prerank.log.format.files import DAMAGED, PARQUET_ERRORS, first_line
from prerank.log.format.layout import ARROW, Column
from prerank.schema import Schema

__all__ = ["decode", "list_ends", "open_part", "read_row_group", "to_numpy"]


def open_part(path: Path) -> pq.ParquetFile:
    """Open a part file with page checksums verified."""
    try:
        found = path.stat()
        footer = _footer(path, found.st_ino, found.st_size, found.st_mtime_ns)
        return pq.ParquetFile(path, page_checksum_verification=True, metadata=footer)
    except FileNotFoundError:
        raise InputError(f"{path}: not found; {DAMAGED}") from None
    except PARQUET_ERRORS as error:
        raise InputError(f"{path}: cannot be opened ({first_line(error)}); {DAMAGED}") from None


@functools.lru_cache(maxsize=16)
def _footer(path: Path, inode: int, size: int, changed_ns: int) -> pq.FileMetaData:
    """Read a file's footer: of many row groups that takes as long as to read one of them."""
    return pq.read_metadata(path)


def read_row_group(
    file: pq.ParquetFile, path: Path, index: int, columns: list[Column], expected_rows: int
) -> pa.Table:
    """Read one row group of a part file."""
    names = [c.name for c in columns]
    present = set(file.schema_arrow.names)
    absent = [name for name in names if name not in present]
    if absent:
        raise InputError(f"{path}: no column '{absent[0]}', which schema.json declares; {DAMAGED}")
    try:
        table = file.read_row_group(index, columns=names, use_threads=False)
    except PARQUET_ERRORS as error:
        raise InputError(
            f"{path}: row group {index} cannot be read ({first_line(error)}); {DAMAGED}"
        ) from None
    if table.num_rows != expected_rows:
        raise InputError(
            f"{path}: row group {index} has {table.num_rows} rows, expected {expected_rows}; "
            f"{DAMAGED}"
        )
    return table


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
            scalars[column.name] = to_numpy(array, column, schema, at)
            continue
        ends, flat = list_ends(array, column, at)
        if column.dim:
            scalars[column.name] = to_numpy(flat, column, schema, at).reshape(-1, column.dim)
            continue
        if not np.array_equal(offsets.setdefault(column.group, ends), ends):
            raise InputError(f"{at} has lists of another length than '{column.group}'; {DAMAGED}")
        values.setdefault(column.group, {})[column.key] = to_numpy(flat, column, schema, at)
    groups = {name: Group(offsets[name], values[name]) for name in values}
    result = Columns(scalars, groups)
    _check_histories(result, where)
    return result


def list_ends(array: pa.Array, column: Column, at: str) -> tuple[npt.NDArray[np.int64], pa.Array]:
    """Return offsets ``[R + 1]`` from 0 and the flat values of a list column."""
    if not pa.types.is_list(array.type) or array.null_count:
        raise InputError(f"{at} is not a list in every row; {DAMAGED}")
    ends = array.offsets.to_numpy().astype(np.int64)
    ends -= ends[0]
    if column.dim and not np.array_equal(ends, np.arange(len(array) + 1) * column.dim):
        raise InputError(f"{at} is not {column.dim} wide in every row; {DAMAGED}")
    return ends, array.flatten()


def to_numpy(array: pa.Array, column: Column, schema: Schema, at: str) -> npt.NDArray[Any]:
    """Turn the values ``[N]`` of a column into numpy and check their type, range and finiteness."""
    if array.type not in ARROW[column.coding]:
        raise InputError(f"{at} holds {array.type}, expected {ARROW[column.coding][0]}; {DAMAGED}")
    try:
        match column.coding:
            case "float":
                nulls = array.null_count
                result = array.to_numpy(zero_copy_only=False)
                num_bad = len(result) - int(np.count_nonzero(np.isfinite(result))) - nulls
                if num_bad:
                    raise InputError(f"{at} has {num_bad} values that are not finite; {DAMAGED}")
                return np.asarray(result)
            case "int":
                array = pc.fill_null(array, -1) if array.null_count else array
                return np.asarray(array.to_numpy(zero_copy_only=False))
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
        raise InputError(f"{at} cannot be decoded ({first_line(error)}); {DAMAGED}") from None
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
        bad = first_bad_row(group.values["time"] >= times, group.offsets)
        if bad is not None:
            raise InputError(
                f"{where}: '{name}' of request row {columns.scalars['row'][bad]} reaches the "
                "request's own time or past it; a history holds earlier events only"
            )
