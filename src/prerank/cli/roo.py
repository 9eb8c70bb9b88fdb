"""``prerank bench roo``: training on requests beside training on impressions."""

from __future__ import annotations

from typing import Annotated

import typer

from prerank.cli.output import JsonOption, print_json, say
from prerank.cli.tables import print_table

__all__ = ["roo"]


def roo(
    history: Annotated[
        list[int] | None,
        typer.Option(metavar="N", min=1, help="Events of a request; may be repeated."),
    ] = None,
    impressions: Annotated[
        list[int] | None,
        typer.Option(metavar="K", min=1, help="Impressions of a request; may be repeated."),
    ] = None,
    candidates: Annotated[
        int, typer.Option(metavar="N", min=1, help="Impressions an update.")
    ] = 32,
    large: Annotated[
        int, typer.Option(metavar="N", min=0, help="Impressions of a larger update; 0: none.")
    ] = 256,
    repeats: Annotated[
        int, typer.Option(metavar="N", min=1, help="Rounds; medians are shown.")
    ] = 7,
    as_json: JsonOption = False,
) -> None:
    """Time updates of an HSTU stack on requests and on impressions.

    One set of weights: a row per impression, one masked sequence per request, two passes; beside
    what a cost model predicts.

    Example: prerank bench roo --history 256
    """
    from prerank.bench.roo import bench_roo

    result = bench_roo(
        lengths=history or (64, 256, 512),
        impressions=impressions or (1, 2, 4, 8, 16, 32),
        num_candidates=candidates,
        large=large,
        repeats=repeats,
        say=say,
    )
    if as_json:
        print_json(result)
        return
    from rich.table import Table

    table = Table(title=f"speed-up over a row per impression, {candidates} impressions an update")
    names = ("events", "impressions", "two passes", "masked", "requests alone", "tokens", "model")
    for name in names:
        table.add_column(name, justify="right")
    ratios = result["ratios"]
    shapes = dict.fromkeys((row["events"], row["impressions"]) for row in result["rows"])
    for events, name in shapes:
        key = f"roo/n{events}/k{name}"
        parts = ("", "/masked", "/impressions", "/tokens", "/model")
        table.add_row(str(events), str(name), *(f"{ratios[key + part]:.1f}" for part in parts))
    print_table(table)
    worst = max(result["equal"].values())
    say(f"loss and gradients of all ways in float64: equal within {worst:.1e}")
    machine = result["machine"]
    say(f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}")
