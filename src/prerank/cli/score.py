"""``prerank score``: the scores of a run for every candidate of a log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prerank.cli.output import DeviceOption, JsonOption, check_device, print_json, track

__all__ = ["score"]


def score(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    log: Annotated[Path, typer.Option(help="Request log to score.")],
    out: Annotated[Path, typer.Option(help="Parquet file to make, one row per request.")],
    part: Annotated[str, typer.Option(help="Part to score; '' for the whole log.")] = "",
    batch_size: Annotated[int, typer.Option(help="Requests per batch.")] = 256,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Score every candidate of a log: request_id, item ids, logits per task, place.

    Example: prerank score runs/mlp --log logs/ml1m --part test --out scores.parquet
    """
    from prerank.evaluation.scoring import score_part
    from prerank.log import open_log
    from prerank.training import load_run

    opened = open_log(log)
    chosen = opened[part] if part else opened.all()
    model = load_run(run)
    with track("scoring", chosen.num_requests) as progress:
        report = score_part(
            model,
            chosen,
            out,
            batch_size=batch_size,
            device=check_device(device),
            progress=progress,
        )
    if as_json:
        print_json({"run": str(run), "out": str(out), **report})
    else:
        typer.echo(
            f"{out}: {report['requests']:,} requests, {report['candidates']:,} candidates, "
            f"{report['candidates_per_s']:,.0f} candidates/s"
        )
