"""``prerank bench engine``: what each idea of the serving engine saves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prerank.cli.output import JsonOption, print_json, say
from prerank.cli.tables import print_table

__all__ = ["engine"]


def engine(
    folder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keeps world, models and bundles; default: a new one."),
    ] = None,
    candidates: Annotated[
        int, typer.Option(metavar="N", min=1, max=8000, help="Candidates of a request.")
    ] = 5000,
    requests: Annotated[int, typer.Option(metavar="N", min=1, help="Requests to time.")] = 8,
    repeats: Annotated[int, typer.Option(metavar="N", min=1, help="The shortest counts.")] = 7,
    quick: Annotated[bool, typer.Option("--quick", help="A tiny world, 100 candidates.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Time the engine's steps at 5,000 candidates.

    Times beside the agreement and recall of each way, on a cascade trained on a simulated world.

    Example: prerank bench engine --folder bench-serve
    """
    import tempfile

    from prerank.bench.serve_engine import engine_table

    with tempfile.TemporaryDirectory() as temporary:
        result = engine_table(
            folder or Path(temporary),
            num_candidates=candidates,
            num_requests=requests,
            repeats=repeats,
            quick=quick,
            say=say,
        )
    if as_json:
        print_json(result)
        return
    from rich.table import Table

    table = Table(title=f"{result['candidates']:,} candidates, one core")
    for name in ("way", "CPU ms", "GFLOP", "of GEMM peak", "first 300", "recall@500"):
        table.add_column(name, justify="left" if name == "way" else "right")
    for row in result["rows"]:
        shares = (f"{row[name]:.1%}" for name in ("of_peak", "agreement", "recall"))
        table.add_row(row["way"], f"{row['cpu_ms']:.2f}", f"{row['gflop']:.2f}", *shares)
    print_table(table)
    for name, value in result["ratios"].items():
        say(f"{name}: {value:.2f}x")
