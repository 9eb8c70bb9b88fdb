"""Plain values of commands, as figures take them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

SOURCES = ("exposed", "rank", "prerank", "random")


@pytest.fixture
def result() -> dict[str, Any]:
    """What ``evaluate --json`` gives for two runs and a baseline; one number does not exist."""
    keys = ["gauc/T1", "recall@20/T1", "recall@5/T3", "recall@10/T3", "recall@20/T3"]
    keys += [f"auc/source:{source}" for source in reversed(SOURCES)]
    runs: dict[str, Any] = {}
    for k, name in enumerate(("light", "cascade", "random")):
        values = {key: 0.5 + 0.05 * k + 0.01 * n for n, key in enumerate(keys)}
        metrics = {
            key: {"value": value, "low": value - 0.02, "high": value + 0.02}
            for key, value in values.items()
        }
        runs[name] = {"metrics": metrics, "cost": None, "skipped": {}}
    runs["cascade"]["metrics"]["gauc/T1"] = {"value": None, "low": None, "high": None}
    return {"runs": runs, "part": "valid", "quota": 10}


@pytest.fixture
def lines() -> list[dict[str, Any]]:
    """Diagnosis lines of a training of 40 of them."""
    found = []
    for step in range(1, 400, 10):
        line: dict[str, Any] = {"step": step, "kind": "diagnosis"}
        for k, source in enumerate(SOURCES):
            value = math.exp(-k * step / 100)
            line |= {f"logit/{source}": -k * step / 100, f"per_sample/{source}": value}
            for where in ("dense", "table"):
                line |= {f"norm/{where}/contrast/{source}": value}
                line |= {f"norm/{where}/negative/{source}": 2 * value}
        for a, b in itertools.combinations(SOURCES, 2):
            line[f"cos/dense/{a}:{b}"] = math.cos(step / 50)
        found.append(line)
    return found


@pytest.fixture
def points() -> list[dict[str, Any]]:
    """Points of a frontier, two of them close to each other."""
    rows = [("light", 100.0, 0.5), ("light -> 30 % heavy", 300.0, 0.6), ("heavy", 310.0, 0.6)]
    return [
        {"name": name, "us": us, "mean": mean, "sd": 0.01, "efficient": name != "heavy"}
        for name, us, mean in rows
    ]
