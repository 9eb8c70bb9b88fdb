"""Item statistics: values of items over time, joined as of each request.

``item_stats/part-00000.parquet`` has one row per item and moment at which its values changed:
``item``, ``valid_from_ms``, and one column per feature. A request sees the last row of its item
that is valid from strictly before the request's time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prerank.errors import InputError
from prerank.log.format.files import DAMAGED, read_table

__all__ = ["ItemStats"]

Floats = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class ItemStats:
    """Values of items over time, for lookups as of a moment.

    Parameters
    ----------
    moments : ndarray ``[M]`` int64
        Distinct ``valid_from_ms``, ascending.
    keys : ndarray ``[N]`` int64
        ``item * M + moment`` of each row, ascending.
    values : dict of str to ndarray ``[N]`` float32
        By feature name.
    """

    moments: Index
    keys: Index
    values: dict[str, npt.NDArray[np.float32]]

    @classmethod
    def load(cls, path: Path, names: Sequence[str], num_items: int) -> ItemStats:
        """Read the statistics of a log of so many items.

        Raises
        ------
        InputError
            The file is missing, damaged, or lacks a feature of the schema.
        """
        table = read_table(path, ["item", "valid_from_ms", *names])
        for name, kind in (("item", pa.int32()), ("valid_from_ms", pa.int64())):
            if table[name].type != kind or table[name].null_count:
                raise InputError(
                    f"{path}: column '{name}' is {table[name].type} with "
                    f"{table[name].null_count} nulls, expected {kind} without; {DAMAGED}"
                )
        values = {}
        for name in names:
            if table[name].type != pa.float32():
                raise InputError(
                    f"{path}: column '{name}' is {table[name].type}, expected float; {DAMAGED}"
                )
            values[name] = table[name].to_numpy()
            # A null is a value that does not exist; all others are numbers.
            if (
                np.isinf(values[name]).any()
                or np.isnan(values[name]).sum() > table[name].null_count
            ):
                raise InputError(
                    f"{path}: column '{name}' has values that are not finite; {DAMAGED}"
                )
        item = table["item"].to_numpy()
        if len(item) and not 0 <= item.min() <= item.max() < num_items:
            raise InputError(f"{path}: an item is outside the log's {num_items} rows; {DAMAGED}")
        moments, moment = np.unique(table["valid_from_ms"].to_numpy(), return_inverse=True)
        keys = item.astype(np.int64) * max(len(moments), 1) + moment
        if len(keys) and (np.diff(keys) <= 0).any():
            raise InputError(f"{path}: rows are not by item and time, each once; {DAMAGED}")
        return cls(moments, keys, values)

    def lookup(self, name: str, item: npt.NDArray[Any], time: npt.NDArray[Any]) -> Floats:
        """Return the value of each item ``[N]`` strictly before each time ``[N]`` (ms).

        NaN where the item had no value yet.
        """
        if not len(self.keys):
            return np.full(len(item), np.nan)
        size = len(self.moments)
        moment = np.searchsorted(self.moments, time, side="left") - 1
        wanted = item.astype(np.int64) * size + moment
        at = np.searchsorted(self.keys, wanted, side="right") - 1
        found = (moment >= 0) & (at >= 0) & (self.keys[np.maximum(at, 0)] // size == item)
        values = self.values[name][np.maximum(at, 0)].astype(np.float64)
        return np.where(found, values, np.nan)
