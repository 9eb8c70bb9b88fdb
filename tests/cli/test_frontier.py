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
    argv = (*argv, "--cuts", "0.1,0.3,0.5,0.75", "--set", "fit.max_steps=5")
    argv = (*argv, "--metric", "recall@10/T1")
    found = cli(*argv, "--json").json
    points = found["points"]["recall@10/T1"]
    assert len(points) == 6
    assert [p["us"] for p in points] == sorted(p["us"] for p in points)
    assert points[0]["efficient"]
    assert len(found["matched"]["recall@10/T1"]) == 5
    assert found["seconds"] > 0
    assert found["machine"]["cpu"]
    assert {"random", "popularity"} <= set(found["baselines"])
    assert found["opened"] == {"two_tower": 0, "mlp": 0}
    assert found["sizes"]["candidates in the usual request"] > 10
    (out / "seed1" / "points-valid.json").unlink()
    again = cli(*argv, "--json").json
    assert again["seeds_found_complete"] == 1
    known = {p["name"]: p["mean"] for p in points}
    assert {p["name"]: p["mean"] for p in again["points"]["recall@10/T1"]} == known
    stored = json.loads((out / "seed0" / "points-valid.json").read_text())
    assert stored["asked"]["part"] == "valid"
    people = cli(*argv, "--figures", tmp_path / "figures")
    drawn = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert drawn == ["frontier-recall-10-T1.png", "frontier-recall-10-T1.svg"]
    assert all(name in people.out for name in drawn)
    assert "2 seeds were complete" in people.err
    assert "two_tower -> 30 % mlp" in people.out
    assert "popularity" in people.out


def test_the_test_part_is_opened_by_the_same_models_and_counted(
    cli: Callable[..., Any], world_log: Path, tmp_path: Path
) -> None:
    out = tmp_path / "frontier"
    argv = ("bench", "frontier", "--log", world_log, "--out", out, "--seeds", 1, "--cuts", "0.3")
    argv = (*argv, "--set", "fit.max_steps=3", "--metric", "mrr/T1", "--json")
    cli(*argv)
    weights = out / "seed0" / "mlp" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    first = cli(*argv, "--part", "test").json
    assert first["opened"] == {"two_tower": 1, "mlp": 1}
    assert weights.stat().st_mtime_ns == before
    # Asking again reads the result, which opens nothing; another question does.
    assert cli(*argv, "--part", "test").json["opened"] == {"two_tower": 1, "mlp": 1}
    other = (*argv, "--part", "test", "--cuts", "0.5")
    assert cli(*other).json["opened"] == {"two_tower": 2, "mlp": 2}


def test_mistakes_are_named(cli: Callable[..., Any], world_log: Path, tmp_path: Path) -> None:
    argv = ("bench", "frontier", "--log", world_log, "--out", tmp_path / "f", "--seeds", 1)
    argv = (*argv, "--set", "fit.max_steps=1", "--cuts", "0.5")
    assert "--metric best: not among" in cli(*argv, "--metric", "best").error
    assert "two have one name" in cli(*argv, "--also", "other/mlp.yaml").error


def test_cuts_are_numbers(cli: Callable[..., Any], world_log: Path, tmp_path: Path) -> None:
    result = cli("bench", "frontier", "--log", world_log, "--out", tmp_path, "--cuts", "x")
    assert result.error == "prerank: --cuts x: expected shares like 0.1,0.3"
