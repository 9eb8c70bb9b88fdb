"""``prerank score``: the scores of a run for every candidate of a log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prerank.cli.output import DeviceOption, JsonOption, check_device, print_json, track

__all__ = ["score"]


def score(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    log: Annotated[
        Path | None, typer.Option(metavar="LOG", help="Request log to score, with --out.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Parquet file to make, one row per request.")
    ] = None,
    into: Annotated[
        Path | None, typer.Option(metavar="LOG", help="Log that takes up its scores, with --as.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="Name of the scores in the log.")
    ] = None,
    part: Annotated[
        str, typer.Option(metavar="NAME", help="Part to score; '' for the whole log.")
    ] = "",
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Requests per batch.")] = 256,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Write the scores of a run for every candidate of a log.

    --out makes a file of request_id and, in lists: item, a logit per task, position (0 is best).
    --into adds the logits to the log as teacher scores, which objectives may read and models
    never see. With --part only its rows are scored, all others stay as they are.

    Example: prerank score runs/mlp --log logs/ml1m --out scores.parquet
    """
    from prerank.cascade import Cascade
    from prerank.errors import InputError
    from prerank.evaluation.runs import load_scorer
    from prerank.evaluation.scoring import score_into, score_part
    from prerank.log import open_log

    path = _log_of(log, out, into, name)
    check_device(device)
    opened = open_log(path)
    chosen = opened[part] if part else opened.all()
    model = load_scorer(run)
    if isinstance(model, Cascade):
        raise InputError(f"{run}: a cascade has an order and no scores; score one of its runs")
    report: dict[str, Any]
    options: dict[str, Any] = {"batch_size": batch_size, "device": device}
    with track("scoring", chosen.num_requests) as progress:
        if out is not None:
            report = score_part(model, chosen, out, progress=progress, **options)
            target = {"out": str(out)}
        else:
            assert name is not None
            report = score_into(model, path, name, part=part, progress=progress, **options)
            target = {"into": str(path), "as": name}
    if as_json:
        print_json({"run": str(run), **target, **report})
    else:
        where = str(out) if out is not None else f"{path}: {', '.join(report['scores'])}"
        typer.echo(
            f"{where}: {report['requests']:,} requests, {report['candidates']:,} candidates, "
            f"{report['candidates_per_s']:,.0f} candidates/s"
        )


def _log_of(log: Path | None, out: Path | None, into: Path | None, name: str | None) -> Path:
    """Return the log to read; the options must name one way to write."""
    from prerank.errors import InputError

    if (out is None) == (into is None):
        raise InputError("give one of --out FILE (with --log LOG) and --into LOG (with --as NAME)")
    if into is not None:
        if log is not None and log != into:
            raise InputError(
                "--log and --into: --into scores the log that it names; leave out --log"
            )
        if name is None:
            raise InputError("--as: missing; name the scores that --into adds to the log")
        return into
    if name is not None:
        raise InputError("--as: names scores in a log; give --into LOG instead of --out")
    if log is None:
        raise InputError("--log: missing; name the log to score")
    return log
