"""A small request log with a planted truth, and how to train on it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
import torch

from prerank.config import from_values
from prerank.log import Log, open_log, write_log
from prerank.models import get
from prerank.objectives import get as get_objective
from prerank.schema import Feature, Label, Schema

NUM_ITEMS = 12


@dataclass(frozen=True)
class Planted:
    """A log in which P(click) is a known function of the item and the user's group."""

    log: Log
    probability: np.ndarray  # [request, candidate]
    click: np.ndarray
    rows: dict[str, np.ndarray]


def _write(
    path: Path, num_requests: int, num_candidates: int, *, is_ragged: bool = False
) -> Planted:
    rng = np.random.default_rng(0)
    shape = (num_requests, num_candidates)
    user = rng.integers(0, 40, num_requests)
    item = np.argsort(rng.random((num_requests, NUM_ITEMS)), axis=1)[:, :num_candidates]
    taste = rng.normal(scale=1.5, size=(2, NUM_ITEMS))
    probability = 1 / (1 + np.exp(-taste[(user % 2)[:, None], item]))
    click = rng.random(shape) < probability
    past = rng.integers(0, NUM_ITEMS, (num_requests, 3))
    time = 1_700_000_000_000 + np.arange(num_requests) * 60_000
    schema = Schema(
        features=(
            Feature(name="group", owner="user", kind="categorical"),
            Feature(name="item", owner="item", kind="categorical"),
        ),
        streams=("seen",),
        labels=(Label(name="click"),),
        has_weight=True,
    )
    length = rng.integers(0, num_candidates + 1, num_requests) if is_ragged else None

    def lists(values: np.ndarray) -> list[list[Any]]:
        rows = values.tolist()
        return rows if length is None else [r[:k] for r, k in zip(rows, length, strict=True)]

    table = pa.table(
        {
            "request_id": np.arange(num_requests),
            "user": user,
            "time": time,
            "group": user % 2,
            "history.seen.item": past.tolist(),
            "history.seen.time": (time[:, None] - [3000, 2000, 1000]).tolist(),
            "candidates.item": lists(item),
            "candidates.stage": lists(np.full(shape, "exposed")),
            "candidates.weight": lists(rng.random(shape) if is_ragged else np.ones(shape)),
            "labels.click": lists(click.astype(float)),
        }
    )
    cut = int(num_requests * 0.7)
    rows = {"train": np.arange(cut), "valid": np.arange(cut, num_requests)}
    write_log(path, schema, [table], splits=rows)
    return Planted(open_log(path), probability, click, rows)


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return _write(tmp_path_factory.mktemp("training") / "log", 300, 6)


@pytest.fixture(scope="session")
def bigger(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return _write(tmp_path_factory.mktemp("training") / "log", 3000, 10)


@pytest.fixture(scope="session")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """Requests of 0 to 6 candidates of unlike weights."""
    return _write(tmp_path_factory.mktemp("training") / "log", 300, 6, is_ragged=True)


@pytest.fixture(scope="session", autouse=True)
def no_fsync() -> Iterator[None]:
    """Waiting for the disk is most of the time of a tiny run, and no test cuts the power."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def new_model(planted: Planted) -> Callable[..., Any]:
    """Make the same model every time; dropout makes exact resuming harder."""

    def make(
        log: Log | None = None, seed: int = 0, dropout: float = 0.2, storage: str = "fp32"
    ) -> Any:
        torch.manual_seed(seed)
        tables = {"dim": 4, "storage": storage}
        values = {"width": 4, "tables": tables, "tower": {"hidden": [8], "dropout": dropout}}
        kind: Any = get("two_tower")
        config = from_values(kind.Config, values, where="test")
        return config.build((log or planted.log).schema)

    return make


_WORKER = Path(__file__).with_name("worker.py")


@pytest.fixture(scope="session")
def worker() -> Any:
    """The module ``worker.py``: what it runs in a process of its own can also be run here."""
    spec = importlib.util.spec_from_file_location("worker", _WORKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["worker"] = module  # where annotations of its classes are looked up
    fsync, filters = os.fsync, list(warnings.filters)
    spec.loader.exec_module(module)
    os.fsync, warnings.filters[:] = fsync, filters
    return module


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a worker process; it is killed at the end of the test if it still runs."""
    started: list[subprocess.Popen[str]] = []

    def begin(spec: Any, rank: int = 0, name: str = "spec") -> subprocess.Popen[str]:
        path = tmp_path / f"{name}.json"
        path.write_bytes(msgspec.json.encode(spec))
        process = subprocess.Popen(
            [sys.executable, str(_WORKER), str(path), str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def bce(planted: Planted) -> Any:
    return get_objective("bce").Config().build(planted.log.schema)
