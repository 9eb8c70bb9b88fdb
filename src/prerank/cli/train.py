"""``prerank train``: train a recipe on a log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prerank.cli.growth import say_drift
from prerank.cli.output import (
    DeviceOption,
    JsonOption,
    SetOption,
    assignments,
    check_device,
    print_json,
    suggest,
)

__all__ = ["train"]


def train(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="Name of a recipe, or a YAML file.")
    ],
    log: Annotated[Path, typer.Option(metavar="LOG", help="Request log to train on.")],
    out: Annotated[
        Path, typer.Option(metavar="RUN", help="Folder of the run; an unfinished run goes on.")
    ],
    part: Annotated[str, typer.Option(metavar="NAME", help="Part to train on.")] = "train",
    valid: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Part to validate on, '' for none; default: valid, with --from none.",
        ),
    ] = None,
    origin: Annotated[
        Path | None, typer.Option("--from", metavar="RUN", help="Go on from this complete run.")
    ] = None,
    keep_optimizer: Annotated[
        bool, typer.Option("--keep-optimizer", help="With --from: keep its optimisers' state.")
    ] = False,
    noise: Annotated[
        float | None,
        typer.Option(metavar="STD", help="With --from: noise of new ids' rows (default 0.01)."),
    ] = None,
    over: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Build over this light run: its embeddings and towers."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Seed of weights, order and dropout.")
    ] = None,
    values: SetOption = None,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Train a recipe on a log, or go on with a stopped run.

    The same command again goes on where the run stopped. --set changes a value of the recipe;
    its key is section.key, as in fit.lr, model.dim or objective.sources. Several processes train
    together under torchrun --nproc-per-node N -m -- prerank train ... (without the --, torchrun
    takes --log for an option of its own).

    --from starts from another run, for tomorrow's data: ids it knew keep their rows, new ones
    start at the unknown row plus noise, and a drift report is printed and stored in RUN.

    --over trains an expressive model on the embeddings and towers of a finished light run, which
    stay as they are (model.frozen); a cascade of the two computes them once.

    Example: prerank train mlp --log logs/ml1m --out runs/mlp --set fit.epochs=3
    """
    import msgspec

    from prerank.errors import InputError
    from prerank.log import open_log
    from prerank.recipes import load_recipe
    from prerank.training import WarmStart, distributed, warm_start

    changes = assignments(values)
    if seed is not None:
        if "fit.seed" in changes:
            raise InputError("--seed and --set fit.seed: give one of them")
        changes["fit.seed"] = seed
    check_device(device)
    loaded = load_recipe(recipe).replace(changes)
    opened = open_log(log)
    if origin is None and (keep_optimizer or noise is not None):
        raise InputError("--keep-optimizer and --noise: only with --from RUN")
    if origin is not None and over is not None:
        raise InputError("--from and --over: give one of them")
    chosen = opened[part]
    if valid is None:
        valid = "valid" if origin is None else ""
    where, start = f"recipe {recipe}", None
    with distributed.launched(device) as own_device:
        if origin is None:
            setup = loaded.build(opened.schema, where, over=over)
            if over is not None:
                assert setup.model.transforms is not None
                setup.model.transforms.assembler(opened)  # refuses a log of other features
        else:
            min_count = loaded.build(opened.schema, where).config.min_count
            warm = WarmStart.of(origin, chosen, min_count=min_count)
            setup = loaded.build(warm.schema, where)
            start = warm_start(
                setup.model,
                warm,
                chosen,
                setup.objective,
                config=setup.config,
                noise_std=0.01 if noise is None else noise,
                keep_optimizer=keep_optimizer,
            )
            if distributed.rank() == 0:
                say_drift(start.drift)
        report = setup.fit(
            chosen,
            valid=opened[valid] if valid else None,
            start=start,
            out=out,
            device=own_device,
        )
        is_first = distributed.rank() == 0
    if not is_first:
        return
    if as_json:
        drift = {"drift": msgspec.to_builtins(start.drift)} if start is not None else {}
        print_json({**msgspec.to_builtins(report), **drift})
        return
    state = "was complete already, " if report.resumed_from == report.steps else ""
    typer.echo(f"{out}: {state}{report.steps:,} updates, {report.samples_per_s:,.0f} candidates/s")
    if report.best is not None:
        metrics = ", ".join(f"{k} {v:.4f}" for k, v in report.best.metrics.items())
        typer.echo(f"best at update {report.best.step:,}: {metrics}")
    suggest(("evaluate", out, "--log", log))
