"""A small source log with users and a clock, and funnels built from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from prerank.funnel import FunnelConfig, Quotas, build_funnel
from prerank.funnel.config import FunnelConfig as Config
from prerank.log import Log, open_log, write_log
from prerank.schema import Feature, Label, Schema
from prerank.training import FitConfig

NUM_USERS, NUM_ITEMS, PER_USER, SLATE = 24, 80, 8, 4
DAY_MS = 86_400_000
START = 1_700_000_000_000


def _source(folder: Path, rule: str) -> Log:
    """Users prefer items of their own half; slates never repeat an item for a user."""
    draws = np.random.default_rng(7)
    requests = []
    past: dict[int, list[int]] = {u: [] for u in range(NUM_USERS)}
    for k in range(PER_USER):
        for u in range(NUM_USERS):
            free = [i for i in range(NUM_ITEMS) if i not in past[u]]
            weight = np.array([4.0 if i % 2 == u % 2 else 1.0 for i in free])
            slate = draws.choice(free, SLATE, replace=False, p=weight / weight.sum()).tolist()
            time = START + (k * NUM_USERS + u) * 3_600_000
            requests.append(
                {
                    "request_id": len(requests),
                    "user": 1000 + u,
                    "time": time,
                    "history.seen.item": list(past[u]),
                    "history.seen.time": [time - len(past[u]) + j for j in range(len(past[u]))],
                    "candidates.item": slate,
                    "candidates.stage": ["exposed"] * SLATE,
                    "candidates.price": [float(i) for i in slate],
                    "labels.click": [float(i % 2 == u % 2) for i in slate],
                }
            )
            past[u].extend(slate)
    schema = Schema(
        features=(
            Feature(name="user", owner="user", kind="categorical"),
            Feature(name="item", owner="item", kind="categorical"),
            Feature(name="half", owner="item", kind="categorical"),
            Feature(name="hour", owner="context", kind="categorical", transforms=("hour",)),
            Feature(name="price", owner="candidate", kind="dense"),
        ),
        streams=("seen",),
        labels=(Label(name="click"),),
    )
    items = pa.table({"item_id": range(NUM_ITEMS), "half": [i % 2 for i in range(NUM_ITEMS)]})
    rows = np.arange(len(requests))
    splits = {
        "train": rows[: 6 * NUM_USERS],
        "valid": rows[6 * NUM_USERS : 7 * NUM_USERS],
        "test": rows[7 * NUM_USERS :],
    }
    tables = [pa.Table.from_pylist(requests[k : k + 50]) for k in range(0, len(requests), 50)]
    write_log(folder, schema, tables, items, splits=splits, splits_rule=rule)
    return open_log(folder)


@pytest.fixture(scope="session")
def user_log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    """A log whose clock is comparable within users only."""
    return _source(tmp_path_factory.mktemp("source") / "user", "per user by order")


@pytest.fixture(scope="session")
def clock_log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    """The same requests, split by time."""
    return _source(tmp_path_factory.mktemp("source") / "clock", "by time")


@pytest.fixture(scope="session")
def small() -> Config:
    """A funnel of seconds: 20 retrieved, 10 pre-ranked, 6 ranked."""
    quick = FitConfig(batch_size=32, min_count=1)
    return FunnelConfig(
        quotas=Quotas(retrieval=20, prerank=12, rank=6),
        num_pool=5,
        refits=2,
        warm_up=0.3,
        rows_per_shard=16,
        neighbours=10,
        dim=8,
        prerank_fit=quick,
        rank_fit=quick,
    )


@pytest.fixture(scope="session")
def built(
    user_log: Log, clock_log: Log, small: Config, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Log, Log]]:
    """``built("user")``: a source log and the log of its funnel."""
    made: dict[str, tuple[Log, Log]] = {}
    folder = tmp_path_factory.mktemp("built")

    def build(clock: str) -> tuple[Log, Log]:
        if clock not in made:
            source = user_log if clock == "user" else clock_log
            build_funnel(source, folder / clock, small)
            made[clock] = source, open_log(folder / clock)
        return made[clock]

    return build
