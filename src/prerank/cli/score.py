"""``prerank score``: the scores of a run for every candidate of a log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prerank.cli.output import DeviceOption, JsonOption, check_device, print_json, track

__all__ = ["score"]


def score(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    log: Annotated[Path, typer.Option(metavar="LOG", help="Request log to score.")],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="Parquet file to make, one row per request.")
    ],
    part: Annotated[
        str, typer.Option(metavar="NAME", help="Part to score; '' for the whole log.")
    ] = "",
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Requests per batch.")] = 256,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Write the scores of a run for every candidate of a log.

    The file has request_id and, in lists: item, a logit per task, position (0 is best).

    Example: prerank score runs/mlp --log logs/ml1m --out scores.parquet
    """
    from prerank.cascade import Cascade
    from prerank.errors import InputError
    from prerank.evaluation.runs import load_scorer
    from prerank.evaluation.scoring import score_part
    from prerank.log import open_log

    check_device(device)
    opened = open_log(log)
    chosen = opened[part] if part else opened.all()
    model = load_scorer(run)
    if isinstance(model, Cascade):
        raise InputError(f"{run}: a cascade has an order and no scores; score one of its runs")
    with track("scoring", chosen.num_requests) as progress:
        report = score_part(
            model, chosen, out, batch_size=batch_size, device=device, progress=progress
        )
    if as_json:
        print_json({"run": str(run), "out": str(out), **report})
    else:
        typer.echo(
            f"{out}: {report['requests']:,} requests, {report['candidates']:,} candidates, "
            f"{report['candidates_per_s']:,.0f} candidates/s"
        )
