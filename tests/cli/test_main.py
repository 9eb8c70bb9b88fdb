from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import prerank
from prerank.cli import data as data_commands
from prerank.errors import PrerankError

Cli = Callable[..., Any]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["trian"], "prerank: No such command 'trian'. Did you mean 'train'?; see: prerank --help"),
        (
            ["data", "chek"],
            "prerank data: No such command 'chek'. Did you mean 'check'?; see: prerank data --help",
        ),
        (["train"], "prerank train: Missing argument 'RECIPE'; see: prerank train --help"),
        (["evaluate", "r"], "prerank evaluate: Missing option '--log'; see: prerank evaluate"),
        (["train", "--lgo", "x"], "prerank train: No such option: --lgo (Possible options: --log"),
        (
            ["train", "a", "b", "--log", "c", "--out", "d"],
            "prerank train: Got unexpected extra arg",
        ),
        (["evaluate", "--k"], "prerank: Option '--k' requires an argument"),
        (["--json"], "prerank: No such option: --json"),
        (["demo", "--requests", "x"], "prerank demo: --requests x: expected a valid integer; see:"),
        (["demo", "--requests=x"], "prerank demo: --requests x: expected a valid integer; see:"),
        (
            ["demo", "--requests", "5"],
            "prerank demo: --requests 5: expected a number greater than or equal to 100; see:",
        ),
        (
            ["data", "world", "o", "--seed", "-1"],
            "prerank data world: --seed -1: expected a number greater than or equal to 0; see:",
        ),
    ],
)
def test_bad_usage_is_one_line_and_exit_status_2(cli: Cli, argv: list[str], line: str) -> None:
    result = cli(*argv)
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith(line)
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("argv", [[], ["data"], ["recipes"], ["bench"]])
def test_a_group_without_a_command_shows_its_help_as_an_error(cli: Cli, argv: list[str]) -> None:
    result = cli(*argv)
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith(f"Usage: {' '.join(['prerank', *argv])} [OPTIONS] COMMAND")
    assert "Error" not in result.err


def test_the_version(cli: Cli) -> None:
    result = cli("--version")
    assert (result.status, result.out, result.err) == (0, f"prerank {prerank.__version__}\n", "")


@pytest.mark.parametrize("place", [0, 1, 3, 4])
def test_debug_shows_the_traceback_wherever_it_stands(cli: Cli, place: int) -> None:
    argv = ["data", "split", "no-such-log", "--json"]
    plain = cli(*argv)
    argv.insert(place, "--debug")
    debugged = cli(*argv)
    assert plain.status == debugged.status == 2
    assert "Traceback" not in plain.err
    assert debugged.err.startswith("Traceback")
    assert debugged.err.splitlines()[-1] == plain.error


def test_debug_adds_nothing_to_bad_usage(cli: Cli) -> None:
    assert "Traceback" not in cli("--debug", "trian").err


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (PrerankError("it failed"), 1, "prerank: it failed"),
        (MemoryError(), 1, "prerank: out of memory; use fewer requests per batch or a smaller mod"),
        (
            RuntimeError("first\nsecond"),
            1,
            "prerank: unexpected RuntimeError: first; run with --debug for the traceback",
        ),
        (PermissionError(13, "Permission denied", "a/b"), 1, "prerank: a/b: Permission denied\n"),
        (OSError(28, "No space left on device"), 1, "prerank: No space left on device\n"),
        (OSError("odd"), 1, "prerank: unexpected OSError: odd; run with --debug"),
        (KeyboardInterrupt(), 130, "prerank: interrupted"),
    ],
)
def test_whatever_goes_wrong_ends_in_one_line(
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    status: int,
    line: str,
) -> None:
    def fail(pairs: list[str] | None) -> dict[str, Any]:
        raise error

    monkeypatch.setattr(data_commands, "assignments", fail)
    result = cli("data", "world", "never-made")
    assert result.status == status
    assert result.out == ""
    assert result.err.startswith(line)
    assert result.err.count("\n") == 1


def test_a_reader_that_leaves_gets_no_traceback(start_cli: Cli) -> None:
    read, write = os.pipe()
    with start_cli(["recipes", "ls", "--json"], stdout=write) as process:
        os.close(write)
        os.close(read)
        _, err = process.communicate(timeout=60)
    assert err == ""
    assert process.returncode == 1


def test_both_ways_to_start_it_are_the_same(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("prerank")
    ways = [[sys.executable, "-m", "prerank"], [sys.executable, "-m", "prerank.cli.main"]]
    for way in [*ways, *([[script]] if script.exists() else [])]:
        done = subprocess.run(
            [*way, "score"], capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert done.returncode == 2
        assert done.stderr == "prerank score: Missing argument 'RUN'; see: prerank score --help\n"
