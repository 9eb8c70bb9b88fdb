"""``prerank data``: make, import, split and check request logs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prerank.cli.output import JsonOption, assignments, print_json, say, track

__all__ = ["app"]

app = typer.Typer(help="Make, import, split and check request logs.", no_args_is_help=True)

SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Further values, key=value; may be repeated.")
]


@app.command()
def world(
    out: Annotated[Path, typer.Argument(help="Folder of the new log.")],
    requests: Annotated[int | None, typer.Option(help="Number of requests.")] = None,
    items: Annotated[int | None, typer.Option(help="Number of items.")] = None,
    users: Annotated[int | None, typer.Option(help="Number of users.")] = None,
    days: Annotated[int | None, typer.Option(help="Number of days (3 or more).")] = None,
    seed: Annotated[int, typer.Option(help="Seed; the same values give the same log.")] = 0,
    values: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a log from the synthetic world: a simulated funnel whose truth is known.

    Example: prerank data world logs/world --requests 20000 --set gap=2
    """
    from prerank.config import from_values
    from prerank.world import WorldConfig, write_world

    given: dict[str, Any] = {
        "num_requests": requests,
        "num_items": items,
        "num_users": users,
        "num_days": days,
        "seed": seed,
    }
    chosen = {k: v for k, v in given.items() if v is not None} | assignments(values)
    config = from_values(WorldConfig, chosen, where="world")
    with track("simulating", config.num_requests) as progress:
        report = write_world(out, config, progress=progress)
    _written(out, report, as_json)


@app.command("import")
def import_(
    name: Annotated[str, typer.Argument(help="Layout: movielens, mind.")],
    src: Annotated[Path, typer.Argument(help="Folder or file to read, compressed or not.")],
    out: Annotated[Path, typer.Argument(help="Folder of the new log.")],
    values: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Import a public data set into a request log, with its splits.

    Example: prerank data import movielens ml-1m.zip logs/ml1m
    """
    import inspect

    from prerank import adapters
    from prerank.errors import InputError, did_you_mean

    adapter: Any = adapters.get(name)
    options = assignments(values)
    known = [
        p.name
        for p in inspect.signature(adapter).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name != "progress"
    ]
    for key in options:
        if key not in known:
            raise InputError(f"--set {key}: {name} has no such option; {did_you_mean(key, known)}")
    with track("importing", None) as progress:
        report = adapter(src, out, progress=progress, **options)
    _written(out, report, as_json)


@app.command()
def split(
    log: Annotated[Path, typer.Argument(help="The log.")],
    by: Annotated[
        str, typer.Option(help="time: by request time; user-order: within every user.")
    ] = "time",
    fractions: Annotated[str, typer.Option(help="Shares of the parts.")] = "0.8,0.1,0.1",
    names: Annotated[str, typer.Option(help="Names of the parts.")] = "train,valid,test",
    as_json: JsonOption = False,
) -> None:
    """Split a log into named parts; the log itself stays as it is.

    Example: prerank data split logs/mine --by time --fractions 0.9,0.05,0.05
    """
    from prerank.errors import InputError
    from prerank.log import open_log, split_log

    if by not in ("time", "user-order"):
        raise InputError(f"--by {by}: expected time or user-order")
    try:
        shares = [float(share) for share in fractions.split(",")]
    except ValueError:
        raise InputError(f"--fractions {fractions}: expected numbers like 0.8,0.1,0.1") from None
    kind: Any = by
    sizes = split_log(open_log(log), by=kind, fractions=shares, names=names.split(","))
    if as_json:
        print_json({"log": str(log), "by": by, "parts": sizes})
    else:
        for part, size in sizes.items():
            typer.echo(f"{part}: {size:,} requests")


@app.command()
def check(
    log: Annotated[Path, typer.Argument(help="The log.")],
    quick: Annotated[bool, typer.Option(help="Skip the SHA-256 of every file.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Read a whole log and report everything that is wrong or odd (exit 1 on errors).

    Example: prerank data check logs/ml1m
    """
    import msgspec

    from prerank.log.check import check_log

    with track("checking", None) as progress:
        report = check_log(log, deep=not quick, progress=progress)
    if as_json:
        print_json(msgspec.to_builtins(report))
    else:
        for key, value in report.counts.items():
            typer.echo(f"{key}: {value:,}" if isinstance(value, int) else f"{key}: {value:.4g}")
        for finding in report.findings:
            typer.echo(f"{finding.level}: {finding.where}: {finding.message}")
        errors = sum(f.level == "error" for f in report.findings)
        warnings = len(report.findings) - errors
        typer.echo(f"{'ok' if report.ok else 'NOT OK'}: {errors} errors, {warnings} warnings")
    if not report.ok:
        raise typer.Exit(1)


def _written(out: Path, report: Any, as_json: bool) -> None:
    import msgspec

    from prerank.log import open_log

    log = open_log(out)
    parts = {name: log[name].num_requests for name in log.parts}
    summary = {
        "log": str(out),
        "requests": log.num_requests,
        "candidates": log.manifest.num_candidates,
        "items": log.schema.size("item") - 2,
        "parts": parts,
        "report": msgspec.to_builtins(report),
    }
    if as_json:
        print_json(summary)
        return
    typer.echo(
        f"{out}: {summary['requests']:,} requests, {summary['candidates']:,} candidates, "
        f"{summary['items']:,} items"
    )
    typer.echo("parts: " + ", ".join(f"{name} {size:,}" for name, size in parts.items()))
    say(f"next: prerank data check {out}; prerank train two_tower --log {out} --out runs/two_tower")
