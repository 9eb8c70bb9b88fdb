"""The option ``--figures DIR``: checked before the work, its paths printed after it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["FiguresOption", "check_figures", "print_paths"]

FiguresOption = Annotated[
    Path | None,
    typer.Option("--figures", metavar="DIR", help="Also draw figures there, as SVG and PNG."),
]


def check_figures(folder: Path | None) -> None:
    """Refuse what would fail after the work: no plotting library, a folder that is a file.

    Raises
    ------
    InputError
        One of the two.
    """
    from prerank.errors import InputError

    if folder is None:
        return
    from prerank.report import new_figure

    new_figure()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--figures {folder}: is a file; expected a folder, made if absent")


def print_paths(paths: Sequence[Path]) -> None:
    """Print the files that were drawn, one per line."""
    for path in paths:
        typer.echo(path)
