from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from prerank import adapters

Cli = Callable[..., Any]

GROUPS = [(), ("data",), ("recipes",), ("bench",)]
COMMANDS = [
    ("demo",),
    ("train",),
    ("evaluate",),
    ("diagnose",),
    ("score",),
    ("data", "world"),
    ("data", "infer"),
    ("data", "funnel"),
    ("data", "import"),
    ("data", "split"),
    ("data", "check"),
    ("data", "append"),
    ("data", "join-labels"),
    ("data", "stats"),
    ("recipes", "ls"),
    ("recipes", "show"),
    ("recipes", "cp"),
    ("bench", "data"),
    ("bench", "refresh"),
    ("bench", "hap-page"),
]
HEAVY = ("torch", "pyarrow", "numpy", "safetensors", "rich")


def loaded_by(*argv: str) -> list[str]:
    """Return which heavy modules a command loads, in a process of its own."""
    code = (
        "import json, sys\n"
        "from prerank.cli.main import run\n"
        "try:\n    run(sys.argv[2:])\nexcept SystemExit:\n    pass\n"
        "print(json.dumps([m for m in json.loads(sys.argv[1]) if m in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(HEAVY), *argv],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize(
    "argv", [*GROUPS, ("train",), ("evaluate",), ("diagnose",), ("data", "import")]
)
def test_help_imports_nothing_heavy(argv: tuple[str, ...]) -> None:
    assert loaded_by(*argv, "--help") == []


def test_neither_do_the_version_and_bad_usage() -> None:
    assert loaded_by("--version") == loaded_by("trian") == loaded_by("train") == []


def test_the_check_for_heavy_imports_finds_them(tmp_path: Any) -> None:
    assert {"torch", "pyarrow", "numpy"} <= set(loaded_by("data", "split", str(tmp_path)))


@pytest.mark.parametrize("argv", COMMANDS)
def test_every_command_explains_itself_in_80_columns(cli: Cli, argv: tuple[str, ...]) -> None:
    result = cli(*argv, "--help")
    assert result.status == 0
    assert result.err == ""
    lines = result.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith(f"Usage: prerank {' '.join(argv)} [OPTIONS]")
    assert lines[2].strip()[-1] == "."  # the first sentence fits a line
    assert any(line.split()[:1] == ["--json"] for line in lines)
    examples = [line.strip() for line in lines if line.strip().startswith("Example: ")]
    assert len(examples) == 1
    words = shlex.split(examples[0])[1:]
    assert words[: len(argv) + 1] == ["prerank", *argv]
    for option in (word for word in words if word.startswith("--")):
        assert any(line.split()[:1] == [option] for line in lines), option


@pytest.mark.parametrize("group", GROUPS)
def test_groups_list_their_commands_uncut(cli: Cli, group: tuple[str, ...]) -> None:
    result = cli(*group, "--help")
    assert result.status == 0
    assert max(map(len, result.out.splitlines())) <= 80
    listed = result.out.partition("Commands:\n")[2]
    assert "..." not in listed
    depth = len(group) + 1
    for command in {c[:depth] for c in COMMANDS if c[: depth - 1] == group}:
        assert f"  {command[-1]} " in listed


def test_h_is_help_too(cli: Cli) -> None:
    assert cli("train", "-h").out == cli("train", "--help").out


def test_every_layout_is_named_in_the_help_of_import(cli: Cli) -> None:
    text = " ".join(cli("data", "import", "--help").out.split())
    for name in adapters.TABLE:
        assert name in text
