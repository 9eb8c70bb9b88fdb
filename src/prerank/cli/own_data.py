"""``prerank data infer`` and ``prerank data import parquet``: the user's own tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prerank.cli.output import JsonOption, print_json, say, suggest, track

if TYPE_CHECKING:
    from prerank.log.impressions import ImpressionReport

__all__ = ["check_foreign", "check_options", "import_table", "infer"]


def infer(
    src: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="CSV, TSV, Parquet, Arrow or Feather file, a folder of them, a URI."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write the map here.")
    ] = None,
    rows: Annotated[
        int, typer.Option(metavar="N", min=1, help="Look at the first so many rows.")
    ] = 200_000,
    as_json: JsonOption = False,
) -> None:
    """Draft the map of your own table, with the evidence.

    The map says which column is what. Read the draft, change what is wrong, then import with it.

    Example: prerank data infer events.csv -o map.yaml
    """
    from prerank.errors import InputError
    from prerank.log.impressions.infer import infer_map

    if out is not None and out.exists():
        raise InputError(f"{out}: exists already; choose another name or remove it first")
    draft = infer_map(src, max_rows=rows)
    if out is not None:
        try:
            out.write_text(draft.text, encoding="utf-8")
        except OSError as error:
            raise InputError(f"{out}: cannot be written: {error.strerror or error}") from None
    usable = draft.mapping is not None
    if as_json:
        summary: dict[str, Any] = {"map": None if out is None else str(out), "usable": usable}
        summary |= {"rows": draft.num_rows, "questions": list(draft.questions)}
        print_json(summary | {"evidence": draft.evidence, "text": draft.text})
        return
    if out is None:
        typer.echo(draft.text, nl=False)
    else:
        state = "can be used as it is" if usable else "must be completed"
        typer.echo(f"{out}: {draft.num_rows:,} rows looked at; the map {state}")
    for question in draft.questions:
        say(f"check: {question}")
    if out is not None:
        say(f"read {out}, change what is wrong, then import:")
        suggest(("data", "import", "parquet", src, "logs/own", "--map", out))


def check_options(values: list[str] | None, map_file: Path | None) -> None:
    """Raise unless the options fit the import of an own table."""
    from prerank.errors import InputError

    if map_file is None:
        raise InputError("--map: missing; draft one with: prerank data infer SRC -o map.yaml")
    if values:
        raise InputError(f"--set {values[0]}: the map holds the values of an own table; edit it")


def check_foreign(name: str, given: dict[str, object]) -> None:
    """Raise if options of own tables were given for a public layout."""
    from prerank.errors import InputError

    for option, value in given.items():
        if value is not None:
            raise InputError(f"{option}: only for your own table (data import parquet), not {name}")


def import_table(
    src: str, out: Path, map_file: Path, *, split: str, memory: str | None
) -> ImpressionReport:
    """Import a flat table with a map, and split the log."""
    from prerank.errors import InputError
    from prerank.log import open_log, split_log
    from prerank.log.format.files import check_free
    from prerank.log.impressions import from_impressions
    from prerank.log.impressions.infer import load_map

    if split not in ("time", "user-order"):
        raise InputError(f"--split {split}: expected time or user-order")
    mapping = load_map(map_file)
    check_free(out)
    with track("importing", None) as progress:
        report = from_impressions(src, mapping, out, memory_limit=memory, progress=progress)
    by: Any = split
    split_log(open_log(out), by=by)
    for name, count in report.dropped.items():
        say(f"note: {count:,} rows were dropped, null in '{name}'")
    for name, count in report.conflicts.items():
        say(f"note: {count:,} groups have several values of {name}; the first was kept")
    return report
