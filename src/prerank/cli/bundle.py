"""``prerank bundle``: look at a bundle, and add to its items."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prerank.cli.output import JsonOption, print_json

__all__ = ["app"]

app = typer.Typer(help="Look at a bundle, and add to its items.", no_args_is_help=True)

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle.")]


@app.command()
def show(bundle: BundleArgument, as_json: JsonOption = False) -> None:
    """Show what a bundle holds and what was checked when it was made.

    Example: prerank bundle show bundle
    """
    from prerank.serving.engine import Engine

    engine = Engine.open(bundle, Engine.Config(dtype="fp32"), check=False)
    found = engine.describe()
    if as_json:
        print_json(found)
        return
    checked = found["checked"]
    parity = ", ".join(f"{p:.0e}" for p in checked["parity"])
    typer.echo(f"{bundle}: version {found['version']}, made by {found['versions']}")
    typer.echo(f"tiers: {', '.join(found['tiers'])}")
    typer.echo(f"items: {found['num_items']:,}, states in {found['states']}")
    typer.echo(f"checked on {checked['requests']} requests: parity {parity}")


@app.command()
def check(bundle: BundleArgument, as_json: JsonOption = False) -> None:
    """Compare every file with its digest and every tier with what it said when exported.

    Exit status 1 if the self-test fails, 2 if a file is missing, cut or changed.

    Example: prerank bundle check bundle
    """
    import msgspec

    from prerank.errors import CheckFailedError
    from prerank.serving.engine import Engine

    engine = Engine.open(bundle, Engine.Config(dtype="fp32"))
    found = engine.self_test()
    result: dict[str, Any] = {"version": engine.version, **msgspec.to_builtins(found)}
    if as_json:
        print_json(result)
    else:
        typer.echo(
            f"{bundle}: version {engine.version} is whole; {found.num_requests} requests: logits "
            f"differ by {found.max_difference:.1e} (bound {found.bound:.1e}), first places agree "
            f"to {found.agreement:.1%}"
        )
    if not found.ok:
        raise CheckFailedError(f"{bundle}: {found.message}")


@app.command("add-items")
def add_items(
    bundle: BundleArgument,
    items: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="JSON lines: {'id': ..., 'features': {...}}."),
    ] = None,
    stats: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON lines: {'id', 'valid_from_ms', 'values'}."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Add items, or new values of known ones, without exporting again.

    Their states are computed by the bundle's models. A running server takes them up.

    Example: prerank bundle add-items bundle new_items.jsonl
    """
    from prerank.errors import InputError
    from prerank.serving.engine import Engine

    if items is None and stats is None:
        raise InputError("bundle add-items: give a file of items, or --stats FILE")
    rows = [] if items is None else _lines(items, ("id", "features"))
    values = [] if stats is None else _lines(stats, ("id", "valid_from_ms", "values"))
    engine = Engine.open(bundle, Engine.Config(dtype="fp32"), check=False)
    version = engine.add_items(rows, stats=values)
    _say(bundle, version, {"items": len(rows), "stats": len(values)}, as_json)


@app.command("remove-items")
def remove_items(
    bundle: BundleArgument,
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Raw item ids.")],
    as_json: JsonOption = False,
) -> None:
    """Let items be candidates no more; histories still know them.

    Example: prerank bundle remove-items bundle 17 23
    """
    from prerank.errors import InputError
    from prerank.serving.engine import Engine

    engine = Engine.open(bundle, Engine.Config(dtype="fp32"), check=False)
    try:
        raw = [int(i) if engine.id_type is int else i for i in ids]
    except ValueError:
        raise InputError(
            f"bundle remove-items: this bundle's ids are integers, got {ids}"
        ) from None
    version = engine.add_items(removed=raw)
    _say(bundle, version, {"removed": len(raw)}, as_json)


@app.command()
def compact(bundle: BundleArgument, as_json: JsonOption = False) -> None:
    """Put all segments of added items into one.

    Example: prerank bundle compact bundle
    """
    from prerank.serving.engine import Engine

    engine = Engine.open(bundle, Engine.Config(dtype="fp32"), check=False)
    before, after = engine.compact()
    _say(bundle, engine.version, {"segments_before": before, "segments": after}, as_json)


def _lines(path: Path, names: tuple[str, ...]) -> list[tuple[Any, ...]]:
    """Read one object per line, all of its values in the order of the names."""
    import msgspec

    from prerank.errors import InputError

    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = msgspec.json.decode(line, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: line {number}: {error}") from None
        if set(row) != set(names):
            found, wanted = ", ".join(row), ", ".join(names)
            raise InputError(f"{path}: line {number}: has {found or 'nothing'}; expected {wanted}")
        if not isinstance(row["id"], int | str) or not isinstance(row[names[-1]], dict):
            raise InputError(f"{path}: line {number}: expected an id and an object '{names[-1]}'")
        rows.append(tuple(row[name] for name in names))
    return rows


def _say(bundle: Path, version: str, counts: dict[str, int], as_json: bool) -> None:
    if as_json:
        print_json({"bundle": str(bundle), "version": version, **counts})
        return
    told = ", ".join(f"{name.replace('_', ' ')} {num:,}" for name, num in counts.items())
    typer.echo(f"{bundle}: version {version}; {told}")
