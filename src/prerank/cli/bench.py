"""``prerank bench``: measure on this machine, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prerank.cli.engine import engine
from prerank.cli.frontier import frontier
from prerank.cli.hap import hap, hap_page
from prerank.cli.impressions import end_to_end, storage
from prerank.cli.limits import limits
from prerank.cli.output import JsonOption, SetOption, assignments, print_json, say
from prerank.cli.peers import peers
from prerank.cli.roo import roo
from prerank.cli.tables import print_table

__all__ = ["app"]

app = typer.Typer(help="Measure on this machine, side by side.", no_args_is_help=True)


@app.callback()
def _bench() -> None:
    """Measure on this machine, side by side."""


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
    _say_machine(result["machine"])


@app.command()
def memory(
    log: Annotated[Path, typer.Option(metavar="LOG", help="Log to stream.")],
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Requests per batch.")] = 128,
    as_json: JsonOption = False,
) -> None:
    """Stream a log once, shuffled: peak memory above the start.

    Example: prerank bench memory --log logs/large
    """
    from prerank.bench.memory import bench_memory
    from prerank.log import Transforms, open_log

    part = open_log(log).all()
    result = bench_memory(part, Transforms.fit(part), batch_size=batch_size)
    if as_json:
        print_json(result)
        return
    typer.echo(
        f"{log}: peak {result['peak_mib']:,.0f} MiB above the start, "
        f"{result['decoded_mib']:,.0f} MiB decoded, "
        f"{result['candidates_per_s']:,.0f} candidates/s"
    )
    _say_machine(result["machine"])


@app.command()
def train(
    rows: Annotated[
        list[int] | None,
        typer.Option(metavar="N", min=2, help="Rows of a field's table; may be repeated."),
    ] = None,
    steps: Annotated[int, typer.Option(metavar="N", min=10, help="Updates of each way.")] = 150,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Impressions.")] = 2048,
    as_json: JsonOption = False,
) -> None:
    """Time fused tables with row-wise updates beside dense ones.

    26 categorical fields, Zipf ids, planted labels; the ways take turns and see the same batches.

    Example: prerank bench train --rows 10000 --rows 200000
    """
    from prerank.bench import bench_train

    sizes = rows or [10_000, 200_000]
    result = bench_train(rows=sizes, num_steps=steps, batch_size=batch_size, say=say)
    if as_json:
        print_json(result)
        return
    from rich.table import Table

    speeds = Table(title=f"updates of {batch_size:,} impressions")
    for name in ("size", "way", "samples/s", "ms", "CPU ms", "valid loss", "tables MB", "state MB"):
        speeds.add_column(name, justify="left" if name in ("size", "way") else "right")
    for row in result["rows"]:
        numbers = (f"{row['samples_per_s']:,.0f}", f"{row['step_ms']:.1f}", f"{row['cpu_ms']:.1f}")
        loss = f"{row['valid_loss']:.4f}"
        memory = (f"{row['table_mb']:,.0f}", f"{row['state_mb']:,.0f}")
        speeds.add_row(row["size"], row["way"], *numbers, loss, *memory)
    pieces = Table(title="where the time of one of our updates goes")
    for name in ("size", "piece", "ms", "share", "of the machine's peak"):
        pieces.add_column(name, justify="left" if name in ("size", "piece") else "right")
    for size, found in result["steps"].items():
        for row in found:
            peak = f"{row['of_peak']:.0%} of {row['bound']}" if "of_peak" in row else ""
            pieces.add_row(size, row["piece"], f"{row['ms']:.2f}", f"{row['share']:.0%}", peak)
    print_table(speeds, pieces)
    for size, loss in result["best_loss"].items():
        say(f"{size}: the planted probabilities themselves have loss {loss:.4f}")
    _say_machine(result["machine"])


@app.command()
def refresh(
    seeds: Annotated[int, typer.Option(metavar="N", min=1, help="Number of worlds.")] = 3,
    values: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Daily warm starts beside a frozen model.

    And beside training anew, in a simulated world whose users drift; every day is evaluated before
    it is trained on. --set changes a value of the world.

    Example: prerank bench refresh --seeds 1 --set drift=0
    """
    from prerank.bench.refresh import REFRESH_WORLD, bench_refresh
    from prerank.config import from_values, to_values

    world = from_values(
        type(REFRESH_WORLD), to_values(REFRESH_WORLD) | assignments(values), where="world"
    )
    result = bench_refresh(world=world, seeds=range(seeds), progress=say)
    if as_json:
        print_json(result)
        return
    from rich.table import Table

    table = Table(title="minus the frozen model, all days and worlds (95 % over users)")
    for name in ("metric", "way", "difference", "low", "high"):
        table.add_column(name, justify="left" if name in ("metric", "way") else "right")
    for key, found in result["differences"].items():
        _, metric, way, _ = key.split("/")
        table.add_row(metric, way, *(f"{found[k]:+.4f}" for k in ("value", "low", "high")))
    print_table(table)
    _say_machine(result["machine"])


app.command("engine")(engine)
app.command("frontier")(frontier)
app.command("hap")(hap)
app.command("hap-page")(hap_page)
app.command("limits")(limits)
app.command("peers")(peers)
app.command("roo")(roo)
app.command("storage")(storage)
app.command("end-to-end")(end_to_end)


def _say_machine(machine: dict[str, Any]) -> None:
    say(f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}")
