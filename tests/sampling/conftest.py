"""A small funnel with every source, written as a log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from prerank.log import Columns, Log, open_log, write_log
from prerank.schema import Feature, Label, Schema

NUM_ITEMS = 400
NUM_LISTED = 60  # candidates of a request: 30 cut by pre-ranking, 20 by ranking, 10 shown
STAGES = ("retrieval",) * 30 + ("prerank",) * 12 + ("rank",) * 8 + ("exposed",) * 10


@dataclass(frozen=True)
class Funnel:
    """A log and what was put into it, ``[request, candidate]`` where it is per candidate."""

    log: Log
    item: np.ndarray
    rank: np.ndarray  # of both pre-ranking and ranking
    click: np.ndarray


def _write(path: Path, num_requests: int, *, pool_rows: bool, features: bool) -> Funnel:
    rng = np.random.default_rng(5)
    shape = (num_requests, NUM_LISTED)
    shuffled = np.argsort(rng.random((num_requests, NUM_ITEMS)), axis=1)
    item = shuffled[:, :NUM_LISTED]
    # Deeper stages rank higher; the order of storage says nothing.
    depth = np.tile(np.arange(NUM_LISTED)[::-1], (num_requests, 1))
    order = np.argsort(rng.random(shape), axis=1)
    rank = np.take_along_axis(depth, order, axis=1)
    stage = np.array(STAGES)[order]
    click = (rng.random(shape) < 0.15) & (stage == "exposed")
    click[::5] = False  # some requests have no positive
    shown = stage == "exposed"
    ranked = np.where(stage == "retrieval", -1, rank)
    time = 1_700_000_000_000 + np.arange(num_requests) * 60_000
    columns: dict[str, Any] = {
        "candidates.item": item,
        "candidates.stage": stage,
        "candidates.rank.prerank": rank,
        "candidates.rank.rank": ranked,
        "labels.click": np.where(shown, click.astype(float), np.nan),
    }
    if features:
        columns["candidates.score_r"] = rng.normal(size=shape) + item / 100
        columns["candidates.tag"] = rng.choice(np.array(["a", "b", "c"]), shape)
    if pool_rows:
        chance = 4 / (NUM_ITEMS - NUM_LISTED)
        extra = {
            "candidates.item": shuffled[:, NUM_LISTED : NUM_LISTED + 4],
            "candidates.stage": np.full((num_requests, 4), "pool"),
            "candidates.sample_prob": np.full((num_requests, 4), chance),
        }
        columns["candidates.sample_prob"] = np.ones(shape)
        for name, values in columns.items():
            blank = np.full((num_requests, 4), "" if values.dtype.kind == "U" else np.nan)
            if values.dtype.kind == "i":
                blank = np.full((num_requests, 4), -1)
            columns[name] = np.concatenate([values, extra.get(name, blank)], axis=1)
    past = rng.integers(0, NUM_ITEMS, (num_requests, 3))
    schema = Schema(
        features=(
            Feature(name="item", owner="item", kind="categorical"),
            Feature(name="user", owner="user", kind="categorical"),
            *(
                (
                    Feature(name="score_r", owner="candidate", kind="dense"),
                    Feature(name="tag", owner="candidate", kind="categorical"),
                )
                if features
                else ()
            ),
        ),
        streams=("clicks",),
        labels=(Label(name="click"),),
        ranks=("prerank", "rank"),
        has_sample_prob=pool_rows,
    )
    table = pa.table(
        {
            "request_id": np.arange(num_requests),
            "user": np.arange(num_requests) % 17,
            "time": time,
            "history.clicks.item": past.tolist(),
            "history.clicks.time": (time[:, None] - [3000, 2000, 1000]).tolist(),
            **{name: _lists(name, values) for name, values in columns.items()},
        }
    )
    cut = num_requests * 3 // 4
    items = pa.table({"item_id": np.arange(NUM_ITEMS)})
    splits = {"train": np.arange(cut), "valid": np.arange(cut, num_requests)}
    write_log(path, schema, [table], items, splits=splits)
    return Funnel(open_log(path), item, rank, click)


def _lists(name: str, values: np.ndarray) -> list[list[Any]]:
    rows: list[list[Any]] = values.tolist()
    if "rank." in name:
        return [[None if v < 0 else v for v in row] for row in rows]
    if name in ("labels.click", "candidates.score_r"):
        return [[None if v != v else v for v in row] for row in rows]
    return [[None if v == "" else v for v in row] for row in rows]


@pytest.fixture(scope="session")
def funnel(tmp_path_factory: pytest.TempPathFactory) -> Funnel:
    """80 requests without candidate features or stored pool rows."""
    return _write(tmp_path_factory.mktemp("sampling") / "log", 80, pool_rows=False, features=False)


@pytest.fixture(scope="session")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Funnel:
    """200 requests with candidate features and stored pool rows."""
    return _write(tmp_path_factory.mktemp("sampling") / "log", 200, pool_rows=True, features=True)


@pytest.fixture(scope="session")
def whole() -> Callable[..., Columns]:
    """Return all requests of a part at once."""

    def read(part: Any) -> Columns:
        return next(part.columns(10**6))

    return read


def by_request(columns: Columns) -> list[dict[str, np.ndarray]]:
    """Return each request's candidate columns."""
    group = columns.candidates
    return [
        {name: values[a:b] for name, values in group.values.items()}
        for a, b in zip(group.offsets[:-1], group.offsets[1:], strict=True)
    ]


@pytest.fixture(scope="session")
def split() -> Callable[[Columns], list[dict[str, np.ndarray]]]:
    """Return the candidates of each request as columns."""
    return by_request
