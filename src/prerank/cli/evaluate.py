"""``prerank evaluate``: runs and baselines side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prerank.cli.figures import FiguresOption, check_figures, print_paths
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
    from prerank.log import Part

__all__ = ["evaluate", "print_evaluation"]


def evaluate(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of runs.")],
    log: Annotated[Path, typer.Option(metavar="LOG", help="Request log.")],
    part: Annotated[str, typer.Option(metavar="NAME", help="Part to evaluate.")] = "test",
    baselines: Annotated[
        str, typer.Option(metavar="NAMES", help="Rows beside the runs; '' for none.")
    ] = "random,popularity,retrieval,item_mean,item_mean+user_mean",
    k: Annotated[
        str, typer.Option(metavar="N,N,...", help="Cut-offs of recall and NDCG.")
    ] = "10,50,100",
    truths: Annotated[
        str, typer.Option(metavar="NAMES", help="Truths beside T1; '' for all that exist.")
    ] = "",
    ranker: Annotated[
        str | None,
        typer.Option(metavar="NAME|RUN", help="Ranker behind: a logged score or rank, or a run."),
    ] = None,
    quota: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="What pre-ranking keeps.")
    ] = None,
    top_m: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="What the ranker keeps of it.")
    ] = None,
    seeds: Annotated[
        bool, typer.Option("--seeds", help="Group runs that differ in their seed only.")
    ] = False,
    ablate: Annotated[
        bool, typer.Option("--ablate", help="Also permute each group of features.")
    ] = False,
    resamples: Annotated[
        int, typer.Option(metavar="N", min=1, help="Bootstrap resamples of users.")
    ] = 1000,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of ties and bootstrap.")] = 0,
    allow_seen: Annotated[
        bool, typer.Option("--allow-seen", help="Evaluate on rows a run was trained on.")
    ] = False,
    figures: FiguresOption = None,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Evaluate runs beside baselines, with intervals and differences.

    Example: prerank evaluate runs/two_tower runs/mlp --log logs/ml1m
    """
    from prerank.errors import InputError
    from prerank.evaluation import GROUPS, TruthOptions
    from prerank.evaluation import evaluate as run_evaluation
    from prerank.evaluation.runs import group_seeds, load_runs, load_scorer
    from prerank.evaluation.studies.leaks import undated_statistics
    from prerank.evaluation.studies.opened import open_part
    from prerank.log import open_log

    check_device(device)
    check_figures(figures)
    try:
        ks = sorted({int(text) for text in k.split(",") if text.strip()})
    except ValueError:
        ks = [0]
    if ks and ks[0] < 1:
        raise InputError(f"--k {k}: expected whole numbers from 1, like 10,50,100")
    for run in runs:
        if runs.count(run) > 1:
            raise InputError(f"{run}: given twice; name every run once")
    names = tuple(name.strip() for name in truths.split(",") if name.strip()) or GROUPS
    options = TruthOptions(groups=names, quota=quota, top_m=top_m)
    groups = group_seeds(runs) if seeds else {}
    behind: Any = ranker
    if ranker is not None and Path(ranker).is_dir():
        behind = load_scorer(Path(ranker))
    chosen = open_log(log)[part]
    scorers = load_runs(runs, chosen, allow_seen=allow_seen)
    with track("scoring", chosen.num_requests) as progress:
        result = run_evaluation(
            scorers,
            chosen,
            baselines=[name.strip() for name in baselines.split(",") if name.strip()],
            ks=ks,
            truths=options,
            ranker=behind,
            num_resamples=resamples,
            seed=seed,
            device=device,
            progress=progress,
        )
    asked = [k, names, str(ranker), quota, top_m, seed]
    opened = {
        name: open_part(folder, chosen, asked) for name, folder in zip(scorers, runs, strict=True)
    }
    undated = undated_statistics(chosen.log.schema)
    more: dict[str, Any] = {"opened": opened, "undated_statistics": list(undated)}
    if seeds:
        more["seeds"] = _seed_study(result, groups, dict(zip(runs, scorers, strict=True)))
    if ablate:
        more["ablation"] = _ablations(scorers, chosen, resamples, seed, device)
    drawn: list[Path] = []
    if figures is not None:
        from prerank.report import evaluation_figures

        keys = ["gauc/T1", "mrr/T1", *(f"recall@{ks[-1]}/T1" for _ in ks[:1])]
        drawn = evaluation_figures(result.to_json(), figures, keys)
        more["figures"] = [str(path) for path in drawn]
    if as_json:
        print_json({**result.to_json(), **more})
        return
    print_evaluation(result, "gauc/T1", f"recall@{ks[-1]}/T1" if ks else "mrr/T1")
    _print_more(more, part)
    print_paths(drawn)


def _seed_study(result: Evaluation, groups: Any, names: dict[Path, str]) -> dict[str, Any]:
    import msgspec

    from prerank.evaluation.studies.seeds import over_seeds

    values = {
        group: {
            seed: {key: m.value for key, m in result.runs[names[folder]].metrics.items()}
            for seed, folder in by_seed.items()
        }
        for group, by_seed in groups.items()
    }
    study: dict[str, Any] = msgspec.to_builtins(over_seeds(values))
    return study


def _ablations(
    scorers: dict[str, Any], part: Part, resamples: int, seed: int, device: str
) -> dict[str, Any]:
    import msgspec

    from prerank.evaluation.studies.ablate import ablate
    from prerank.models import Model

    return {
        name: msgspec.to_builtins(
            ablate(model, part, num_resamples=resamples, seed=seed, device=device)
        )
        for name, model in scorers.items()
        if isinstance(model, Model)
    }


def _print_more(more: dict[str, Any], part: str) -> None:
    from rich.table import Table

    if "seeds" in more:
        study = more["seeds"]
        table = Table(title=f"over seeds {', '.join(map(str, study['seeds']))}: mean, sd")
        for name in ("metric", *study["groups"]):
            table.add_column(name, justify="left" if name == "metric" else "right")
        keys = dict.fromkeys(key for found in study["groups"].values() for key in found)
        for key in keys:
            found = [group.get(key) for group in study["groups"].values()]
            table.add_row(key, *(f"{f['mean']:.4f} {f['sd']:.4f}" if f else "-" for f in found))
        print_table(table)
    for name, found in more.get("ablation", {}).items():
        table = Table(title=f"{name}: what is lost when features are permuted")
        metrics = list(found["whole"])
        for column in ("features", *metrics):
            table.add_column(column, justify="left" if column == "features" else "right")
        for group, lost in found["groups"].items():
            table.add_row(group, *(f"{lost[key]['value']:+.4f}" for key in metrics))
        print_table(table)
        for feature in found["suspects"]:
            say(f"{name}: '{feature}' alone carries most of the order; does it know the future?")
    for feature in more["undated_statistics"]:
        say(
            f"'{feature}' is a statistic without dates: counted over the whole log, it knows labels"
        )
    for name, times in more["opened"].items():
        if times > 1:
            say(f"{name}: part '{part}' has been opened {times} times; choose settings on valid")


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
