from __future__ import annotations

import io

import pytest

from prerank.training import progress
from prerank.training.progress import ProgressReport


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _run(stream: io.StringIO, *, show: bool = True) -> str:
    with ProgressReport(3, show=show, stream=stream) as report:
        report.note("hello [there]")
        for step in range(1, 4):
            report.update(step, num_samples=100, epoch=step / 3)
            report.evaluated("gauc 0.7000")
    return stream.getvalue()


def test_silent_when_told() -> None:
    assert _run(io.StringIO(), show=False) == ""
    assert _run(_Terminal(), show=False) == ""


def test_few_plain_lines_where_there_is_no_terminal() -> None:
    assert _run(io.StringIO()) == "hello [there]\n"


def test_a_plain_line_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
    lines = _run(io.StringIO()).splitlines()
    assert len(lines) == 4
    assert lines[3].startswith("step 3/3, epoch 1.00, ")
    assert lines[3].endswith(" samples/s, 0 s left gauc 0.7000")


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    shown = _run(_Terminal())
    assert "hello [there]" in shown
    assert "3/3" in shown
    assert "samples/s" in shown
