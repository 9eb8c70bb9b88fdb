from __future__ import annotations

from collections.abc import Callable
from typing import Any

Cli = Callable[..., Any]


def test_json_and_tables_of_training(cli: Cli) -> None:
    options = ("--rows", 50, "--steps", 10, "--batch-size", 32)
    found = cli("bench", "train", *options, "--json").json
    assert {"machine", "rows", "ratios", "peaks", "steps"} <= set(found)
    assert "train/26x50/dense_adam" in found["ratios"]
    result = cli("bench", "train", *options)
    lines = result.out.splitlines()
    assert lines[0] == "updates of 32 impressions"
    assert sum(line.startswith("26x50") for line in lines) == len(found["rows"]) + 6
    assert "planted probabilities themselves have loss" in result.err
    assert cli("bench", "train", "--rows", "1").status == 2
