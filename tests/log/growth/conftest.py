"""A log of thirty requests that grows by twenty more, and how to compare what it holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from prerank.log import Log, Part, Transforms, open_log
from prerank.log.format.raw import raw_requests
from prerank.log.growth import append_log

Row = dict[str, Any]


@pytest.fixture(scope="session")
def many_rows(make_rows: Callable[..., list[Row]]) -> list[Row]:
    """Fifty requests: thirty for the log, twenty that come later, with new ids of every kind."""
    rows = make_rows(50, seed=11)
    for k, row in enumerate(rows[30:]):
        row["user"] = f"new{k % 3}" if k % 2 else row["user"]
        row["device"] = 9 if k % 4 else row["device"]
        row["candidates.item"] = [i + 1000 if i > 60 else i for i in row["candidates.item"]]
    return rows


@pytest.fixture
def base_log(
    make_log: Callable[..., Log], many_rows: list[Row], rich_items: list[Row], tmp_path: Path
) -> Log:
    """The log of the first thirty requests."""
    splits = {"train": np.arange(20), "valid": np.arange(20, 25), "test": np.arange(25, 30)}
    return make_log(many_rows[:30], rich_items, splits=splits, out=tmp_path / "base" / "log")


@pytest.fixture
def later(to_table: Callable[..., pa.Table], many_rows: list[Row]) -> pa.Table:
    """The twenty requests that come later, as a raw table."""
    return to_table(many_rows[30:])


@pytest.fixture
def grown_log(base_log: Log, later: pa.Table, small_groups: Callable[..., Any]) -> Log:
    """All fifty requests; the later ones are the part ``day2``."""
    with small_groups():
        append_log(base_log.path, [later.slice(0, 7), later.slice(7)], part="day2")
    return open_log(base_log.path)


@pytest.fixture(scope="session")
def tensors_of() -> Callable[..., list[torch.Tensor]]:
    """``tensors_of(part, transforms)``: every tensor of every batch."""

    def tensors(value: Any) -> Iterator[torch.Tensor]:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            for key in sorted(value):
                yield from tensors(value[key])
        elif isinstance(value, tuple):
            for item in value:
                yield from tensors(item)
        elif dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                yield from tensors(getattr(value, field.name))

    def everything(part: Part, transforms: Transforms) -> list[torch.Tensor]:
        return [t for b in part.batches(transforms, 7, prefetch=0) for t in tensors(b)]

    return everything


@pytest.fixture(scope="session")
def same() -> Callable[..., bool]:
    """``same(a, b)``: whether two lists of tensors agree bit for bit, NaN equal to NaN."""

    def compare(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
        return len(a) == len(b) and all(
            x.dtype == y.dtype
            and x.shape == y.shape
            and torch.equal(x.double().nan_to_num(-77.0), y.double().nan_to_num(-77.0))
            for x, y in zip(a, b, strict=True)
        )

    return compare


@pytest.fixture(scope="session")
def stored_rows() -> Callable[[Log], list[Row]]:
    """``stored_rows(log)``: everything a log holds as plain Python rows."""
    return lambda log: [row for table in raw_requests(log) for row in table.to_pylist()]


@pytest.fixture(scope="session")
def snapshot() -> Callable[[Path], dict[str, bytes]]:
    """``snapshot(path)``: every file below a folder with its content."""
    return lambda path: {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }
