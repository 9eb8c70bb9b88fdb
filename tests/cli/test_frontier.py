"""One command trains, cuts, compares; again it goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_six_points_over_two_seeds_and_again(
    cli: Callable[..., Any], world_log: Path, tmp_path: Path
) -> None:
    out = tmp_path / "frontier"
    argv = ("bench", "frontier", "--log", world_log, "--out", out, "--seeds", 2)
    argv = (*argv, "--cuts", "0.1,0.3,0.5,0.75", "--resamples", 2, "--set", "fit.epochs=1")
    argv = (*argv, "--metric", "recall@10/T1")
    found = cli(*argv, "--json").json
    points = found["points"]["recall@10/T1"]
    assert len(points) == 6
    assert [p["us"] for p in points] == sorted(p["us"] for p in points)
    assert points[0]["efficient"]
    assert len(found["matched"]["recall@10/T1"]) == 5
    assert found["seconds"] > 0
    assert found["machine"]["cpu"]
    (out / "seed1" / "points.json").unlink()
    again = cli(*argv, "--json").json
    assert again["seeds_found_complete"] == 1
    known = {p["name"]: p["mean"] for p in points}
    assert {p["name"]: p["mean"] for p in again["points"]["recall@10/T1"]} == known
    stored = json.loads((out / "seed0" / "points.json").read_text())
    assert stored["asked"]["part"] == "valid"
    people = cli(*argv)
    assert "2 seeds were complete" in people.err
    assert "two_tower -> 30 % mlp" in people.out


def test_cuts_are_numbers(cli: Callable[..., Any], world_log: Path, tmp_path: Path) -> None:
    result = cli("bench", "frontier", "--log", world_log, "--out", tmp_path, "--cuts", "x")
    assert result.error == "prerank: --cuts x: expected shares like 0.1,0.3"
