"""``prerank data funnel``: stage-labelled candidates from real interactions."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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

if TYPE_CHECKING:
    from prerank.log import Log

__all__ = ["funnel"]


def funnel(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="Real exposures with labels.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the new log.")],
    requests: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Keep N random requests.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of everything drawn.")] = 0,
    judge: Annotated[
        bool, typer.Option(help="Judge the new log: adversarial classifier, difficulty ladder.")
    ] = True,
    values: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fit a logging cascade on real interactions and write its log.

    Retrieval, pre-ranker and ranker are fitted on other users or on the past. An interrupted
    command goes on when it is given again. --set reaches every value: quotas, folds, refits,
    rank_fit.epochs and more.

    Example: prerank data funnel logs/ml1m logs/ml1m-funnel --requests 20000
    """
    from prerank.config import from_values
    from prerank.errors import InputError
    from prerank.funnel import FunnelConfig, build_funnel
    from prerank.log import open_log

    changes = assignments(values)
    named = {"max_requests": requests, "seed": seed or None}
    for key, value in named.items():
        if value is not None and key in changes:
            option = "requests" if key == "max_requests" else key
            raise InputError(f"--{option} and --set {key}: give one of them")
    given = {key: value for key, value in named.items() if value is not None}
    config = from_values(FunnelConfig, _nested(changes) | given, where="funnel")
    source = open_log(log)
    with _phases() as progress:
        report = build_funnel(source, out, config, progress=progress)
    summary: dict[str, Any] = {
        "log": str(out),
        "requests": report.num_requests,
        "candidates": report.num_candidates,
        "items": report.num_items,
        "counts": report.counts,
        "rates": report.rates,
        "record": report.record,
        "judged": _judged(source, open_log(out)) if judge else {},
    }
    if as_json:
        print_json(summary)
        return
    sizes = [f"{summary[name]:,} {name}" for name in ("requests", "candidates", "items")]
    typer.echo(f"{out}: {', '.join(sizes)}")
    stages = {k: v for k, v in report.counts.items() if k.startswith("stage:")}
    print_counts(stages | {f"real {name}": rate for name, rate in report.rates.items()})
    _print_judged(summary["judged"])
    suggest(("data", "check", out), ("train", "mlp", "--log", out, "--out", "runs/mlp"))


def _nested(changes: dict[str, Any]) -> dict[str, Any]:
    """Turn dotted keys into nested values."""
    from prerank.errors import InputError

    values: dict[str, Any] = {}
    for key, value in changes.items():
        *path, last = key.split(".")
        inside = values
        for name in path:
            inside = inside.setdefault(name, {})
            if not isinstance(inside, dict):
                raise InputError(f"--set {key}: '{name}' was given a value of its own already")
        inside[last] = value
    return values


@contextlib.contextmanager
def _phases() -> Iterator[Callable[[str, int, int], None]]:
    """Show one bar after another, with the time left of each."""
    with contextlib.ExitStack() as stack:
        shown = ""
        before = 0
        advance: Callable[[int], None] = lambda amount: None  # noqa: E731

        def progress(what: str, done: int, total: int) -> None:
            nonlocal shown, before, advance
            if what != shown:
                stack.close()
                unit = "fits" if what == "fitting" else "requests"
                advance = stack.enter_context(track(what, total, unit=unit))
                shown, before = what, 0
                if not sys.stderr.isatty():
                    say(f"{what}: {total:,} {unit}")
            advance(done - before)
            before = done

        yield progress


def _judged(source: Log, log: Log) -> dict[str, Any]:
    """Return what an adversary and an independent judge find, or why they cannot be asked."""
    import msgspec

    from prerank.errors import InputError
    from prerank.funnel import difficulty_ladder, realness_report

    if len(log.parts) < 2:
        return {"skipped": "the log has no two parts to learn from and to judge"}
    first, last = log.parts[0], log.parts[-1]
    judged: dict[str, Any] = {}
    for name, ask in (
        ("realness", lambda: realness_report(log[first], log[last])),
        ("ladder", lambda: difficulty_ladder(source, log, part=last)),
    ):
        say(f"judging: {name}")
        try:
            judged[name] = msgspec.to_builtins(ask())
        except InputError as error:
            judged[name] = {"skipped": str(error)}
    return judged


def _print_judged(judged: dict[str, Any]) -> None:
    realness = judged.get("realness", {})
    for key in ("skipped",):
        for where in (judged, realness, judged.get("ladder", {})):
            if key in where:
                typer.echo(f"not judged: {where[key]}")
    if "auc" in realness:
        typer.echo("\nexposed, not engaged, against rank, told apart by model-visible features:")
        print_counts({k: v for k, v in realness.items() if isinstance(v, float)})
        for line in realness["explanation"]:
            typer.echo(f"  {line}")
    for kind, ladder in judged.get("ladder", {}).items():
        if kind == "skipped":
            continue
        order = "as expected" if ladder["as_expected"] else "NOT the expected order"
        typer.echo(f"\nladder ({kind}), AUC of an independent judge, hard to easy: {order}")
        for rung in ladder["rungs"]:
            typer.echo(
                f"  {rung['source']:<8} {rung['auc']:.3f} [{rung['low']:.3f}, {rung['high']:.3f}] "
                f"{rung['num_requests']:,} requests"
            )
