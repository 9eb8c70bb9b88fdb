"""``prerank bench``: measure on this machine, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prerank.cli.output import JsonOption, SetOption, assignments, print_json, say
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
    for name in ("size", "way", "samples/s", "ms", "valid loss", "tables MB", "state MB"):
        speeds.add_column(name, justify="left" if name in ("size", "way") else "right")
    for row in result["rows"]:
        numbers = (f"{row['samples_per_s']:,.0f}", f"{row['step_ms']:.1f}")
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
def frontier(
    log: Annotated[Path, typer.Option(metavar="LOG", help="Request log.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Runs and results; goes on there.")],
    light: Annotated[str, typer.Option(metavar="RECIPE", help="First tier.")] = "two_tower",
    heavy: Annotated[str, typer.Option(metavar="RECIPE", help="Second tier.")] = "mlp",
    also: Annotated[
        list[str] | None, typer.Option(metavar="RECIPE", help="One more model; may be repeated.")
    ] = None,
    cuts: Annotated[
        str, typer.Option(metavar="SHARE,...", help="What the first tier forwards.")
    ] = "0.05,0.1,0.2,0.3,0.5,0.75",
    seeds: Annotated[int, typer.Option(metavar="N", min=1, help="Seeds 0, 1, ...")] = 5,
    part: Annotated[str, typer.Option(metavar="NAME", help="Part to evaluate.")] = "valid",
    metric: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Larger is better; may be repeated.")
    ] = None,
    values: SetOption = None,
    resamples: Annotated[int, typer.Option(metavar="N", min=1)] = 50,
    as_json: JsonOption = False,
) -> None:
    """Train models and cuts over several seeds and set quality beside cost.

    The same command again goes on where it stopped. Settings are chosen on part valid; give
    --part test once they are.

    Example: prerank bench frontier --log logs/ml1m --out bench/frontier
    """
    from prerank.cli.frontier import run_frontier
    from prerank.errors import InputError

    try:
        shares = [float(text) for text in cuts.split(",") if text.strip()]
    except ValueError:
        raise InputError(f"--cuts {cuts}: expected shares like 0.1,0.3") from None
    result = run_frontier(
        log,
        out,
        light=light,
        heavy=heavy,
        others=also or [],
        cuts=shares,
        seeds=seeds,
        part=part,
        keys=metric or ["mrr/T1", "ndcg@10/T1", "recall@10/T1"],
        changes=assignments(values),
        resamples=resamples,
    )
    if as_json:
        print_json(result)
        return
    from rich.table import Table

    for key, points in result["points"].items():
        table = Table(title=f"{key} on {part}, {seeds} seeds; * nothing cheaper is better")
        for name in ("point", "us per request", "mean", "sd", "against the best at its cost"):
            table.add_column(name, justify="left" if name == "point" else "right")
        claims = {pair.split(" - ")[0]: (pair, c) for pair, c in result["matched"][key].items()}
        for p in points:
            row = [f"{p['us']:,.0f}", f"{p['mean']:.4f}", f"{p['sd']:.4f}"]
            pair, claim = claims.get(p["name"], ("", None))
            text = (
                f"{claim['mean']:+.4f} to {pair.split(' - ')[1]}, p {claim['p_holm']:.2g}"
                if (claim)
                else ""
            )
            table.add_row(f"{'* ' if p['efficient'] else ''}{p['name']}", *row, text)
        print_table(table)
    say(f"{result['seconds']:.0f} s, {result['seeds_found_complete']} seeds were complete")
    _say_machine(result["machine"])


def _say_machine(machine: dict[str, Any]) -> None:
    say(f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}")
