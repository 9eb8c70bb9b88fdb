"""What commands print: JSON for machines on stdout, tables for people, progress on stderr."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

__all__ = [
    "DeviceOption",
    "JsonOption",
    "assignments",
    "check_device",
    "print_json",
    "print_table",
    "say",
    "track",
]

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout; logs go to stderr.")
]
DeviceOption = Annotated[str, typer.Option(help="Where torch computes: cpu, cuda, cuda:1, ...")]


def print_json(value: Any) -> None:
    """Print one JSON object on stdout; numbers that do not exist become null."""
    sys.stdout.write(json.dumps(_finite(value), ensure_ascii=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def say(text: str) -> None:
    """Print a line for people on stderr."""
    sys.stderr.write(text + "\n")


def print_table(*tables: Any) -> None:
    """Print rich tables on stdout; piped output is as wide as it needs and without colour."""
    from rich.console import Console

    wide = None if sys.stdout.isatty() else 200
    console = Console(width=wide, soft_wrap=False)
    for table in tables:
        console.print(table)


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
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda amount: progress.advance(task, amount)


def assignments(pairs: list[str] | None) -> dict[str, Any]:
    """Parse repeated ``--set key=value`` options; values are read as YAML."""
    import yaml

    from prerank.errors import InputError

    values: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise InputError(f"--set {pair}: expected key=value")
        try:
            values[key.strip()] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise InputError(f"--set {pair}: the value is no valid YAML") from None
    return values


def check_device(device: str) -> str:
    """Return the device if torch can compute there."""
    import torch

    from prerank.errors import InputError

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or ["not available"])[0]
        raise InputError(f"--device {device}: {reason}; use cpu") from None
    return device
