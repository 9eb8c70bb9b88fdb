"""``prerank demo``: the whole story on the built-in world."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prerank.cli.evaluate import print_evaluation
from prerank.cli.output import (
    DeviceOption,
    JsonOption,
    check_device,
    print_json,
    say,
    suggest,
    track,
)

if TYPE_CHECKING:
    from prerank.world import WorldConfig

__all__ = ["demo"]

_RECIPES = ("two_tower", "mlp")
_FORWARD = 0.3


def demo(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the log and the runs.")
    ] = Path("demo-out"),
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, help="Seed of the world and of training.")
    ] = 0,
    requests: Annotated[
        int, typer.Option(metavar="N", min=100, help="Requests of the simulated log.")
    ] = 12_000,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Simulate a log, train two pre-rankers, evaluate them.

    A second run with the same folder and values goes on where the first one stopped.

    Example: prerank demo --out demo-out
    """
    from prerank.evaluation import evaluate
    from prerank.evaluation.runs import TierFile, load_runs, save_cascade
    from prerank.log import open_log
    from prerank.recipes import load_recipe
    from prerank.world import WorldConfig

    check_device(device)
    log_path, runs = out / "log", out / "runs"
    _make_log(log_path, WorldConfig(seed=seed, num_requests=requests))
    log = open_log(log_path)
    for number, name in enumerate(_RECIPES, start=1):
        say(f"2/3 training {name} ({number} of {len(_RECIPES)})")
        recipe = load_recipe(name).replace({"fit.seed": seed})
        setup = recipe.build(log.schema, f"recipe {name}")
        setup.fit(log["train"], valid=log["valid"], out=runs / name, device=device)
    light, strong = _RECIPES
    tiers = [TierFile(f"../{light}", forward=_FORWARD), TierFile(f"../{strong}")]
    save_cascade(runs / "cascade", tiers)
    folders = [runs / name for name in (*_RECIPES, "cascade")]
    part = log["test"]
    say(f"3/3 evaluating on the last day ({part.num_requests:,} requests)")
    with track("scoring", part.num_requests) as progress:
        result = evaluate(
            load_runs(folders, part), part, seed=seed, device=device, progress=progress
        )
    if as_json:
        print_json({**result.to_json(), "out": str(out)})
        return
    print_evaluation(result, "recall@10/T1")
    say(f"cascade: {light} scores all candidates and forwards {_FORWARD:.0%} of them to {strong}")
    say("All numbers are from a simulated world; nothing here is a claim about real users.")
    typer.echo(f"log: {log_path}   runs: {runs}")
    suggest(("evaluate", *folders, "--log", log_path), ("data", "check", log_path))


def _make_log(path: Path, config: WorldConfig) -> None:
    """Simulate the log, unless it is there already."""
    import msgspec

    from prerank.errors import InputError
    from prerank.world import World, write_world

    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        num = config.num_requests
        say(f"1/3 simulating {num:,} requests of a cascade (synthetic world, seed {config.seed})")
        with track("simulating", num) as progress:
            write_world(path, config, progress=progress)
        return
    if not (path / "world.json").is_file():
        raise InputError(f"{path}: exists and is no log of a simulated world; give another --out")
    old, new = (msgspec.structs.asdict(c) for c in (World.open(path).config, config))
    differing = [f"{key} was {old[key]}, is {new[key]}" for key in new if old[key] != new[key]]
    if differing:
        raise InputError(
            f"{path}: made with other values ({'; '.join(differing)}); give the same ones, or "
            "another --out"
        )
    say(f"1/3 {path}: the simulated log is there already")
