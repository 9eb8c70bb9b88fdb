"""``prerank bench peers``: training beside the libraries a user would pick instead."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prerank.cli.output import JsonOption, print_json, say
from prerank.cli.tables import print_table

__all__ = ["peers"]


def peers(
    rows: Annotated[
        list[int] | None,
        typer.Option(metavar="N", min=10, help="Ids of a field; may be repeated."),
    ] = None,
    lines: Annotated[
        str, typer.Option(metavar="NAME,...", help="Only these lines, beside our own.")
    ] = "",
    steps: Annotated[
        int, typer.Option(metavar="N", min=1, help="Updates in which to learn.")
    ] = 100,
    turns: Annotated[
        int, typer.Option(metavar="N", min=1, help="Turns of five updates that are timed.")
    ] = 8,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Impressions.")] = 2048,
    threads: Annotated[int, typer.Option(metavar="N", min=1, help="CPU threads of each.")] = 1,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Data, and environments by default.")
    ] = Path("bench-peers"),
    envs: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Environments of the peers; kept.")
    ] = None,
    runners: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the runners, in a clone.")
    ] = Path("benchmarks/peers"),
    curves: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Take what an earlier result learned; default: learn."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train beside four other frameworks.

    DeepCTR-Torch, FuxiCTR, Torch-RecHub and TorchRec.

    Makes an environment for each (a gigabyte each, once), then lets all train in turns.

    26 categorical fields, Zipf ids, planted labels; compare at equal quality.

    Example: prerank bench peers --rows 10000 --lines deepctr,deepctr/step
    """
    from prerank.bench.peers import LINES, bench_peers

    result = bench_peers(
        out,
        runners=runners,
        environments=envs,
        rows=rows or [10_000, 200_000],
        batch_size=batch_size,
        num_steps=steps,
        num_turns=turns,
        threads=threads,
        lines=lines.split(",") if lines else tuple(LINES),
        earlier=_earlier(curves),
        say=say,
    )
    if as_json:
        print_json(result)
        return
    from rich.table import Table

    table = Table(title=f"updates of {batch_size:,} impressions, {threads} thread(s) each")
    names = ("size", "line", "lr", "CPU ms", "ms", "samples/s", "best NE", "AUC", "peak MiB")
    for name in names:
        table.add_column(name, justify="left" if name in ("size", "line") else "right")
    for row in result["rows"]:
        speed = (f"{row['cpu_ms']:.1f}", f"{row['step_ms']:.1f}", f"{row['samples_per_s']:,.0f}")
        quality = (f"{row['best_ne']:.4f}", f"{row['best_auc']:.4f}", f"{row['peak_mib']:,.0f}")
        table.add_row(row["size"], row["line"], f"{row['lr']:g}", *speed, *quality)
    ratios = Table(title="of CPU time, the peer's over ours")
    ratios.add_column("ratio")
    ratios.add_column("", justify="right")
    for key, value in result["ratios"].items():
        ratios.add_row(key, "never" if value is None else f"{value:.1f}x")
    print_table(table, ratios)
    for size, ne in result["best_ne"].items():
        say(f"{size}: the planted probabilities themselves have normalised entropy {ne:.4f}")
    machine = result["machine"]
    say(f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}")


def _earlier(path: Path | None) -> dict[str, Any] | None:
    import json

    from prerank.errors import InputError

    if path is None:
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _ = found["curves"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: no learning curves there ({error}); expected the JSON of an earlier "
            "'prerank bench peers --json'"
        ) from None
    return found
