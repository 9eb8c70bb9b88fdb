"""Small request logs: plain Python rows, the same rows as Arrow tables, and the log of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prerank.log import Log, open_log, write_log
from prerank.log.format.files import FileEntry, Manifest, digest, log_id_of, read_json, write_json
from prerank.schema import Feature, Label, Schema, Task

Row = dict[str, Any]

START = 1_600_000_000_000  # 13 September 2020, 12:26:40 UTC
NUM_ITEMS = 12


def _feature(owner: Any, kind: Any, name: str, **more: Any) -> Feature:
    return Feature(name=name, owner=owner, kind=kind, **more)


SCHEMA = Schema(
    features=(
        _feature("user", "categorical", "user"),
        _feature("user", "categorical", "segment"),
        _feature("user", "dense", "age"),
        _feature("user", "multi", "interests"),
        _feature("user", "vector", "profile", dim=2),
        _feature("context", "categorical", "hour", transforms=("hour",)),
        _feature("context", "categorical", "weekday", transforms=("weekday",)),
        _feature("context", "categorical", "device"),
        _feature("context", "dense", "battery"),
        _feature("item", "categorical", "item"),
        _feature("item", "categorical", "genre"),
        _feature("item", "multi", "tags"),
        _feature("item", "vector", "emb", dim=3),
        _feature("item", "dense", "born"),
        _feature("item", "dense", "price"),
        _feature("candidate", "dense", "age_days", transforms=("age_of",), of="born"),
        _feature("candidate", "categorical", "slot"),
        _feature("candidate", "dense", "affinity"),
        _feature("history", "categorical", "act", stream="clicks"),
        _feature("history", "dense", "dwell", stream="clicks"),
    ),
    streams=("clicks", "likes"),
    labels=(Label(name="click"), Label(name="watch"), Label(name="buy", window_ms=10_000)),
    tasks=(Task(name="click", positive="click"), Task(name="buy", positive="buy")),
    engaged="click or watch >= 10",
    channels=("trend", "ann"),
    ranks=("prerank", "rank"),
    scores=("ranker",),
    has_weight=True,
    has_propensity=True,
    has_sample_prob=True,
    has_scored_online=True,
)


@pytest.fixture(scope="session")
def schema() -> Schema:
    """Schema with every owner and kind of feature, two streams, a delayed label, two tasks."""
    return SCHEMA


@pytest.fixture(scope="session")
def make_rows() -> Callable[..., list[Row]]:
    """``make_rows(num_requests, seed)``: plain Python rows; None is a missing value."""
    return _rows


@pytest.fixture(scope="session")
def make_items() -> Callable[..., list[Row]]:
    """``make_items(seed, num_items)``: plain Python items with features."""
    return _items


@pytest.fixture(scope="session")
def to_table() -> Callable[[list[Row]], pa.Table]:
    """``to_table(rows)``: plain Python rows as one Arrow table."""
    return lambda rows: pa.table({name: _array([row[name] for row in rows]) for name in rows[0]})


def _array(values: list[Any]) -> pa.Array:
    first = next((v for v in values if v is not None), None)
    if isinstance(first, list):
        flat = [x for v in values if v is not None for x in v]
        return pa.array(values, type=pa.list_(pa.array(flat).type))
    return pa.array(values)


def _rows(num_requests: int, seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)
    time = START
    rows: list[Row] = []
    for k in range(num_requests):
        time += int(rng.integers(0, 4)) * 3_600_000
        rows.append(_row(rng, f"r{k}", time))
    return rows


def _row(rng: np.random.Generator, request_id: str, time: int) -> Row:
    def choice(values: list[Any], missing: float = 0.2) -> Any:
        return None if rng.random() < missing else values[int(rng.integers(len(values)))]

    def number(missing: float = 0.2) -> float | None:
        return None if rng.random() < missing else float(np.float32(rng.normal()))

    num_candidates = int(rng.integers(0, 7))
    items = [int(i) * 10 for i in rng.permutation(NUM_ITEMS)[:num_candidates]]
    stages = rng.choice(list(SCHEMA.stages), num_candidates, p=[0.15] * 4 + [0.4]).tolist()
    shown = [stage == "exposed" for stage in stages]
    row: Row = {
        "request_id": request_id,
        "user": f"u{rng.integers(5)}",
        "time": time,
        "observed_until": choice([time + 5_000, time + 10_000, time + 90_000]),
        "segment": choice(["new", "old", "vip"]),
        "age": number(),
        "interests": [choice(["a", "b", "c"], 0.0) for _ in range(int(rng.integers(0, 4)))],
        "profile": [number(0.0), number(0.0)],
        "device": choice([7, 8]),
        "battery": number(),
    }
    for stream in SCHEMA.streams:
        num_events = int(rng.integers(0, 5))
        ages = sorted((int(a) for a in rng.integers(1, 10**6, num_events)), reverse=True)
        row[f"history.{stream}.item"] = [
            int(i) * 10 for i in rng.integers(0, NUM_ITEMS, num_events)
        ]
        row[f"history.{stream}.time"] = [time - age for age in ages]
        if stream == "clicks":
            row["history.clicks.act"] = [choice(["view", "like"]) for _ in ages]
            row["history.clicks.dwell"] = [number() for _ in ages]
    places = {stage: rng.permutation(num_candidates).tolist() for stage in SCHEMA.ranks}
    row |= {
        "candidates.item": items,
        "candidates.stage": stages,
        "candidates.channel": [choice(["trend", "ann"]) for _ in items],
        "candidates.rank.prerank": [
            None if s == "pool" else p for s, p in zip(stages, places["prerank"], strict=True)
        ],
        "candidates.rank.rank": [
            p if s in ("rank", "exposed") else None
            for s, p in zip(stages, places["rank"], strict=True)
        ],
        "candidates.score.ranker": [number() for _ in items],
        "candidates.scored_online": [bool(rng.random() < 0.7) for _ in items],
        "candidates.weight": [float(rng.integers(1, 4)) for _ in items],
        "candidates.propensity": [0.5 for _ in items],
        "candidates.sample_prob": [0.25 for _ in items],
        "candidates.slot": [choice([1, 2, 3]) for _ in items],
        "candidates.affinity": [number() for _ in items],
        "labels.click": [float(rng.random() < 0.4) if s else None for s in shown],
        "labels.watch": [choice([2.0, 10.0, 31.0]) if s else None for s in shown],
        "labels.buy": [choice([0.0, 1.0], 0.6) if s else None for s in shown],
    }
    return row


def _items(seed: int = 0, num_items: int = NUM_ITEMS - 2) -> list[Row]:
    rng = np.random.default_rng(seed + 1000)
    return [
        {
            "item_id": i * 10,
            "genre": [None, "drama", "news"][int(rng.integers(3))],
            "tags": rng.choice(["x", "y", "z"], int(rng.integers(0, 3)), replace=False).tolist(),
            "emb": [float(np.float32(x)) for x in rng.normal(size=3)],
            "born": None if rng.random() < 0.2 else float(START - int(rng.integers(10**10))),
            "price": None if rng.random() < 0.2 else float(np.float32(rng.random())),
        }
        for i in range(num_items)
    ]


@pytest.fixture(scope="session")
def small_groups() -> Callable[..., Any]:
    """``with small_groups(requests, files): ...``: row groups of so few requests, small files."""

    def patch(group: int = 4, groups_per_part: int = 3) -> Any:
        context = pytest.MonkeyPatch.context()

        class Small:
            def __enter__(self) -> None:
                patcher = context.__enter__()
                patcher.setattr("prerank.log.format.parts._GROUP_REQUESTS", (group, group))
                patcher.setattr("prerank.log.format.parts._PART_GROUPS", groups_per_part)

            def __exit__(self, *error: Any) -> None:
                context.__exit__(*error)

        return Small()

    return patch


@pytest.fixture(scope="session")
def make_log(
    tmp_path_factory: pytest.TempPathFactory,
    to_table: Callable[[list[Row]], pa.Table],
    small_groups: Callable[..., Any],
) -> Callable[..., Log]:
    """``make_log(rows, items, group=4, ...)``: the log of plain rows, in small row groups."""

    def make(
        rows: list[Row],
        items: list[Row] | None = None,
        *,
        schema: Schema = SCHEMA,
        group: int = 4,
        groups_per_part: int = 3,
        chunk: int = 5,
        splits: dict[str, Any] | None = None,
        out: Path | None = None,
    ) -> Log:
        out = out or tmp_path_factory.mktemp("log") / "log"
        table = to_table(rows)
        pieces = [table.slice(i, chunk) for i in range(0, len(rows), chunk)]
        with small_groups(group, groups_per_part):
            write_log(out, schema, pieces, to_table(items) if items else None, splits=splits)
        return open_log(out)

    return make


@pytest.fixture(scope="session")
def rich_rows() -> list[Row]:
    """Thirty requests of the rich schema."""
    return _rows(30, seed=3)


@pytest.fixture(scope="session")
def rich_items() -> list[Row]:
    """Items of the rich schema; two more items stand in requests only."""
    return _items(3)


@pytest.fixture(scope="session")
def rich_log(make_log: Callable[..., Log], rich_rows: list[Row], rich_items: list[Row]) -> Log:
    """The log of ``rich_rows`` and ``rich_items``, split by row into train, valid, test."""
    splits = {"train": np.arange(20), "valid": np.arange(20, 25), "test": np.arange(25, 30)}
    return make_log(rich_rows, rich_items, splits=splits)


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Log], Path]:
    """``copy_of(log)``: a fresh copy of a log's folder, to damage."""
    names: Iterator[int] = iter(range(10**6))
    return lambda log: Path(shutil.copytree(log.path, tmp_path / f"copy{next(names)}"))


@pytest.fixture(scope="session")
def adopt() -> Callable[[Path], None]:
    """``adopt(path)``: make the manifest agree with the files, as a careful forger would."""
    return _adopt


@pytest.fixture(scope="session")
def tamper() -> Callable[..., None]:
    """``tamper(path, name, change)``: rewrite a table of the log, its manifest to match."""

    def rewrite(path: Path, name: str, change: Callable[[pa.Table], pa.Table]) -> None:
        file = path / name
        rows = read_json(path / "manifest.json", Manifest).files[name].row_group or None
        pq.write_table(change(pq.read_table(file)), file, row_group_size=rows)
        _adopt(path)

    return rewrite


def _adopt(path: Path) -> None:
    manifest = read_json(path / "manifest.json", Manifest)

    def entry(name: str) -> FileEntry:
        file = path / name
        known = manifest.files[name]
        return msgspec.structs.replace(known, bytes=file.stat().st_size, sha256=digest(file))

    log_id = log_id_of({name: entry(name) for name in manifest.files})
    schema = path / "schema.json"
    schema.write_text(schema.read_text().replace(manifest.log_id, log_id))
    files = {name: entry(name) for name in manifest.files}
    adopted = msgspec.structs.replace(manifest, files=files, log_id=log_id, content=log_id)
    write_json(adopted, path / "manifest.json")


PLAIN = Schema(
    features=(_feature("item", "categorical", "item"), _feature("candidate", "dense", "x")),
    labels=(Label(name="click"),),
)


@pytest.fixture(scope="session")
def plain_log(make_log: Callable[..., Log]) -> Callable[..., Log]:
    """``plain_log(times, users, clicks=..., x=...)``: two shown candidates a request."""

    def make(
        times: Iterable[int],
        users: Iterable[Any],
        clicks: Callable[[int, int], float | None] = lambda row, k: float(k == 0),
        x: Callable[[int, int], float | None] = lambda row, k: float(7 * row % 11 + k),
        **more: Any,
    ) -> Log:
        rows = [
            {
                "request_id": row,
                "user": user,
                "time": time,
                "candidates.item": [row % 5, 5 + row % 3],
                "candidates.stage": ["exposed", "exposed"],
                "candidates.x": [x(row, 0), x(row, 1)],
                "labels.click": [clicks(row, 0), clicks(row, 1)],
            }
            for row, (time, user) in enumerate(zip(times, users, strict=True))
        ]
        return make_log(rows, schema=PLAIN, **more)

    return make
