"""``prerank demo``: the whole story on the built-in world."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from prerank.cli.tables import print_table

if TYPE_CHECKING:
    from prerank.training.diagnosis.summary import Spread, Summary
    from prerank.world import WorldConfig

__all__ = ["demo"]

_LIGHT, _MIXED, _EXPRESSIVE = "light", "light_mixed", "expressive"
_RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    _MIXED: ("hap_light", {"objective.grouping": "mixed"}),
    _LIGHT: ("hap_light", {}),
    _EXPRESSIVE: ("hap_expressive", {}),
}
"""Name of a run: its recipe, and what the demo changes."""
_FORWARD = 0.3
_EPOCHS = 2
_POOL = 50


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
    """Simulate a cascade and tell the HAP story on it.

    A light model with one loss over all sources of negatives, the same with one loss path per
    source, an expressive one for what the light one forwards. A second run with the same folder
    and values goes on where the first one stopped.

    Example: prerank demo --out demo-out
    """
    from msgspec import to_builtins

    from prerank.evaluation import evaluate
    from prerank.evaluation.runs import TierFile, load_runs, save_cascade
    from prerank.log import open_log
    from prerank.recipes import load_recipe
    from prerank.training.diagnosis.run import diagnose_run
    from prerank.world import WorldConfig

    check_device(device)
    log_path, runs = out / "log", out / "runs"
    # A score of retrieval would tell random negatives, which no retrieval found, from the others.
    world = WorldConfig(seed=seed, num_requests=requests, num_pool=_POOL, retrieval_score=False)
    _make_log(log_path, world)
    log = open_log(log_path)
    for number, (name, (recipe_name, changes)) in enumerate(_RUNS.items(), start=1):
        say(f"2/4 training {name} ({number} of {len(_RUNS)})")
        values = {**changes, "fit.seed": seed, "fit.epochs": _EPOCHS, "fit.eval_metric": "auc"}
        setup = load_recipe(recipe_name).replace(values).build(log.schema, f"recipe {recipe_name}")
        setup.fit(log["train"], valid=log["valid"], out=runs / name, device=device)
    tiers = [TierFile(f"../{_LIGHT}", forward=_FORWARD), TierFile(f"../{_EXPRESSIVE}")]
    save_cascade(runs / "cascade", tiers)
    say("3/4 gradients of each source of negatives, mixed loss and one loss path per source")
    conflict = {
        name: diagnose_run(runs / name, log["valid"], num_batches=8, device=device).summary
        for name in (_MIXED, _LIGHT)
    }
    folders = [runs / name for name in (*_RUNS, "cascade")]
    part = log["test"]
    say(f"4/4 evaluating on the last day ({part.num_requests:,} requests)")
    with track("scoring", part.num_requests) as progress:
        result = evaluate(
            load_runs(folders, part), part, seed=seed, device=device, progress=progress
        )
    if as_json:
        gradients = {name: to_builtins(found) for name, found in conflict.items()}
        print_json({**result.to_json(), "gradients": gradients, "out": str(out)})
        return
    print_evaluation(result, "recall@10/T1")
    _print_conflict(conflict)
    say(f"cascade: {_LIGHT} scores all and forwards {_FORWARD:.0%} of them to {_EXPRESSIVE}")
    say("All numbers are from a simulated world; nothing here is a claim about real users.")
    say("Which of the claims of HAP hold, with controls: docs/hap-study.md")
    typer.echo(f"log: {log_path}   runs: {runs}")
    suggest(
        ("evaluate", *folders, "--log", log_path),
        ("diagnose", runs / _LIGHT, "--log", log_path),
        ("data", "check", log_path),
    )


def _print_conflict(conflict: Mapping[str, Summary]) -> None:
    """Print what each source does to the gradient under either loss."""
    from rich.table import Table

    table = Table(title="gradient by source of negatives: mixed loss | one loss path per source")
    table.add_column("source")
    for name in ("negatives a batch", "share of the gradient on scores", "norm over random's"):
        table.add_column(name, justify="right")
    either = tuple(conflict.values())
    for source in either[-1].sources:
        shares = [_number(found.values.get(f"mass/{source}"), "{:.0%}") for found in either]
        norms = [
            _number(found.ratios.get(f"norm/dense/negative/{source}:random"), "{:.1f}x")
            for found in either
        ]
        count = _number(either[0].values.get(f"negatives/{source}"), "{:,.0f}")
        table.add_row(source, count, " | ".join(shares), " | ".join(norms))
    print_table(table)
    say("norm: of the negatives' own gradient on dense weights, at the end of training")


def _number(found: Spread | None, form: str) -> str:
    return "-" if found is None else form.format(found.mean)


def _make_log(path: Path, config: WorldConfig) -> None:
    """Simulate the log, unless it is there already."""
    import msgspec

    from prerank.errors import InputError
    from prerank.world import World, write_world

    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        num = config.num_requests
        say(f"1/4 simulating {num:,} requests of a cascade (synthetic world, seed {config.seed})")
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
    say(f"1/4 {path}: the simulated log is there already")
