"""``prerank data append``, ``join-labels`` and ``stats``: a log on its second day."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prerank.cli.output import JsonOption, print_json, say, suggest, track

if TYPE_CHECKING:
    import pyarrow as pa

    from prerank.log import Log
    from prerank.training import Drift

__all__ = ["append", "join_labels", "say_drift", "stats"]

LogArgument = Annotated[Path, typer.Argument(metavar="LOG", help="The log; it changes as a whole.")]


def append(
    log: LogArgument,
    src: Annotated[
        str, typer.Argument(metavar="SRC", help="Another log, or with --map a flat table.")
    ],
    part: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of a part for the new requests.")
    ] = None,
    map_file: Annotated[
        Path | None,
        typer.Option("--map", metavar="FILE", help="What is what in a flat table."),
    ] = None,
    skip_old: Annotated[
        bool,
        typer.Option(
            "--skip-old", help="Leave out requests not later than the log's last; see above."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Append later requests to a log.

    Vocabularies grow and indices never move, so runs go on reading the log.

    Histories of a flat table are made of its own rows. Give rows of days before too, with
    --skip-old, and the new requests have their histories whole.

    Example: prerank data append logs/mine logs/tuesday --part tuesday
    """
    import msgspec

    from prerank.errors import InputError
    from prerank.log import open_log
    from prerank.log.growth import append_log

    if part is not None and not part.strip():
        raise InputError("--part '': a part needs a name")
    target = open_log(log)
    if map_file is None:
        requests, items = _from_log(src, target)
    else:
        requests, items = _from_table(src, target, map_file)
    if skip_old:
        requests = _later_than(requests, target)
    with track("appending", None) as progress:
        report = append_log(log, requests, items, part=part, progress=progress)
    grown = open_log(log)
    summary = {
        "log": str(log),
        "part": part,
        "requests": grown.num_requests,
        "revision": grown.schema.lineage.revision,
        "report": msgspec.to_builtins(report),
    }
    if as_json:
        print_json(summary)
        return
    typer.echo(
        f"{log}: {report.num_requests:,} requests, {report.num_candidates:,} candidates appended; "
        f"now {grown.num_requests:,} requests"
    )
    new = {k.removeprefix("new:"): v for k, v in report.counts.items() if k.startswith("new:")}
    if new:
        typer.echo("new ids: " + ", ".join(f"{name} {count:,}" for name, count in new.items()))
    if part is not None:
        more = ("--from", "RUN", "--part", part)
        suggest(("train", "RECIPE", "--log", log, "--out", "RUN2", *more))


def _from_log(src: str, target: Log) -> tuple[Iterator[pa.Table], pa.Table]:
    from prerank.errors import InputError
    from prerank.log import open_log
    from prerank.log.format.raw import raw_items, raw_requests
    from prerank.log.growth import compatible

    if Path(src).is_file():
        raise InputError(f"{src}: is a file; give --map FILE to append a flat table")
    source = open_log(src)
    if source.path.resolve() == target.path.resolve():
        raise InputError(f"{src}: a log cannot be appended to itself")
    why = compatible(source.schema, target.schema)
    if why is not None:
        raise InputError(f"{src}: cannot be appended to {target.path}: {why}")
    return raw_requests(source), raw_items(source)


def _from_table(src: str, target: Log, map_file: Path) -> tuple[Iterator[pa.Table], pa.Table]:
    import pyarrow as pa
    import pyarrow.compute as pc

    from prerank.errors import InputError
    from prerank.log.growth import compatible
    from prerank.log.impressions import group_impressions
    from prerank.log.impressions.infer import load_map
    from prerank.log.impressions.source import open_source

    mapping = load_map(map_file)
    table = open_source(src, mapping.header).read(mapping.columns())
    schema, items, requests, report = group_impressions(table, mapping)
    why = compatible(schema, target.schema)
    if why is not None:
        raise InputError(f"{map_file}: does not describe the rows of {target.path}: {why}")
    for name, count in report.dropped.items():
        say(f"note: {count:,} rows were dropped, null in '{name}'")

    def numbered() -> Iterator[pa.Table]:
        for piece in requests:
            ids = pc.add(piece["request_id"], pa.scalar(target.num_requests, pa.int64()))
            yield piece.set_column(piece.column_names.index("request_id"), "request_id", ids)

    # Requests without ids are numbered; go on counting where the log ends.
    return (requests if mapping.request_id is not None else numbered()), items


def _later_than(requests: Iterator[pa.Table], target: Log) -> Iterator[pa.Table]:
    import pyarrow as pa
    import pyarrow.compute as pc

    from prerank.log.growth.append import last_time

    last = pa.scalar(last_time(target), pa.int64())
    for table in requests:
        yield table.filter(pc.greater(table["time"].cast(pa.int64()), last))


def join_labels(
    log: LogArgument,
    table: Annotated[
        str,
        typer.Argument(
            metavar="TABLE", help="request_id, item and a column per label: CSV, Parquet, Arrow."
        ),
    ],
    observed_until: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Until when feedback is in: ISO (UTC) or ms."),
    ] = None,
    window: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL=7d", help="Window of a new delayed label; may be repeated."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Join late labels to a log, as side columns.

    A null leaves what is stored. Once --observed-until passes the window of a delayed label, what
    has not come counts as negative.

    Example: prerank data join-labels logs/mine buys.csv --window buy=7d --observed-until 2026-03-09
    """
    import msgspec

    from prerank.log import growth
    from prerank.log.impressions.source import open_source

    until = None if observed_until is None else _time_ms(observed_until)
    windows = _windows(window or [])
    late = open_source(table).read()
    with track("joining", None) as progress:
        report = growth.join_labels(
            log, late, observed_until=until, window_ms=windows, progress=progress
        )
    if as_json:
        print_json({"log": str(log), "observed_until": until, **msgspec.to_builtins(report)})
        return
    typer.echo(
        f"{log}: {report.num_matched:,} of {report.num_rows:,} rows matched a candidate, "
        f"{report.num_unmatched:,} did not"
    )
    changed = ", ".join(f"{name} {count:,}" for name, count in report.changed.items())
    typer.echo(f"changed labels: {changed}")


def _windows(pairs: list[str]) -> dict[str, int]:
    from prerank.errors import InputError
    from prerank.log.growth import parse_window

    windows: dict[str, int] = {}
    for pair in pairs:
        name, equals, text = (piece.strip() for piece in pair.partition("="))
        if not equals or not name:
            raise InputError(f"--window {pair}: expected LABEL=LENGTH, like buy=7d")
        if name in windows:
            raise InputError(f"--window {pair}: '{name}' is given twice")
        windows[name] = parse_window(text)
    return windows


def _time_ms(text: str) -> int:
    from datetime import UTC, datetime

    from prerank.errors import InputError

    if text.strip().lstrip("-").isdigit():
        value = int(text)
    else:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise InputError(
                f"--observed-until '{text}': expected a time like 2026-03-09T12:00 or milliseconds"
            ) from None
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        value = round(moment.timestamp() * 1000)
    if not 0 <= value < 1 << 62:
        raise InputError(f"--observed-until '{text}': not a time after 1970")
    return value


def stats(
    log: LogArgument,
    windows: Annotated[
        str,
        typer.Option(metavar="LENGTHS", help="Lengths of the past, whole multiples of --every."),
    ] = "1d,7d",
    every: Annotated[str, typer.Option(metavar="LENGTH", help="How often values change.")] = "1d",
    prior: Annotated[
        float, typer.Option(metavar="N", help="Impressions' worth of the mean rate.")
    ] = 20.0,
    as_json: JsonOption = False,
) -> None:
    """Count what items got in the past, as features.

    Impressions and smoothed rates of engagement per window; a request sees only what was counted
    before it. Run it again after appending: the values of old requests come out the same.

    Example: prerank data stats logs/mine --windows 1d,7d
    """
    import msgspec

    from prerank.log.growth import compute_stats

    names = [name.strip() for name in windows.split(",") if name.strip()]
    with track("counting", None) as progress:
        report = compute_stats(log, names, every=every, prior=prior, progress=progress)
    if as_json:
        values: dict[str, Any] = msgspec.to_builtins(report)
        print_json({"log": str(log), **values})
        return
    typer.echo(
        f"{log}: {report.num_impressions:,} impressions counted at {report.num_moments:,} moments, "
        f"{report.num_rows:,} rows"
    )
    typer.echo("features: " + ", ".join(report.features))


def say_drift(drift: Drift) -> None:
    """Print a drift report on stderr."""
    for name, found in drift.vocabularies.items():
        if found.new_ids:
            say(
                f"drift: {name}: {found.new_ids:,} of {found.ids:,} ids are new to the run, "
                f"{found.new_share:.1%} of occurrences"
            )
    moved = sorted(drift.dense.items(), key=lambda pair: -abs(pair[1]))
    shifts = [f"{column} {shift:+.2f}" for column, shift in moved[:5] if abs(shift) >= 0.1]
    if shifts:
        say("drift: means moved, in standard deviations of training: " + ", ".join(shifts))
    rates = [
        "unknown" if rate is None else f"{rate:.4f}"
        for rate in (drift.engaged_rate_before, drift.engaged_rate)
    ]
    say(f"drift: engaged rate of exposures was {rates[0]}, is {rates[1]}")
    before = ", ".join(f"{name} {value:.4f}" for name, value in drift.before_training.items())
    say(f"drift: the run on the new requests, before training on them: {before}")
