"""Impressions sorted on disk give the very same log as impressions in memory."""

from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv as pv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prerank.errors import InputError, PrerankError
from prerank.log.impressions import external, from_impressions, past, rows
from prerank.log.impressions.mapping import ColumnMap, HistoryRule, ImpressionMap, LabelMap

pytest.importorskip("duckdb")

MAPPING = ImpressionMap(
    user="the user",
    item="i",
    time="t",
    time_unit="s",
    request_id="r",
    observed_until="end",
    labels={"click": "click", "buy": LabelMap(column="event", values=("buy",))},
    label_windows_ms={"buy": 5000},
    engaged="click or buy",
    features={
        "user": {"gender": ColumnMap(column="gender")},
        "context": {
            "bid": ColumnMap(column="bid", kind="dense"),
            "mood": ColumnMap(column="mood", kind="vector"),
        },
        "item": {
            "category": ColumnMap(column="category"),
            "tags": ColumnMap(column="tags", kind="multi", separator="|"),
            "year": ColumnMap(column="year", kind="dense"),
        },
        "candidate": {"price": ColumnMap(column="price", kind="dense")},
    },
    position="slot",
    stage="stage",
    channel="channel",
    propensity="prop",
    history={
        "acted": HistoryRule(
            where="click or buy",
            max_len=3,
            features={
                "price": ColumnMap(column="price", kind="dense"),
                "event": ColumnMap(column="event"),
            },
        ),
        "seen": HistoryRule(max_len=2),
    },
)
WINDOWS = msgspec.structs.replace(MAPPING, request_id=None, window_ms=3000, max_candidates=4)


def _messy(seed: int, num_rows: int, *, words: bool) -> pa.Table:
    """Rows in any order: repeats, ties, conflicts, missing keys, users as text or as numbers."""
    draw = np.random.default_rng(seed)

    def pick(values: list[Any], kind: pa.DataType, missing: float = 0.1) -> pa.Array:
        chosen = [values[k] for k in draw.integers(len(values), size=num_rows)]
        gone = draw.random(num_rows) < missing
        return pa.array([None if g else v for g, v in zip(gone, chosen, strict=True)], kind)

    users = ["ann", "bob", "", "zoe é"] if words else [3, 1, 2**40, 7]
    whole = range(8)
    return pa.table(
        {
            "the user": pick(users, pa.string() if words else pa.int64(), 0.02),
            "i": pick([5, 9, 2, 4], pa.float64(), 0.02),  # integers with gaps, as readers give them
            "t": pick([k / 2 for k in range(14)], pa.float64(), 0.02),
            "r": pick([f"r{k}" for k in whole], pa.large_string(), 0.02),
            "end": pick([30, 40], pa.int32()),
            "click": pick([0, 1], pa.int8()),
            "event": pick(["view", "buy"], pa.string()).dictionary_encode(),
            "gender": pick(["f", "m"], pa.string()),
            "bid": pick([0.5, float("nan"), 2.0], pa.float32()),
            "mood": pick([[1.0, 2.0], [0.0, 1.0]], pa.list_(pa.float32(), 2), 0.0),
            "category": pick([10, 20], pa.int16()),
            "tags": pick(["a|b", "c", ""], pa.string()),
            "year": pick([1999, 2001], pa.int64()),
            "price": pick([1.5, 2.5], pa.float64()),
            "slot": pick(list(whole), pa.int64()),
            "stage": pick(["rank", "exposed"], pa.string(), 0.0),
            "channel": pick(["hot", "i2i"], pa.string()),
            "prop": pick([0.5], pa.float64()),
        }
    )


def _files(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _same(source: Any, mapping: ImpressionMap, folder: Path) -> None:
    inside = from_impressions(source, mapping, folder / "memory")
    counted: list[int] = []
    outside = from_impressions(
        source, mapping, folder / "disk", memory_limit="200MB", progress=counted.append
    )
    assert inside == outside
    assert _files(folder / "memory") == _files(folder / "disk")
    assert sum(counted) == outside.num_requests
    assert {path.name for path in folder.iterdir()} == {"memory", "disk"}


@given(st.integers(0, 2**32), st.sampled_from([12, 40, 300]), st.booleans(), st.booleans())
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_logs_are_equal_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, seed: int, num_rows: int, words: bool, windows: bool
) -> None:
    table = _messy(seed, num_rows, words=words)
    folder = tmp_path_factory.mktemp("log")
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((rows, "CHUNK_ROWS"), (external, "CHUNK_ROWS"), (past, "_ROWS")):
            patch.setattr(module, name, 7)
        _same(table, WINDOWS if windows else MAPPING, folder)


def test_any_folder_will_do(tmp_path: Path) -> None:
    folder = tmp_path / "it's a [b]* dir"
    folder.mkdir()
    _same(_messy(5, 30, words=True), MAPPING, folder)


def test_nothing_left_is_refused_either_way(tmp_path: Path) -> None:
    table = _messy(0, 9, words=False).set_column(1, "i", pa.nulls(9, pa.int64()))
    for limit in (None, "200MB"):
        with pytest.raises(InputError, match=r"no impression left of 9 rows; .*'i': \d"):
            from_impressions(table, MAPPING, tmp_path / "log", memory_limit=limit)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_tables_end_where_groups_end(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], num_rows: int
) -> None:
    key = np.repeat(np.arange(len(sizes)), sizes)
    path = tmp_path_factory.mktemp("groups") / "a.parquet"
    pq.write_table(pa.table({"k": key, "row": np.arange(len(key))}), path)
    tables = list(past.whole_groups(path, "k", num_rows))
    assert pa.concat_tables(tables)["row"].to_pylist() == list(range(len(key)))
    seen = [set(table["k"].to_pylist()) for table in tables]
    assert sum(map(len, seen)) == len(sizes)  # no group in two tables
    limit = 2 * num_rows + max(sizes)
    assert all(table.num_rows <= limit for table in tables)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 60))
def test_chunks_are_cut_alike_wherever_the_reading_begins(sizes: list[int], most: int) -> None:
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "CHUNK_ROWS", most)
        stops = rows.chunk_stops(starts, sum(sizes))
        assert stops[-1] == len(sizes)
        for low, high in itertools.pairwise([0, *stops]):
            held = sum(sizes[low:high])
            assert held <= most or high == low + 1
            assert high == len(sizes) or held + sizes[high] > most
        # From the first row of any chunk on, the cuts are the same.
        for k, low in enumerate(stops[:-1]):
            rest = rows.chunk_stops(starts[low:] - starts[low], sum(sizes[low:]))
            assert [low + stop for stop in rest] == stops[k + 1 :]


@pytest.mark.parametrize("kind", ["csv", "parquet folder"])
def test_files_are_streamed(tmp_path: Path, kind: str) -> None:
    table = _messy(1, 500, words=True).drop_columns(["mood"])
    mapping = msgspec.structs.replace(
        MAPPING, features={k: v for k, v in MAPPING.features.items() if k != "context"}
    )
    source = tmp_path / "src"
    if kind == "csv":
        source = tmp_path / "src.csv"
        plain = [c.cast(pa.string()) if n in ("r", "event") else c
                 for n, c in zip(table.column_names, table.columns, strict=True)]  # fmt: skip
        pv.write_csv(pa.table(plain, names=table.column_names), source)
    else:
        source.mkdir()
        for k in range(5):
            pq.write_table(table.slice(100 * k, 100), source / f"part-{k}.parquet")
    (tmp_path / "out").mkdir()
    _same(source, mapping, tmp_path / "out")


def test_bad_input_leaves_nothing_behind(tmp_path: Path) -> None:
    table = _messy(2, 50, words=True)
    with pytest.raises(InputError, match=r"memory limit 'plenty': expected a size like 500MB"):
        from_impressions(table, MAPPING, tmp_path / "log", memory_limit="plenty")
    bad = table.set_column(15, "stage", pa.array(["exposd"] * 50))
    with pytest.raises(InputError, match="column 'stage' says 'exposd'; did you mean 'exposed'"):
        from_impressions(bad, MAPPING, tmp_path / "log", memory_limit="200MB")
    bad = table.set_column(9, "mood", pa.array([[1.0], [1.0, 2.0]] * 25))
    with pytest.raises(InputError, match=r"column 'mood': vectors of 1 to 2 numbers; expected one"):
        from_impressions(bad, MAPPING, tmp_path / "log", memory_limit="200MB")
    assert not list(tmp_path.iterdir())
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "x").write_text("")
    with pytest.raises(InputError, match="exists already"):
        from_impressions(table, MAPPING, tmp_path / "log", memory_limit="200MB")


def test_errors_of_the_source_are_its_own(tmp_path: Path) -> None:
    mapping = ImpressionMap(
        user="u", item="i", time="t", request_id="r", labels={"click": "c"}, engaged="click"
    )
    (tmp_path / "a.csv").write_text("u,i,t,r,c\n1,2,yesterday,4,0\n")
    with pytest.raises(InputError, match=r"column 't': .*expected ISO 8601 times"):
        from_impressions(tmp_path / "a.csv", mapping, tmp_path / "log", memory_limit="200MB")
    (tmp_path / "b.csv").write_text("u,i,t,r,c\n1,2,3,4,0\n1,2,3\n")
    with pytest.raises(InputError, match=r"b\.csv: cannot be read: .*Expected 5 columns, got 3"):
        from_impressions(tmp_path / "b.csv", mapping, tmp_path / "log", memory_limit="200MB")
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", "b.csv"}


def test_too_little_memory_is_one_line(tmp_path: Path) -> None:
    table = _messy(2, 20_000, words=True)
    with pytest.raises(PrerankError, match=r"^duckdb \(1MB\): ") as error:
        from_impressions(table, MAPPING, tmp_path / "log", memory_limit="1MB")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_without_the_engine_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(InputError, match=r"pip install 'prerank\[frames\]'"):
        from_impressions(_messy(0, 9, words=True), MAPPING, tmp_path / "x", memory_limit="1GB")


SCRIPT = """
import re, sys
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from prerank.log.impressions import ImpressionMap, HistoryRule, from_impressions
import duckdb

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024

before = peak()
mapping = ImpressionMap(
    user="u", item="i", time="t", request_id="r", labels={"click": "c"},
    history={"clicked": HistoryRule(where="click", max_len=20)},
)
limit = sys.argv[3] if len(sys.argv) > 3 else None
from_impressions(sys.argv[1], mapping, sys.argv[2], memory_limit=limit)
print(peak() - before)
"""


@pytest.mark.slow
def test_memory_is_bounded(tmp_path: Path) -> None:
    """The peak barely grows with the rows, and stays far below that of the table in memory."""
    peaks = {}
    for millions in (1, 4):
        draw = np.random.default_rng(0)
        num_rows = millions * 1_000_000
        request = draw.permutation(np.repeat(np.arange(num_rows // 10), 10))
        folder = tmp_path / str(millions)
        folder.mkdir()
        for k in range(millions):
            part = slice(k * 1_000_000, (k + 1) * 1_000_000)
            table = pa.table(
                {
                    "r": request[part],
                    "u": request[part] % 50_000,
                    "i": draw.integers(20_000, size=1_000_000),
                    "t": request[part] * 1000 // millions,
                    "c": draw.integers(10, size=1_000_000) == 0,
                }
            )
            pq.write_table(table, folder / f"{k}.parquet")
        for limit in ([], ["200MB"]):
            out = tmp_path / f"log{millions}{len(limit)}"
            script = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(folder), str(out), *limit]
            done = subprocess.run(script, capture_output=True, text=True, check=True)
            peaks[millions, len(limit)] = int(done.stdout)
        assert _files(tmp_path / f"log{millions}0") == _files(tmp_path / f"log{millions}1")
    assert peaks[4, 1] < 0.6 * peaks[4, 0], peaks
    assert peaks[4, 1] < 1.5 * peaks[1, 1], peaks
