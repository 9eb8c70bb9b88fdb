"""``prerank demo``: the whole story on the built-in world."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prerank.cli.output import (
    DeviceOption,
    JsonOption,
    check_device,
    print_json,
    print_table,
    say,
    track,
)

__all__ = ["demo"]

_RECIPES = ("two_tower", "mlp")
_FORWARD = 0.3


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the log and the runs.")] = Path("demo-out"),
    seed: Annotated[int, typer.Option(help="Seed of the world and of training.")] = 0,
    requests: Annotated[int, typer.Option(help="Requests of the simulated log.")] = 20_000,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Make a simulated log, train two pre-rankers, evaluate them and their cascade.

    A second run with the same folder and values goes on where the first one stopped.

    Example: prerank demo --out demo-out
    """
    from prerank.errors import InputError
    from prerank.evaluation import evaluate
    from prerank.evaluation.runs import TierFile, load_runs, save_cascade
    from prerank.evaluation.show import cost_table, difference_table, metric_table
    from prerank.log import open_log
    from prerank.recipes import load_recipe
    from prerank.training import fit
    from prerank.world import World, WorldConfig, write_world

    check_device(device)
    config = WorldConfig(seed=seed, num_requests=requests)
    log_path = out / "log"
    if log_path.exists():
        if World.open(log_path).config != config:
            raise InputError(
                f"{log_path}: made with other values; give the same ones, or another --out"
            )
        say(f"1/3 {log_path}: a simulated log is there already")
    else:
        say(f"1/3 simulating {requests:,} requests of a cascade (synthetic world, seed {seed})")
        with track("simulating", requests) as progress:
            write_world(log_path, config, progress=progress)
    log = open_log(log_path)
    folders = []
    for number, name in enumerate(_RECIPES, start=1):
        say(f"2/3 training {name} ({number} of {len(_RECIPES)})")
        model, objective, values = (
            load_recipe(name).replace({"fit.seed": seed}).build(log.schema, f"recipe {name}")
        )
        folder = out / "runs" / name
        fit(
            model,
            log["train"],
            objective,
            valid=log["valid"],
            config=values,
            out=folder,
            device=device,
        )
        folders.append(folder)
    cascade = out / "runs" / "cascade"
    save_cascade(cascade, [TierFile("../two_tower", forward=_FORWARD), TierFile("../mlp")])
    folders.append(cascade)
    part = log["test"]
    say(f"3/3 evaluating on the last day ({part.num_requests:,} requests)")
    with track("scoring", part.num_requests) as progress:
        result = evaluate(
            load_runs(folders, part), part, seed=seed, device=device, progress=progress
        )
    if as_json:
        print_json({**result.to_json(), "out": str(out)})
        return
    print_table(metric_table(result), difference_table(result, "recall@10/T1"), cost_table(result))
    typer.echo(f"log: {log_path}   runs: {out / 'runs'}")
    typer.echo(f"again: prerank evaluate {folders[0]} {folders[1]} {cascade} --log {log_path}")
    typer.echo("All numbers are from a simulated world; nothing here is a claim about real users.")
