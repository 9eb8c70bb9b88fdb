from __future__ import annotations

import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from prerank.cli.tables import print_counts, print_table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def table(names: list[str], rows: list[list[str]], title: str | None = "results") -> Table:
    made = Table(title=title)
    for number, name in enumerate(names):
        made.add_column(name, justify="right" if number else "left")
    for row in rows:
        made.add_row(*row)
    return made


WIDE = table(
    ["metric", *(f"a scorer {n}" for n in range(9))],
    [["gauc/T1", *(f"0.{n}000" for n in range(9))], ["mrr/T1", *["-"] * 9]],
)


def test_columns_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(table(["name", "value"], [["a", "1.5"], ["long name", "1,000"]]))
    assert capsys.readouterr().out.splitlines() == [
        "results",
        "name       value",
        "---------  -----",
        "a            1.5",
        "long name  1,000",
        "",
    ]


def test_in_a_pipe_a_table_is_as_wide_as_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(WIDE)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    lines = out.splitlines()
    assert len(lines) == 6
    assert len(lines[1]) > 100


@pytest.mark.parametrize(("width", "pieces"), [(20, 9), (40, 5), (80, 2), (120, 1), (200, 1)])
def test_on_a_terminal_it_goes_on_below(
    monkeypatch: pytest.MonkeyPatch, width: int, pieces: int
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", str(width))
    print_table(WIDE)
    lines = terminal.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert sum(line.startswith("metric") for line in lines) == pieces
    shown = [word for line in lines if line.startswith("gauc") for word in line.split()[1:]]
    assert shown == [f"0.{n}000" for n in range(9)]


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(10, 60))
def test_every_cell_is_shown_once(widths: list[int], width: int) -> None:
    names = [f"{n}".ljust(w, "x") for n, w in enumerate(widths)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", Terminal())
        patch.setenv("COLUMNS", str(width))
        print_table(table(["m", *names], [["row", *names]], title=None))
        text = sys.stdout.getvalue()
    rows = [line.split()[1:] for line in text.splitlines() if line.startswith("row")]
    assert [name for row in rows for name in row] == names
    assert max(map(len, text.splitlines())) <= max(width, 3 + 2 + max(widths))


def test_counts_stand_in_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_counts({"requests": 12_000, "rate": 0.123456}, unit="")
    assert capsys.readouterr().out == "requests  12,000\nrate      0.1235\n"
    print_counts({"train": 9}, unit="requests")
    assert capsys.readouterr().out == "train  9 requests\n"
    print_counts({})
    assert capsys.readouterr().out == ""
