"""What commands share: JSON for machines, tables for people, progress on stderr, options."""

from __future__ import annotations

import contextlib
import json
import math
import shlex
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

__all__ = [
    "DeviceOption",
    "JsonOption",
    "SetOption",
    "assignments",
    "check_device",
    "print_json",
    "say",
    "suggest",
    "track",
]

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout; logs go to stderr.")
]
DeviceOption = Annotated[
    str, typer.Option(metavar="NAME", help="Where torch computes: cpu, cuda, cuda:1.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a value; may be repeated."),
]


def print_json(value: Any) -> None:
    """Print one JSON object on stdout; numbers that do not exist become null."""
    sys.stdout.write(json.dumps(_finite(value)) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def say(text: str) -> None:
    """Print a line for people on stderr."""
    sys.stderr.write(text.rstrip("\n") + "\n")
    sys.stderr.flush()


def suggest(*commands: tuple[object, ...]) -> None:
    """Print commands worth giving next on stderr, ready to be copied."""
    for number, words in enumerate(commands):
        start = "     " if number else "next:"
        say(f"{start} {shlex.join(['prerank', *map(str, words)])}")


@contextlib.contextmanager
def track(
    what: str, total: int | None, *, unit: str = "requests"
) -> Iterator[Callable[[int], None]]:
    """Show progress on stderr when it is a terminal; yields what to call with each advance."""
    if not sys.stderr.isatty():
        yield lambda amount: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn() if total is None else TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda amount: progress.advance(task, amount)


def assignments(pairs: list[str] | None) -> dict[str, Any]:
    """Parse repeated ``--set key=value`` options; values are read as YAML."""
    from prerank.errors import InputError
    from prerank.recipes import parse_yaml

    values: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, text = (piece.strip() for piece in pair.partition("="))
        where = f"--set {' '.join(pair.split())}"
        if not equals or not key:
            raise InputError(f"{where}: expected key=value")
        if key in values:
            raise InputError(f"{where}: '{key}' is given twice")
        values[key] = parse_yaml(text, where)
    return values


def check_device(device: str) -> str:
    """Return the device if torch can compute there."""
    import torch

    from prerank.errors import InputError

    try:
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError, AttributeError) as error:
        reason = (str(error).splitlines() or ["not available"])[0].rstrip(".")
        raise InputError(f"--device '{device}': {reason}; expected one that is here: cpu") from None
    return device
