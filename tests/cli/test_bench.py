from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]


def test_json_and_table_of_the_reader(cli: Cli, world_log: Path) -> None:
    found = cli("bench", "data", "--log", world_log, "--repeats", 1, "--json").json
    assert {"machine", "rows", "ratios"} <= set(found)
    assert [row["way"] for row in found["rows"]] == ["pyarrow", "columns", "batches"]
    result = cli("bench", "data", "--log", world_log, "--repeats", 1)
    lines = result.out.splitlines()
    assert lines[0] == f"reading {world_log}"
    assert lines[1].split() == ["way", "seconds", "requests/s", "candidates/s"]
    assert [line.split()[0] for line in lines[3:6]] == ["pyarrow", "columns", "batches"]
    assert result.err.startswith(found["machine"]["cpu"])


@pytest.mark.slow
def test_without_a_log_it_makes_a_world(cli: Cli) -> None:
    result = cli("bench", "data", "--repeats", 1, "--json")
    assert result.json["requests"] == 8000
    assert result.err == "making a world of 8,000 requests to read\n"


def test_bad_input(cli: Cli, tmp_path: Path) -> None:
    result = cli("bench", "data", "--log", tmp_path / "none")
    assert result.status == 2
    assert result.error.startswith(f"prerank: {tmp_path / 'none'}: no such log")
    assert cli("bench", "data", "--repeats", "0").status == 2
