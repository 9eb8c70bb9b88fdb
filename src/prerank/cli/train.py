"""``prerank train``: train a recipe on a log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prerank.cli.output import DeviceOption, JsonOption, assignments, check_device, print_json, say

__all__ = ["train"]


def train(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, or a YAML file.")],
    log: Annotated[Path, typer.Option(help="Request log to train on.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; an unfinished run goes on.")],
    part: Annotated[str, typer.Option(help="Part to train on.")] = "train",
    valid: Annotated[str, typer.Option(help="Part to validate on; '' for none.")] = "valid",
    seed: Annotated[int | None, typer.Option(help="Seed of weights, order and dropout.")] = None,
    values: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a recipe value, section.key=value; may be repeated."),
    ] = None,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Train a recipe on a log; give the same command again to go on after a stop.

    Example: prerank train two_tower --log logs/ml1m --out runs/two_tower --set fit.epochs=3
    """
    import msgspec

    from prerank.log import open_log
    from prerank.recipes import load_recipe
    from prerank.training import fit

    changes = assignments(values)
    if seed is not None:
        changes["fit.seed"] = seed
    loaded = load_recipe(recipe).replace(changes)
    opened = open_log(log)
    model, objective, config = loaded.build(opened.schema, f"recipe {recipe}")
    report = fit(
        model,
        opened[part],
        objective,
        valid=opened[valid] if valid else None,
        config=config,
        out=out,
        device=check_device(device),
    )
    for skipped in report.skipped:
        say(f"skipped a checkpoint: {skipped}")
    if as_json:
        print_json(msgspec.to_builtins(report))
        return
    typer.echo(f"{out}: {report.steps:,} updates, {report.samples_per_s:,.0f} candidates/s")
    if report.best is not None:
        metrics = ", ".join(f"{k} {v:.4f}" for k, v in report.best.metrics.items())
        typer.echo(f"best at update {report.best.step:,}: {metrics}")
    typer.echo(f"next: prerank evaluate {out} --log {log}")
