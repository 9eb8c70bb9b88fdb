from __future__ import annotations

from pathlib import Path

import pytest

from prerank.bench import bench_data
from prerank.log import Log, open_log
from prerank.world import WorldConfig, write_world


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    path: Path = tmp_path_factory.mktemp("bench") / "log"
    write_world(path, WorldConfig(num_users=20, num_items=300, num_requests=30, num_days=3))
    return open_log(path)


def test_every_way_reads_every_candidate(log: Log) -> None:
    found = bench_data(log.all(), batch_size=7, repeats=2)
    assert found["log"] == str(log.path)
    assert found["requests"] == 30
    assert found["candidates"] == log.manifest.num_candidates
    assert [row["way"] for row in found["rows"]] == ["pyarrow", "columns", "batches"]
    for row in found["rows"]:
        assert row["candidates_per_s"] * row["seconds"] == pytest.approx(found["candidates"])
        assert row["requests_per_s"] * row["seconds"] == pytest.approx(30)


def test_ratios_are_to_pyarrow_of_the_same_run(log: Log) -> None:
    found = bench_data(log.all(), repeats=1)
    speed = {row["way"]: row["candidates_per_s"] for row in found["rows"]}
    assert found["ratios"] == {
        "data/columns/pyarrow": speed["columns"] / speed["pyarrow"],
        "data/batches/pyarrow": speed["batches"] / speed["pyarrow"],
    }


def test_a_part_counts_its_own_requests(log: Log) -> None:
    found = bench_data(log["test"], repeats=1)
    assert found["requests"] == log["test"].num_requests < 30
    assert found["candidates"] < log.manifest.num_candidates
