"""``prerank bench storage`` and ``end-to-end``: request rows beside flat impressions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prerank.cli.output import JsonOption, print_json, say
from prerank.cli.tables import print_table

__all__ = ["end_to_end", "storage"]


def storage(
    log: Annotated[
        Path | None,
        typer.Option(metavar="LOG", help="A log to measure too, beside a synthetic one."),
    ] = None,
    requests: Annotated[
        int, typer.Option(metavar="N", min=1, help="Requests of either log.")
    ] = 4000,
    per_request: Annotated[
        list[int] | None,
        typer.Option(metavar="K", min=1, help="Impressions of a request; may be repeated."),
    ] = None,
    repeats: Annotated[
        int, typer.Option(metavar="N", min=1, help="Rounds; medians are shown.")
    ] = 3,
    as_json: JsonOption = False,
) -> None:
    """Bytes and decoding of request rows beside flat Parquet.

    The same impressions and columns as request rows, as flat rows sorted by request, and as flat
    rows in random order, all zstd.

    Example: prerank bench storage --log logs/f_ml1m
    """
    from prerank.bench.storage import bench_storage
    from prerank.log import open_log

    result = bench_storage(
        None if log is None else open_log(log),
        per_request=per_request or (1, 4, 8, 16),
        num_requests=requests,
        repeats=repeats,
        say=say,
    )
    if as_json:
        print_json(result)
        return
    from rich.table import Table

    table = Table(title=f"{requests:,} requests on disk")
    names = ("log", "impressions", "layout", "MB", "bytes each", "Arrow ms", "read ms")
    for name in names:
        table.add_column(name, justify="left" if name in ("log", "layout") else "right")
    for row in result["rows"]:
        size = (f"{row['mb']:.2f}", f"{row['bytes_per_impression']:,.0f}")
        times = (f"{row['arrow_ms']:.0f}", f"{row['read_ms']:.0f}")
        table.add_row(row["log"], str(row["k"]), row["layout"], *size, *times)
    print_table(table)
    _say_machine(result["machine"])


def end_to_end(
    log: Annotated[Path, typer.Option(metavar="LOG", help="Log with parts train and valid.")],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the three layouts go; used again.")
    ],
    model: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A model; may be repeated.")
    ] = None,
    per_request: Annotated[
        list[int] | None,
        typer.Option(metavar="K", min=1, help="Impressions of a request; may be repeated."),
    ] = None,
    lr: Annotated[
        list[float] | None,
        typer.Option(metavar="RATE", min=0, help="A learning rate to try; may be repeated."),
    ] = None,
    requests: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Train on the first so many.")
    ] = None,
    seeds: Annotated[int, typer.Option(metavar="N", min=1, help="Seeds to average over.")] = 2,
    epochs: Annotated[int, typer.Option(metavar="N", min=1, help="Passes.")] = 1,
    evaluations: Annotated[int, typer.Option(metavar="N", min=1, help="Evaluations per pass.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """CPU time from Parquet to equal validation loss.

    Request rows, flat rows merged batch by batch, and flat rows in random order: the same model,
    weights, impressions and impressions per update, every learning rate tried in every way.

    Example: prerank bench end-to-end --log logs/f_ml1m --out bench/end_to_end
    """
    from prerank.bench.end_to_end import PHASES, bench_end_to_end
    from prerank.log import open_log

    options: dict[str, Any] = {"per_request": per_request, "model_names": model, "rates": lr}
    result = bench_end_to_end(
        open_log(log),
        out,
        num_requests=requests,
        seeds=range(seeds),
        epochs=epochs,
        evaluations=evaluations,
        say=say,
        **{name: value for name, value in options.items() if value},
    )
    if as_json:
        print_json(result)
        return
    from rich.table import Table

    table = Table(title="CPU µs per impression, and CPU seconds to equal loss")
    names = ("model", "K", "way", *PHASES, "all", "best loss", "lr", "CPU s to loss", "ratio")
    for name in names:
        table.add_column(name, justify="left" if name in ("model", "way") else "right")
    for row in result["rows"]:
        key = f"end_to_end/{row['model']}/k{row['k']}/{row['way']}"
        phases = (f"{row['us_per_impression'][phase]:.1f}" for phase in PHASES)
        loss = (f"{row['best_loss']:.4f}", f"{row['lr']:g}", f"{row['cpu_s_to_target']:.2f}")
        ratio = f"{result['ratios'].get(key, 1.0):.2f}"
        start = (row["model"], str(row["k"]), row["way"])
        table.add_row(*start, *phases, f"{row['us']:.1f}", *loss, ratio)
    print_table(table)
    _say_machine(result["machine"])


def _say_machine(machine: dict[str, Any]) -> None:
    say(f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}")
