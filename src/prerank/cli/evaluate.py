"""``prerank evaluate``: runs and baselines side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prerank.cli.output import (
    DeviceOption,
    JsonOption,
    check_device,
    print_json,
    say,
    track,
)
from prerank.cli.tables import print_table

if TYPE_CHECKING:
    from prerank.evaluation import Evaluation

__all__ = ["evaluate", "print_evaluation"]


def evaluate(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of runs.")],
    log: Annotated[Path, typer.Option(metavar="LOG", help="Request log.")],
    part: Annotated[str, typer.Option(metavar="NAME", help="Part to evaluate.")] = "test",
    baselines: Annotated[
        str, typer.Option(metavar="NAMES", help="Rows beside the runs; '' for none.")
    ] = "random,popularity,item_mean,item_mean+user_mean",
    k: Annotated[
        str, typer.Option(metavar="N,N,...", help="Cut-offs of recall and NDCG.")
    ] = "10,50,100",
    resamples: Annotated[
        int, typer.Option(metavar="N", min=1, help="Bootstrap resamples of users.")
    ] = 1000,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of ties and bootstrap.")] = 0,
    allow_seen: Annotated[
        bool, typer.Option("--allow-seen", help="Evaluate on rows a run was trained on.")
    ] = False,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Evaluate runs beside baselines, with intervals and differences.

    Example: prerank evaluate runs/two_tower runs/mlp --log logs/ml1m
    """
    from prerank.errors import InputError
    from prerank.evaluation import evaluate as run_evaluation
    from prerank.evaluation.runs import load_runs
    from prerank.log import open_log

    check_device(device)
    try:
        ks = sorted({int(text) for text in k.split(",") if text.strip()})
    except ValueError:
        ks = [0]
    if ks and ks[0] < 1:
        raise InputError(f"--k {k}: expected whole numbers from 1, like 10,50,100")
    for run in runs:
        if runs.count(run) > 1:
            raise InputError(f"{run}: given twice; name every run once")
    chosen = open_log(log)[part]
    scorers = load_runs(runs, chosen, allow_seen=allow_seen)
    with track("scoring", chosen.num_requests) as progress:
        result = run_evaluation(
            scorers,
            chosen,
            baselines=[name.strip() for name in baselines.split(",") if name.strip()],
            ks=ks,
            num_resamples=resamples,
            seed=seed,
            device=device,
            progress=progress,
        )
    if as_json:
        print_json(result.to_json())
    else:
        print_evaluation(result, "gauc/T1", f"recall@{ks[-1]}/T1" if ks else "mrr/T1")


def print_evaluation(result: Evaluation, *keys: str) -> None:
    """Print an evaluation for people, with the differences in the metrics ``keys``."""
    from prerank.evaluation.show import cost_table, difference_table, metric_table

    print_table(metric_table(result))
    for key in keys:
        if any(key in found for found in result.differences.values()):
            print_table(difference_table(result, key))
    print_table(cost_table(result))
    say("T1: engaged or not; source:NAME: engaged against the negatives of that source")
    counts = {name: count for name, count in result.counts.items() if count}
    say("counts: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()))
    skipped: dict[str, dict[str, None]] = {}  # reason -> keys, as a set in order
    for run in result.runs.values():
        for key, reason in run.skipped.items():
            skipped.setdefault(reason, {})[key] = None
    for reason, found in skipped.items():
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        say(f"skipped: {', '.join(list(found)[:3])}{more}: {reason}")
