"""``prerank bench``: measure on this machine, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prerank.cli.output import JsonOption, print_json, say
from prerank.cli.tables import print_table

__all__ = ["app"]

app = typer.Typer(help="Measure on this machine, side by side.", no_args_is_help=True)


@app.callback()
def _bench() -> None:
    """Measure on this machine, side by side."""  # keeps the name of the only command


@app.command()
def data(
    log: Annotated[
        Path | None, typer.Option(metavar="LOG", help="Log to read; default: a new world.")
    ] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Requests per batch.")] = 128,
    repeats: Annotated[
        int, typer.Option(metavar="N", min=1, help="Rounds; medians are shown.")
    ] = 5,
    as_json: JsonOption = False,
) -> None:
    """Time the reader beside pyarrow reading the same columns.

    Example: prerank bench data --log logs/ml1m
    """
    import tempfile

    from prerank.bench import bench_data
    from prerank.log import open_log
    from prerank.world import WorldConfig, write_world

    with tempfile.TemporaryDirectory() as folder:
        if log is None:
            log, config = Path(folder) / "world", WorldConfig()
            say(f"making a world of {config.num_requests:,} requests to read")
            write_world(log, config)
        result = bench_data(open_log(log).all(), batch_size=batch_size, repeats=repeats)
    if as_json:
        print_json(result)
        return
    from rich.table import Table

    table = Table(title=f"reading {result['log']}")
    for name in ("way", "seconds", "requests/s", "candidates/s"):
        table.add_column(name, justify="left" if name == "way" else "right")
    for row in result["rows"]:
        numbers = (f"{row['seconds']:.3f}", f"{row['requests_per_s']:,.0f}")
        table.add_row(row["way"], *numbers, f"{row['candidates_per_s']:,.0f}")
    print_table(table)
    machine = result["machine"]
    say(f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}")
