from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Cli = Callable[..., Any]


def test_storage_as_json_and_table(cli: Cli, world_log: Path) -> None:
    small = ("bench", "storage", "--log", world_log, "--requests", 20, "--repeats", 1)
    found = cli(*small, "--per-request", 1, "--per-request", 3, "--json").json
    assert {"machine", "rows", "ratios"} <= set(found)
    assert [row["layout"] for row in found["rows"][:3]] == ["requests", "sorted", "shuffled"]
    assert {row["k"] for row in found["rows"]} == {1, 3}
    assert "storage/synthetic/k3/shuffled/read" in found["ratios"]
    result = cli(*small, "--per-request", 2)
    lines = result.out.splitlines()
    assert lines[0] == "20 requests on disk"
    assert [line.split()[:3] for line in lines[3:6]] == [
        ["synthetic", "2", layout] for layout in ("requests", "sorted", "shuffled")
    ]


def test_end_to_end_as_json_and_table(cli: Cli, world_log: Path, tmp_path: Path) -> None:
    small = ("--log", world_log, "--out", tmp_path / "layouts", "--per-request", 4)
    small = ("bench", "end-to-end", *small, "--lr", 0.002, "--epochs", 1, "--requests", 40)
    result = cli(*small, "--model", "mlp", "--json")
    found = result.json
    assert {"machine", "rows", "ratios", "courses"} <= set(found)
    assert [row["way"] for row in found["rows"]] == ["requests", "deduped", "impressions"]
    assert len(found["courses"]) == 3
    assert "mlp k=4 requests lr=0.002" in result.err
    lines = cli(*small, "--model", "two_tower").out.splitlines()
    assert lines[0] == "CPU µs per impression, and CPU seconds to equal loss"
    assert [line.split()[2] for line in lines[3:6]] == ["requests", "deduped", "impressions"]


def test_bad_input(cli: Cli, tmp_path: Path) -> None:
    result = cli("bench", "end-to-end", "--log", tmp_path / "none", "--out", tmp_path / "out")
    assert result.status == 2
    assert result.error.startswith(f"prerank: {tmp_path / 'none'}: no such log")
    assert cli("bench", "storage", "--per-request", 0).status == 2
