"""Tiny worlds as ragged logs, their candidates as flat arrays from the raw tables, and runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
import torch

from prerank.batch import Evidence
from prerank.config import from_values
from prerank.log import Columns, Log, Part, open_log, write_log
from prerank.models import Model, get
from prerank.objectives import BCE
from prerank.training import FitConfig, fit
from prerank.world import World, WorldConfig

CONFIG = WorldConfig(
    seed=5,
    num_users=40,
    num_items=600,
    num_requests=320,
    num_days=4,
    num_clusters=8,
    num_subclusters=4,
    num_retrieved=40,
    num_preranked=20,
    num_ranked=12,
    num_exposed=8,
    num_pool=6,
    ctr=0.3,
)


@dataclass
class Flat:
    """A world, its log, and the candidates of all requests as flat raw columns (NaN: null)."""

    world: World
    log: Log
    table: pa.Table
    offsets: np.ndarray
    request: np.ndarray
    columns: dict[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    @property
    def user(self) -> np.ndarray:
        return self.table["user"].to_numpy()[self.request]

    @property
    def shown(self) -> np.ndarray:
        return self["candidates.stage"] == "exposed"

    @property
    def clicked(self) -> np.ndarray:
        return self.shown & (self["labels.click"] == 1)

    def within(self, part: str) -> np.ndarray:
        return np.isin(self.request, self.world.splits()[part])

    def requests(self, part: str) -> Iterator[slice]:
        """Yield the candidates of each request of a part."""
        for row in self.world.splits()[part]:
            yield slice(int(self.offsets[row]), int(self.offsets[row + 1]))


def _thinned(table: pa.Table) -> pa.Table:
    """Return the table with ragged requests: some candidates that were not shown are dropped.

    Every twentieth request loses all its candidates.
    """
    draw = np.random.default_rng(0)
    stage = table["candidates.stage"].combine_chunks()
    offsets = stage.offsets.to_numpy()
    request = np.repeat(np.arange(table.num_rows), np.diff(offsets))
    kept_share = draw.uniform(0.2, 1.0, table.num_rows)
    shown = stage.flatten().to_numpy(zero_copy_only=False) == "exposed"
    keep = (shown | (draw.random(len(request)) < kept_share[request])) & (request % 20 != 7)
    kept = np.concatenate([[0], np.cumsum(np.bincount(request[keep], minlength=table.num_rows))])
    for name in table.column_names:
        if name.startswith(("candidates.", "labels.")):
            flat = table[name].combine_chunks().flatten().filter(pa.array(keep))
            lists = pa.ListArray.from_arrays(pa.array(kept.astype(np.int32)), flat)
            table = table.set_column(table.column_names.index(name), name, lists)
    return table


def _write(folder: Path, config: WorldConfig) -> Flat:
    world = config.build()
    table = _thinned(pa.concat_tables(list(world.requests())).combine_chunks())
    write_log(folder / "log", world.schema, [table], world.items(), splits=world.splits())
    columns = {}
    for name in table.column_names:
        if name.startswith(("candidates.", "labels.")):
            column = table[name].combine_chunks()
            offsets = column.offsets.to_numpy()
            columns[name] = column.flatten().to_numpy(zero_copy_only=False)
    request = np.repeat(np.arange(table.num_rows), np.diff(offsets))
    return Flat(world, open_log(folder / "log"), table, offsets, request, columns)


@dataclass
class Given:
    """Scores by log row: those of request ``r`` are ``values[offsets[r]:offsets[r + 1]]``."""

    values: np.ndarray
    offsets: np.ndarray
    kind: str = "logit"
    calls: list[int] = field(default_factory=list)

    def __call__(self, columns: Columns, log: Log, evidence: Evidence) -> np.ndarray:
        self.calls.append(columns.num_requests)
        values = self.values.reshape(len(self.values), -1)
        rows = [values[self.offsets[r] : self.offsets[r + 1]] for r in columns.scalars["row"]]
        return np.concatenate(rows).astype(np.float64)


@pytest.fixture(scope="session")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Flat:
    """One task, pool items in valid and test."""
    return _write(tmp_path_factory.mktemp("world"), CONFIG)


@pytest.fixture(scope="session")
def two_tasks(tmp_path_factory: pytest.TempPathFactory) -> Flat:
    """Tasks ``click`` and ``long``."""
    config = msgspec.structs.replace(CONFIG, long_watch_ms=20_000, seed=6)
    return _write(tmp_path_factory.mktemp("world"), config)


@pytest.fixture(scope="session")
def given() -> type[Given]:
    """``given(values, offsets, kind)``: a scorer of chosen numbers."""
    return Given


@pytest.fixture(scope="session")
def small_log(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Log]:
    """``small_log(schema, rows, splits)``: a log of plain Python rows."""

    def make(
        schema: Any, rows: list[dict[str, Any]], splits: Mapping[str, Any] | None = None
    ) -> Log:
        table = pa.table({name: [row[name] for row in rows] for name in rows[0]})
        path = tmp_path_factory.mktemp("small") / "log"
        write_log(path, schema, [table], splits=None if splits is None else dict(splits))
        return open_log(path)

    return make


@pytest.fixture(scope="session", autouse=True)
def no_fsync() -> Iterator[None]:
    """Waiting for the disk is most of the time of a tiny run, and no test cuts the power."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda _: None)
        yield


def _train(
    name: str,
    train: Part,
    out: Path | None = None,
    *,
    values: Mapping[str, Any] | None = None,
    **fit_values: Any,
) -> Model:
    torch.manual_seed(len(name))
    small = {"width": 8, "tables": {"dim": 4}, "tower": {"hidden": [8]}, **(values or {})}
    kind: Any = get(name)
    schema = train.log.schema
    model: Model = from_values(kind.Config, small, where="test").build(schema)
    config = FitConfig(batch_size=32, epochs=2, **fit_values)
    fit(model, train, BCE.Config().build(schema), config=config, out=out, progress=False)
    return model


@pytest.fixture(scope="session")
def train() -> Callable[..., Model]:
    """``train(name, part, out, **fit)``: a small trained model."""
    return _train


@dataclass(frozen=True)
class Runs:
    """Folders of two trained runs and their models in memory."""

    folder: Path
    two_tower: Model
    mlp: Model

    def paths(self) -> list[Path]:
        return [self.folder / "two_tower", self.folder / "mlp"]


@pytest.fixture(scope="session")
def runs(flat: Flat, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs on the train part of ``flat``; their transforms differ."""
    folder = tmp_path_factory.mktemp("runs")
    part = flat.log["train"]
    return Runs(
        folder,
        _train("two_tower", part, folder / "two_tower"),
        _train("mlp", part, folder / "mlp", min_count=4, max_history=3),
    )
