from __future__ import annotations

import io
import json
import os
import pty
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prerank.cli.output import assignments, check_device, print_json, say, suggest, track
from prerank.errors import InputError


def test_json_is_one_line_without_numbers_that_do_not_exist(
    capsys: pytest.CaptureFixture[str],
) -> None:
    value = {"a": float("nan"), "b": [1.5, float("-inf")], 3: ("é", None, True)}
    print_json(value)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert out.isascii()
    assert json.loads(out) == {"a": None, "b": [1.5, None], "3": ["é", None, True]}


def test_lines_for_people_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    say("one")
    suggest(("score", Path("a b"), "--k", 3), ("demo",))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "one\nnext: prerank score 'a b' --k 3\n      prerank demo\n"


def test_progress_is_silent_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with track("working", 3) as advance:
        advance(3)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("total", [10, None])
def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch, total: int | None) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with track("working", total) as advance:
        advance(10)
    assert "working" in terminal.getvalue()
    assert f"10/{'?' if total is None else 10}" in terminal.getvalue()


def test_a_bar_on_the_terminal_leaves_json_in_the_pipe_alone(
    shell: Callable[..., Any], tmp_path: Path, small_world: tuple[str, ...]
) -> None:
    ours, theirs = pty.openpty()
    try:
        result = shell("data", "world", tmp_path / "log", *small_world, "--json", stderr=theirs)
        seen = os.read(ours, 1 << 16).decode()
    finally:
        os.close(theirs)
        os.close(ours)
    assert result.json["requests"] == 120
    assert "simulating" in seen
    assert "\x1b[" in seen


def test_assignments_are_yaml_values() -> None:
    pairs = ["a=1e-3", "b.c=[x, 2]", " d = null ", "e=", "f=x=y", "g={h: true}"]
    assert assignments(pairs) == {
        "a": 0.001,
        "b.c": ["x", 2],
        "d": None,
        "e": None,
        "f": "x=y",
        "g": {"h": True},
    }
    assert assignments(None) == {}


@pytest.mark.parametrize("pair", ["a", "=1", " =1", "a=1\nb: [", "a={b: 1, b: 2}", "a=!!set 1"])
def test_bad_assignments_are_quoted(pair: str) -> None:
    with pytest.raises(InputError) as caught:
        assignments([pair])
    assert str(caught.value).startswith(f"--set {' '.join(pair.split())}: ")
    assert "\n" not in str(caught.value)


def test_a_device_is_tried() -> None:
    assert check_device("cpu") == "cpu"
    for device in ("", "meta", "tpu", "mtia", "vulkan", "xla", "cuda:99"):
        with pytest.raises(InputError, match=f"^--device '{device}': .*; expected one that is he"):
            check_device(device)
