"""The command line run in the test's process or in one of its own, on a small world."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from prerank.cli.main import run

SMALL = (
    *("--requests", "120", "--items", "300", "--users", "40", "--days", "3"),
    *("--set", "num_retrieved=40", "--set", "num_preranked=20", "--set", "num_ranked=10"),
    *("--set", "num_exposed=5"),
)


@dataclass(frozen=True)
class Result:
    """What a command did: exit status and everything it printed."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object on stdout; fails if there is anything else."""
        assert self.out.count("\n") == 1
        assert self.out.endswith("\n")
        found = json.loads(self.out, parse_constant=_refuse)
        assert isinstance(found, dict)
        return found

    @property
    def error(self) -> str:
        """The last line on stderr, of a command that failed and said nothing on stdout."""
        assert self.status != 0
        assert self.out == ""
        assert "Traceback" not in self.err
        assert "unexpected" not in self.err
        return self.err.splitlines()[-1]


def _refuse(name: str) -> float:
    raise AssertionError(f"{name} is no JSON")


def _call(*argv: object) -> Result:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run([str(word) for word in argv])
        except SystemExit as done:
            status = done.code
    assert isinstance(status, int)
    assert "\x1b" not in out.getvalue() + err.getvalue()
    return Result(status, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def cli() -> Callable[..., Result]:
    """``cli("data", "check", path)``: run a command in this process."""
    return _call


def start(argv: Sequence[object], **options: Any) -> subprocess.Popen[str]:
    """Start a command in a process of its own."""
    words = [sys.executable, "-m", "prerank.cli.main", *map(str, argv)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, env=environment, **{**pipes, **options})


@pytest.fixture(scope="session")
def start_cli() -> Callable[..., subprocess.Popen[str]]:
    """``start_cli([...])``: a command in a process of its own, still running."""
    return start


@pytest.fixture(scope="session")
def shell() -> Callable[..., Result]:
    """``shell("data", "check", path)``: run a command in a process of its own."""

    def call(*argv: object, **options: Any) -> Result:
        with start(argv, **options) as process:
            out, err = process.communicate(timeout=120)
        return Result(process.returncode, out or "", err or "")

    return call


@pytest.fixture(scope="session")
def small_world() -> tuple[str, ...]:
    """Options of ``data world`` for a log of a few thousand candidates."""
    return SMALL


@pytest.fixture(scope="session")
def world_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small simulated log; nobody changes it."""
    path = tmp_path_factory.mktemp("world") / "log"
    assert _call("data", "world", path, *SMALL).status == 0
    return path


@pytest.fixture
def own_log(world_log: Path, tmp_path: Path) -> Path:
    """A copy of the small log to damage."""
    return Path(shutil.copytree(world_log, tmp_path / "log"))


@pytest.fixture(scope="session")
def runs(world_log: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Complete runs of both recipes on the small log; nobody changes them."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("two_tower", "mlp"):
        done = _call("train", name, "--log", world_log, "--out", folder / name)
        assert done.status == 0, done.err
    return {name: folder / name for name in ("two_tower", "mlp")}
