"""``prerank data``: make, import, split and check request logs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from prerank import adapters
from prerank.cli import growth, own_data
from prerank.cli.output import (
    JsonOption,
    SetOption,
    assignments,
    print_json,
    say,
    suggest,
    track,
)
from prerank.cli.tables import print_counts

__all__ = ["app"]

_LAYOUTS = ", ".join(adapters.TABLE)

app = typer.Typer(help="Make, import, split and check request logs.", no_args_is_help=True)


@app.command()
def world(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the new log.")],
    requests: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Number of requests.")
    ] = None,
    items: Annotated[int | None, typer.Option(metavar="N", min=1, help="Number of items.")] = None,
    users: Annotated[int | None, typer.Option(metavar="N", min=1, help="Number of users.")] = None,
    days: Annotated[int | None, typer.Option(metavar="N", min=3, help="Number of days.")] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="The same values give the same log.")
    ] = None,
    values: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a log from a simulated funnel whose truth is known.

    --set reaches every value of the world: gap, noise_retrieval, num_pool, drift and more.

    Example: prerank data world logs/world --requests 20000 --set gap=2
    """
    from prerank.config import from_values
    from prerank.errors import InputError
    from prerank.world import WorldConfig, write_world

    named = {"requests": requests, "items": items, "users": users, "days": days}
    given = {f"num_{name}": value for name, value in named.items()} | {"seed": seed}
    chosen = {key: value for key, value in given.items() if value is not None}
    changes = assignments(values)
    for key in changes:
        if key in chosen:
            option = key.removeprefix("num_")
            raise InputError(f"--{option} and --set {key}: give one of them")
    config = from_values(WorldConfig, chosen | changes, where="world")
    with track("simulating", config.num_requests) as progress:
        report = write_world(out, config, progress=progress)
    _written(out, report, as_json)


app.command()(own_data.infer)


@app.command("import")
def import_(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help=f"Layout: {_LAYOUTS}; parquet: your own table.")
    ],
    src: Annotated[
        str, typer.Argument(metavar="SRC", help="Folder or .zip to read; files may be packed.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the new log.")],
    values: SetOption = None,
    map_file: Annotated[
        Path | None,
        typer.Option("--map", metavar="FILE", help="parquet: what is what, from data infer."),
    ] = None,
    split_by: Annotated[
        str | None, typer.Option("--split", metavar="RULE", help="parquet: time or user-order.")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="parquet: sort on disk with this much memory (2GB)."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Import a public data set or your own table, split into parts.

    Your own table is any CSV, TSV, Parquet, Arrow or Feather file, a folder of them, or a URI:
    draft its map with data infer, then import it under the name parquet with --map.

    --set max_history=50 shortens histories; --set slate=20 (movielens) makes longer requests.

    Example: prerank data import movielens ml-1m.zip logs/ml1m
    """
    from prerank.log.format.files import check_free

    if name == "parquet":
        own_data.check_options(values, map_file)
        assert map_file is not None
        grouped = own_data.import_table(src, out, map_file, split=split_by or "time", memory=memory)
        _written(out, grouped, as_json)
        return
    adapter = adapters.get(name)
    own_data.check_foreign(name, {"--map": map_file, "--split": split_by, "--memory": memory})
    options = _options(name, adapter, assignments(values))
    check_free(out)
    with track("importing", None) as progress:
        report = adapter(src, out, progress=progress, **options)
    _written(out, report, as_json)


def _options(name: str, adapter: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Check values against the keyword arguments of an adapter."""
    import inspect
    import typing

    import msgspec

    from prerank.errors import InputError, did_you_mean

    hints = typing.get_type_hints(adapter)
    known = [
        p.name
        for p in inspect.signature(adapter).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name != "progress"
    ]
    options = {}
    for key, value in values.items():
        if key not in known:
            raise InputError(f"--set {key}: {name} has no such option; {did_you_mean(key, known)}")
        try:
            options[key] = msgspec.convert(value, hints[key])
        except msgspec.ValidationError as error:
            reason = str(error).replace("`", "").replace("Expected", "expected")
            raise InputError(f"--set {key}={value}: {reason}") from None
    return options


@app.command()
def split(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="The log.")],
    by: Annotated[
        str,
        typer.Option(metavar="RULE", help="time: by request time; user-order: within every user."),
    ] = "time",
    fractions: Annotated[
        str, typer.Option(metavar="X,X,...", help="Shares of the parts.")
    ] = "0.8,0.1,0.1",
    names: Annotated[
        str, typer.Option(metavar="NAMES", help="Names of the parts.")
    ] = "train,valid,test",
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
        raise InputError(
            f"--fractions '{fractions}': expected numbers that add up to 1, like 0.8,0.1,0.1"
        ) from None
    kind: Any = by
    parts = [part.strip() for part in names.split(",")]
    if not all(parts):
        raise InputError(f"--names '{names}': a name is empty; expected one like train,valid,test")
    sizes = split_log(open_log(log), by=kind, fractions=shares, names=parts)
    if as_json:
        print_json({"log": str(log), "by": by, "parts": sizes})
    else:
        print_counts(sizes, unit="requests")


@app.command()
def check(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="The log.")],
    quick: Annotated[bool, typer.Option("--quick", help="Skip the SHA-256 of every file.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Read a whole log and report what is wrong or odd.

    Exit status 1 if something is wrong (an error); warnings alone leave it at 0.

    Example: prerank data check logs/ml1m
    """
    import msgspec

    from prerank.log import check_log

    with track("checking", None) as progress:
        report = check_log(log, deep=not quick, progress=progress)
    if as_json:
        print_json(msgspec.to_builtins(report))
    else:
        print_counts(report.counts)
        for finding in report.findings:
            typer.echo(f"{finding.level}: {finding.where}: {finding.message}")
        errors = sum(finding.level == "error" for finding in report.findings)
        warnings = len(report.findings) - errors
        typer.echo(f"{'ok' if report.ok else 'NOT OK'} ({errors} errors, {warnings} warnings)")
    if not report.ok:
        raise typer.Exit(1)


app.command()(growth.append)
app.command("join-labels")(growth.join_labels)
app.command()(growth.stats)


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
    sizes = [f"{summary[name]:,} {name}" for name in ("requests", "candidates", "items")]
    typer.echo(f"{out}: {', '.join(sizes)}")
    typer.echo("parts: " + ", ".join(f"{name} {size:,}" for name, size in parts.items()))
    counts = {name: count for name, count in report.counts.items() if count and name not in summary}
    if counts:
        typer.echo("counts: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()))
    for note in getattr(report, "notes", ()):
        say(f"note: {note}")
    train = ("train", "two_tower", "--log", out, "--out", "runs/two_tower")
    suggest(("data", "check", out), train)
