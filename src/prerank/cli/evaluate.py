"""``prerank evaluate``: runs and baselines side by side."""

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

__all__ = ["evaluate"]


def evaluate(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    log: Annotated[Path, typer.Option(help="Request log.")],
    part: Annotated[str, typer.Option(help="Part to evaluate.")] = "test",
    baselines: Annotated[
        str, typer.Option(help="Baselines beside the runs, comma-separated; '' for none.")
    ] = "random,popularity,item_mean,item_mean+user_mean",
    k: Annotated[str, typer.Option(help="Cut-offs of recall and NDCG.")] = "10,50,100",
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples of users.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of ties and bootstrap.")] = 0,
    allow_seen: Annotated[
        bool, typer.Option("--allow-seen", help="Evaluate on rows a run was trained on.")
    ] = False,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Evaluate runs on a part of a log, with baselines, intervals and paired differences.

    Example: prerank evaluate runs/two_tower runs/mlp --log logs/ml1m
    """
    from prerank.errors import InputError
    from prerank.evaluation import evaluate as run_evaluation
    from prerank.evaluation.runs import load_runs
    from prerank.evaluation.show import cost_table, difference_table, metric_table
    from prerank.log import open_log

    opened = open_log(log)
    chosen = opened[part]
    try:
        ks = sorted({int(text) for text in k.split(",") if text})
    except ValueError:
        raise InputError(f"--k {k}: expected numbers like 10,50,100") from None
    if ks and ks[0] < 1:
        raise InputError(f"--k {k}: cut-offs start at 1")
    if resamples < 1 or seed < 0:
        raise InputError("--resamples must be at least 1 and --seed at least 0")
    scorers = load_runs(runs, chosen, allow_seen=allow_seen)
    with track("scoring", chosen.num_requests) as progress:
        result = run_evaluation(
            scorers,
            chosen,
            baselines=[name for name in baselines.split(",") if name],
            ks=ks,
            num_resamples=resamples,
            seed=seed,
            device=check_device(device),
            progress=progress,
        )
    if as_json:
        print_json(result.to_json())
        return
    print_table(metric_table(result))
    for key in ("gauc/T1", f"recall@{ks[-1]}/T1" if ks else "mrr/T1"):
        if any(key in found for found in result.differences.values()):
            print_table(difference_table(result, key))
    print_table(cost_table(result))
    counts = ", ".join(f"{name} {count:,}" for name, count in result.counts.items())
    say(f"counts: {counts}")
    reasons = {why for run in result.runs.values() for why in run.skipped.values()}
    for reason in sorted(reasons):
        say(f"skipped: {reason}")
