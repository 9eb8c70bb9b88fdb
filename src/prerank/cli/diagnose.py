"""``prerank diagnose``: what each source of negatives does to the gradient of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prerank.cli.figures import FiguresOption, check_figures, print_paths
from prerank.cli.output import DeviceOption, JsonOption, check_device, print_json, say, track
from prerank.cli.tables import print_table

if TYPE_CHECKING:
    from prerank.training.diagnosis import Summary

__all__ = ["diagnose"]


def diagnose(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    log: Annotated[Path, typer.Option(metavar="LOG", help="Request log.")],
    part: Annotated[str, typer.Option(metavar="NAME", help="Part to take batches from.")] = "valid",
    batches: Annotated[
        int, typer.Option(metavar="N", min=1, help="Batches, drawn at random.")
    ] = 16,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Requests per batch; as in training.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of batches.")] = 0,
    figures: FiguresOption = None,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Show gradients per source of negatives: norms, angles, shares.

    Train with --set fit.diagnose_every=N to have them over the training, too.

    Example: prerank diagnose runs/light --log logs/ml1m --figures out
    """
    import msgspec

    from prerank.errors import InputError
    from prerank.log import open_log
    from prerank.training.diagnosis.run import diagnose_run

    check_device(device)
    if (run / "cascade.json").is_file():
        raise InputError(f"{run}: a cascade has no gradient; diagnose one of its runs")
    check_figures(figures)
    chosen = open_log(log)[part]
    total = min(batches, chosen.num_batches(batch_size or 1))
    with track("diagnosing", total, unit="batches") as progress:
        found = diagnose_run(
            run,
            chosen,
            num_batches=batches,
            batch_size=batch_size,
            seed=seed,
            device=device,
            progress=progress,
        )
    summary: dict[str, Any] = msgspec.to_builtins(found.summary)
    drawn = [] if figures is None else _draw(figures, summary, found.training)
    if as_json:
        values = {"run": str(run), "log": str(log), "part": part, "seed": seed, **summary}
        values |= {"num_requests": found.num_requests, "batch_size": found.batch_size}
        values |= {"training": list(found.training), "warnings": list(found.warnings)}
        print_json({**values, "figures": [str(path) for path in drawn]})
        return
    _print(found.summary, f"{run}, part {part}: {found.summary.num_batches} batches")
    if found.training:
        _print_training(found.training)
    else:
        say("over training: nothing; train with --set fit.diagnose_every=N to see it")
    for warning in found.warnings:
        say(f"warning: {warning}")
    print_paths(drawn)


def _draw(folder: Path, summary: dict[str, Any], training: Any) -> list[Path]:
    from prerank.report import save_figure, snapshot_figure, training_figure

    paths = save_figure(snapshot_figure(summary), folder, "diagnosis")
    if training:
        figure = training_figure(training, summary["sources"])
        paths += save_figure(figure, folder, "diagnosis-training")
    return paths


_NORMS = {
    "contrast": "norm/{}/contrast",
    "negative side": "norm/{}/negative",
    "dominance": "dominance/{}",
}


def _print(summary: Summary, title: str) -> None:
    """Print sources, ratios of sources and angles."""
    from rich.table import Table

    values = summary.values
    columns = {"negatives": "negatives", "requests": "requests", "mean logit": "logit"}
    columns |= {"per sample": "per_sample", "share of mass": "mass"}
    for where in ("dense", "table"):
        if f"norm/{where}/total" in values:
            columns |= {f"{name}, {where}": key.format(where) for name, key in _NORMS.items()}
    table = Table(title=f"{title}, means per batch")
    for column in ("source", *columns):
        table.add_column(column, justify="left" if column == "source" else "right")
    for source in (*summary.sources, "positive"):
        found = [values.get(f"{key}/{source}") for key in columns.values()]
        table.add_row(source, *(f"{f.mean:.4g}" if f else "-" for f in found))
    print_table(table)
    measures = list(dict.fromkeys(key.rpartition("/")[0] for key in summary.ratios))
    table = Table(title="gradients of one source over those of another, 95 % intervals")
    for column in ("sources", *measures):
        table.add_column(column, justify="left" if column == "sources" else "right")
    for pair in dict.fromkeys(key.rpartition("/")[2] for key in summary.ratios):
        found = [summary.ratios.get(f"{measure}/{pair}") for measure in measures]
        table.add_row(
            pair, *(f"{f.mean:.3g} [{f.low:.3g}, {f.high:.3g}]" if f else "-" for f in found)
        )
    if measures:
        print_table(table)
    table = Table(title="angles between contrasts of two sources, 95 % intervals")
    for column in ("sources", "weights", "cosine", "conflict rate", "magnitude similarity"):
        table.add_column(column, justify="left" if column in ("sources", "weights") else "right")
    for key, rate in summary.conflicts.items():
        where, _, pair = key.partition("/")
        c, m = values[f"cos/{key}"], values[f"similarity/{key}"]
        cosine = f"{c.mean:+.3f} [{c.low:+.3f}, {c.high:+.3f}]"
        table.add_row(pair, where, cosine, f"{rate:.0%}", f"{m.mean:.3f}")
    if summary.conflicts:
        print_table(table)
    say(
        "contrast: a source's negatives and the pull on positives they cause; they sum to the whole"
    )
    say("negative side: its negatives alone; per sample: mean |dL/ds| of one of them")
    say("near convergence contrasts must cancel: a late negative cosine is partly arithmetic")


def _print_training(lines: tuple[dict[str, Any], ...]) -> None:
    """Print thirds of the training: ratios of the hardest source to the others, and cosines."""
    from rich.table import Table

    from prerank.training.diagnosis import summarise

    size = max(1, len(lines) // 3)
    thirds = [lines[:size], lines[size : 2 * size], lines[2 * size :]]
    summaries = {f"{t[0]['step']} to {t[-1]['step']}": summarise(t) for t in thirds if t}
    keys = dict.fromkeys(k for s in summaries.values() for k in s.ratios)
    shown = [f"{m}/" for m in ("per_sample", "norm/dense/contrast", "norm/dense/negative")]
    table = Table(title="over training (updates), means")
    for column in ("measure", *summaries):
        table.add_column(column, justify="left" if column == "measure" else "right")
    for key in (k for k in keys if any(k.startswith(s) for s in shown)):
        found = [s.ratios.get(key) for s in summaries.values()]
        table.add_row(key, *(f"{f.mean:.3g}" if f else "-" for f in found))
    cosines = dict.fromkeys(k for s in summaries.values() for k in s.values if "cos/dense" in k)
    for key in cosines:
        found = [s.values.get(key) for s in summaries.values()]
        table.add_row(key, *(f"{f.mean:+.3f}" if f else "-" for f in found))
    print_table(table)
