from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prerank.training import read_run
from prerank.world import World

Cli = Callable[..., Any]

SIZE = ("--requests", 300, "--seed", 3)
RUNS = ("light_mixed", "light", "expressive", "cascade")


def metrics(found: dict[str, Any]) -> dict[str, Any]:
    return {name: run["metrics"] for name, run in found["runs"].items()}


@pytest.fixture(scope="session")
def demo(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A whole demonstration, and what it said."""
    out = tmp_path_factory.mktemp("demo") / "my demo"
    return out, cli("demo", "--out", out, *SIZE, "--json")


def test_it_makes_a_log_two_runs_and_a_cascade(demo: tuple[Path, Any]) -> None:
    out, result = demo
    assert result.status == 0, result.err
    found = result.json
    assert found["out"] == str(out)
    assert (found["log"], found["part"], found["seed"]) == (str(out / "log"), "test", 3)
    assert tuple(found["runs"])[:4] == RUNS
    for name in RUNS[:3]:
        run = read_run(out / "runs" / name)
        assert (run.status, run.fit["seed"]) == ("complete", 3)
    assert World.open(out / "log").config.seed == 3
    lines = result.err.splitlines()
    steps = ["1/4", "2/4", "2/4", "2/4", "3/4", "4/4"]
    assert [line.split()[0] for line in lines[:6]] == steps
    assert set(found["gradients"]) == {"light_mixed", "light"}
    assert "norm/dense/negative/exposed:random" in found["gradients"]["light"]["ratios"]
    assert lines[0].endswith("(synthetic world, seed 3)")


def test_again_it_starts_at_once_and_says_the_same(cli: Cli, demo: tuple[Path, Any]) -> None:
    out, first = demo
    files = [out / "log" / "manifest.json", *(out / "runs").glob("*/model.safetensors")]
    before = [path.stat().st_mtime_ns for path in files]
    again = cli("demo", "--out", out, *SIZE, "--json")
    assert [path.stat().st_mtime_ns for path in files] == before
    assert metrics(again.json) == metrics(first.json)
    assert f"{out / 'log'}: the simulated log is there already" in again.err


def test_what_it_tells_people_to_do_next_works_when_copied(
    cli: Cli, demo: tuple[Path, Any]
) -> None:
    out, _ = demo
    result = cli("demo", "--out", out, *SIZE)
    assert result.status == 0
    assert f"log: {out / 'log'}   runs: {out / 'runs'}" in result.out
    assert "simulated world" in result.err
    at = result.err.index("next: ")
    commands = [shlex.split(line.removeprefix("next:")) for line in result.err[at:].splitlines()]
    assert [command[:2] for command in commands] == [
        ["prerank", "evaluate"],
        ["prerank", "diagnose"],
        ["prerank", "data"],
    ]
    for command in commands:
        done = cli(*command[1:])
        assert done.status == 0, done.err


def test_other_values_need_another_folder(cli: Cli, demo: tuple[Path, Any]) -> None:
    out, _ = demo
    result = cli("demo", "--out", out, "--requests", 400, "--seed", 1)
    assert result.status == 2
    assert result.error == (
        f"prerank: {out / 'log'}: made with other values (seed was 3, is 1; num_requests was 300, "
        "is 400); give the same ones, or another --out"
    )


def test_a_folder_of_something_else_is_left_alone(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "diary.txt").write_text("dear diary")
    result = cli("demo", "--out", tmp_path, *SIZE)
    assert result.status == 2
    assert result.error == (
        f"prerank: {tmp_path / 'log'}: exists and is no log of a simulated world; give another "
        "--out"
    )
    assert [path.name for path in tmp_path.rglob("*")] == ["log", "diary.txt"]
    result = cli("demo", "--out", tmp_path / "log" / "diary.txt", *SIZE)
    assert result.status == 2
    assert "cannot be created" in result.error


def test_killed_in_the_middle_of_training_it_goes_on_to_the_same_numbers(
    cli: Cli,
    start_cli: Callable[..., subprocess.Popen[str]],
    demo: tuple[Path, Any],
    tmp_path: Path,
) -> None:
    out = tmp_path / "demo"
    first_epoch = out / "runs" / "light_mixed" / "checkpoints" / "step-00000004.json"
    with start_cli(["demo", "--out", out, *SIZE]) as process:
        while not first_epoch.exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        process.kill()
    assert not (out / "runs" / "expressive" / "model.safetensors").exists()
    result = cli("demo", "--out", out, *SIZE, "--json")
    assert result.status == 0, result.err
    assert "the simulated log is there already" in result.err
    assert "going on from step " in result.err
    assert metrics(result.json) == metrics(demo[1].json)
