"""``prerank bench limits``: one training step of each model beside the machine's limits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prerank.cli.output import JsonOption, print_json, say
from prerank.cli.tables import print_table

__all__ = ["limits"]


def limits(
    log: Annotated[Path, typer.Option(metavar="LOG", help="Request log with part train.")],
    steps: Annotated[int, typer.Option(metavar="N", min=1, help="Updates that are timed.")] = 40,
    as_json: JsonOption = False,
) -> None:
    """One training step of each model beside the machine's limits.

    Example: prerank bench limits --log logs/ml1m
    """
    from prerank.bench.limits import bench_limits
    from prerank.log import open_log

    result = bench_limits(open_log(log)["train"], num_steps=steps, say=say)
    if as_json:
        print_json(result)
        return
    from rich.table import Table

    table = Table(title="CPU milliseconds of a step")
    for name in ("model", "step", "reader", "limit", "of limit", "traffic", "starts", "rest"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for row in result["rows"]:
        numbers = (row["step_ms"], sum(row["reader_ms"].values()), row["limit_ms"])
        left = (f"{ms:.1f}" for ms in row["left"].values())
        table.add_row(
            row["model"], *(f"{ms:.1f}" for ms in numbers), f"{row['of_limit']:.0%}", *left
        )
    print_table(table)
