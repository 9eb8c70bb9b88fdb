from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from prerank.training import read_run

Start = Callable[..., subprocess.Popen[str]]

LONG = ("--set", "fit.epochs=100000", "--set", "fit.checkpoint_every=1000000")


def wait_for(process: subprocess.Popen[str], found: Callable[[], Any]) -> None:
    """Wait until something is there, as long as the process runs."""
    until = time.monotonic() + 60
    while not found():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.005)


def checkpoints(out: Path) -> Iterable[Path]:
    return [path for path in out.glob("checkpoints/step-*.json") if int(path.stem[5:]) > 0]


def interrupt_training(start: Start, log: Path, out: Path, times: int) -> tuple[int, str, str]:
    """Start a long training, press Ctrl-C once it has begun; return status, stdout, stderr."""
    before = set(checkpoints(out))
    with start(["train", "mlp", "--log", log, "--out", out, *LONG]) as process:
        wait_for(process, lambda: set(checkpoints(out)) - before)
        for _ in range(times):
            process.send_signal(signal.SIGINT)
        told, said = process.communicate(timeout=60)
    return process.returncode, told, said


def test_a_stopped_run_says_where_it_stands_and_goes_on(
    start_cli: Start, world_log: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    status, told, said = interrupt_training(start_cli, world_log, out, 1)
    assert (status, told) == (130, "")
    line = said.splitlines()[-1]
    step = int(line.partition("interrupted at step ")[2].partition(";")[0])
    assert line == (
        f"prerank: interrupted at step {step}; the same call goes on from step {step} ({out})"
    )
    assert (out / "checkpoints" / f"step-{step:08d}.json").exists()
    assert read_run(out).status == "running"
    status, _, said = interrupt_training(start_cli, world_log, out, 1)
    assert status == 130
    assert said.startswith(f"going on from step {step}\n")


def test_a_second_ctrl_c_leaves_at_once_and_cleanly(
    start_cli: Start, world_log: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    status, told, said = interrupt_training(start_cli, world_log, out, 2)
    assert (status, told) == (130, "")
    assert "Traceback" not in said
    assert read_run(out).status == "running"


@pytest.mark.parametrize("command", [["data", "world"], ["demo", "--out"]])
def test_an_interrupted_simulation_leaves_nothing_behind(
    start_cli: Start, tmp_path: Path, command: list[str]
) -> None:
    out = tmp_path / "out"
    argv = [*command, out, "--requests", 100_000]
    with start_cli(argv) as process:
        wait_for(process, lambda: list(tmp_path.rglob("*.partial")))
        process.send_signal(signal.SIGINT)
        told, said = process.communicate(timeout=60)
    assert (process.returncode, told) == (130, "")
    assert said.splitlines()[-1] == "prerank: interrupted"
    assert not [path for path in tmp_path.rglob("*") if path != out]
