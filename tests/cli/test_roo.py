from __future__ import annotations

from collections.abc import Callable
from typing import Any

Cli = Callable[..., Any]

SMALL = ("--impressions", 1, "--impressions", 2, "--candidates", 4, "--large", 0, "--repeats", 1)


def test_json_and_table(cli: Cli) -> None:
    found = cli("bench", "roo", "--history", 8, *SMALL, "--json").json
    assert {"machine", "rows", "ratios"} <= set(found)
    assert {"roo/n8/k1", "roo/n8/k2", "roo/n8/k2/model"} <= set(found["ratios"])
    result = cli("bench", "roo", "--history", 8, *SMALL)
    lines = result.out.splitlines()
    assert lines[0] == "speed-up over a row per impression, 4 impressions an update"
    assert [line.split()[:2] for line in lines[3:5]] == [["8", "1"], ["8", "2"]]
    assert "loss and gradients of all ways in float64: equal within" in result.err


def test_bad_input(cli: Cli) -> None:
    assert cli("bench", "roo", "--history", "0").status == 2
