"""Tables for people on stdout: plain text, aligned, no wider than a terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["print_counts", "print_table"]

_GAP = "  "


def print_counts(counts: Mapping[str, float], unit: str = "") -> None:
    """Print names and numbers in columns."""
    texts = {k: f"{v:,}" if isinstance(v, int) else f"{v:.4g}" for k, v in counts.items()}
    left, right = (max(map(len, column), default=0) for column in (texts, texts.values()))
    for key, text in texts.items():
        typer.echo(f"{key:<{left}}{_GAP}{text:>{right}} {unit}".rstrip())


def print_table(*tables: Table) -> None:
    """Print tables of one-line cells, each followed by an empty line.

    A table that is wider than the terminal goes on below with its first column; in a pipe there
    is no such width.
    """
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    for table in tables:
        if table.title:
            typer.echo(str(table.title))
        columns = []
        for column in table.columns:
            cells = [str(column.header), *(str(cell) for cell in column.cells)]
            longest = max(map(len, cells))
            cells.insert(1, "-" * longest)
            right = column.justify == "right"
            columns.append([c.rjust(longest) if right else c.ljust(longest) for c in cells])
        for group in _groups(columns, width):
            for line in zip(*group, strict=True):
                typer.echo(_GAP.join(line).rstrip())
            typer.echo()


def _groups(columns: list[list[str]], width: int) -> Iterator[list[list[str]]]:
    """Yield as many columns as fit a width, the first one always among them."""
    first, *rest = columns
    group, used = [first], len(first[0])
    for column in rest:
        needed = len(_GAP) + len(column[0])
        if len(group) > 1 and used + needed > width:
            yield group
            group, used = [first], len(first[0])
        group.append(column)
        used += needed
    yield group
