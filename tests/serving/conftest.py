"""A log with every owner and kind, models with weights that are nowhere zero, bundles of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from prerank.cascade import Cascade, Tier
from prerank.log import Log, Transforms, open_log, write_log
from prerank.log.growth import compute_stats
from prerank.models import get
from prerank.models.base import Model
from prerank.schema import Feature, Label, Schema, Task
from prerank.serving.engine import Engine
from prerank.serving.export import export
from prerank.serving.messages import RankRequest
from prerank.serving.replay import requests_of

DAY = 86_400_000
START = 1_700_000_000_000 // DAY * DAY
NUM_ITEMS = 60


def _feature(owner: Any, name: str, kind: Any, **options: Any) -> Feature:
    return Feature(name=name, owner=owner, kind=kind, **options)


SCHEMA = Schema(
    features=(
        _feature("item", "item", "categorical"),
        _feature("item", "category", "categorical"),
        _feature("item", "tags", "multi", vocabulary="tag"),
        _feature("item", "price", "dense", transforms=("log1p", "standard")),
        _feature("item", "born", "dense"),
        _feature("item", "image", "vector", dim=3),
        _feature("user", "user", "categorical"),
        _feature("user", "likes", "multi", vocabulary="tag"),
        _feature("user", "age", "dense", transforms=("quantile",)),
        _feature("user", "taste", "vector", dim=2),
        _feature("context", "device", "categorical"),
        _feature("context", "hour", "categorical", transforms=("hour",)),
        _feature("context", "load", "dense"),
        _feature("candidate", "route", "categorical"),
        _feature("candidate", "ctr", "dense", transforms=("standard",)),
        _feature("candidate", "item_age", "dense", transforms=("age_of",), of="born"),
        _feature("history", "action", "categorical", stream="views"),
        _feature("history", "watch", "dense", stream="views", transforms=("log1p",)),
    ),
    streams=("views", "buys"),
    channels=("near", "popular"),
    labels=(Label(name="click"), Label(name="buy")),
    tasks=(Task(name="click", positive="click"), Task(name="buy", positive="buy")),
)


def item_ids(rows: Any, *, text: bool) -> Any:
    """Raw ids: integers far apart, or strings."""
    rows = np.asarray(rows)
    return np.char.add("i", rows.astype(str)) if text else rows * 7 + 3


def write_rich(path: Path, *, num_requests: int = 48, text: bool = False, seed: int = 0) -> Log:
    """Write a log of four days; some values are missing everywhere that they may be."""
    rng = np.random.default_rng(seed)

    def maybe(value: Any) -> Any:
        return None if rng.random() < 0.15 else value

    def dense(scale: float = 1.0) -> Any:
        return maybe(float(rng.normal() * scale))

    def words(prefix: str, size: int, num: int) -> list[str]:
        return [f"{prefix}{k}" for k in rng.integers(0, size, num)]

    time = START + np.sort(rng.integers(0, 4 * DAY, num_requests))
    rows: list[dict[str, Any]] = []
    for r, now in enumerate(time.tolist()):
        num = int(rng.integers(1, 30)) if r != 1 else 0
        chosen = rng.permutation(NUM_ITEMS)[:num]
        row: dict[str, Any] = {
            "request_id": r,
            "user": int(rng.integers(0, 9)),
            "time": now,
            "likes": maybe(words("t", 6, int(rng.integers(0, 3)))),
            "age": maybe(float(rng.integers(15, 80))),
            "taste": maybe(rng.normal(size=2).tolist()),
            "device": maybe(words("d", 3, 1)[0]),
            "load": dense(),
            "candidates.item": item_ids(chosen, text=text).tolist(),
            "candidates.stage": rng.choice(["prerank", "exposed"], num).tolist(),
            "candidates.channel": rng.choice(["near", "popular"], num).tolist(),
            "candidates.route": [maybe(w) for w in words("r", 4, num)],
            "candidates.ctr": [dense() for _ in range(num)],
            "labels.click": rng.integers(0, 2, num).astype(float).tolist(),
            "labels.buy": rng.integers(0, 2, num).astype(float).tolist(),
        }
        for stream in SCHEMA.streams:
            length = 0 if r == 2 else int(rng.integers(0, 12))
            past = item_ids(rng.integers(0, NUM_ITEMS, length), text=text)
            row[f"history.{stream}.item"] = past.tolist()
            ages = np.sort(rng.integers(1, 9 * DAY, length))[::-1]
            row[f"history.{stream}.time"] = (now - ages).tolist()
        views = len(row["history.views.item"])
        row["history.views.action"] = [maybe(w) for w in words("a", 3, views)]
        row["history.views.watch"] = [dense(100.0) for _ in range(views)]
        rows.append(row)
    every = np.arange(NUM_ITEMS)
    items = pa.table(
        {
            "item_id": item_ids(every, text=text),
            "category": [maybe(w) for w in words("c", 5, NUM_ITEMS)],
            "tags": [words("t", 6, int(rng.integers(0, 4))) for _ in every],
            "price": [maybe(float(p)) for p in rng.gamma(2.0, 10.0, NUM_ITEMS)],
            "born": [maybe(float(START - rng.integers(0, 30) * DAY)) for _ in every],
            "image": [maybe(rng.normal(size=3).tolist()) for _ in every],
        }
    )
    cut = num_requests * 2 // 3
    splits = {"train": np.arange(cut), "test": np.arange(cut, num_requests)}
    write_log(path, SCHEMA, [pa.Table.from_pylist(rows)], items, splits=splits)
    compute_stats(path, ["1d"])
    return open_log(path)


@pytest.fixture(scope="session", autouse=True)
def no_fsync() -> Iterator[None]:
    """Waiting for the disk is most of the time here; tests of crashes count the calls instead."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def rich_log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    return write_rich(tmp_path_factory.mktemp("serving") / "log")


@pytest.fixture(scope="session")
def text_log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    """The same with strings as item ids."""
    return write_rich(tmp_path_factory.mktemp("serving") / "text", text=True)


@pytest.fixture(scope="session")
def transforms(rich_log: Log) -> Transforms:
    return Transforms.fit(rich_log["train"], min_count=1, max_history=6)


@pytest.fixture(scope="session")
def new_model() -> Callable[..., Model]:
    """``new_model(name, transforms, seed=0, **changes)``: as if trained."""

    def make(name: str, fitted: Transforms, *, seed: int = 0, **changes: Any) -> Model:
        torch.manual_seed(seed)
        kind: Any = get(name)
        model: Model = kind.Config(**changes).build(fitted.schema)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.transforms = fitted
        return model.eval()

    return make


@pytest.fixture(scope="session")
def cascade(new_model: Callable[..., Model], transforms: Transforms) -> Cascade:
    light = new_model("hap_light", transforms)
    strong = new_model("hap_expressive", transforms, seed=1)
    return Cascade([Tier(light, forward=0.4), Tier(strong, value={"click": 1.0, "buy": 2.0})])


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, cascade: Cascade, rich_log: Log) -> Path:
    """A bundle of two tiers that no test may change: copy it first."""
    out = tmp_path_factory.mktemp("serving") / "bundle"
    export(cascade, out, rich_log, num_checked=12, num_stored=4)
    return out


@pytest.fixture(scope="session")
def engine(bundle: Path) -> Engine:
    return Engine.open(bundle, Engine.Config(dtype="fp32"))


@pytest.fixture(scope="session")
def requests(rich_log: Log) -> list[RankRequest]:
    """All requests of the log, as clients would send them."""
    return list(requests_of(rich_log, range(rich_log.num_requests)))
