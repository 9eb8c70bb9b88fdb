"""An evaluation as a table for people."""

from __future__ import annotations

import io
import math

from rich.console import Console
from rich.table import Table

from prerank.evaluation.result import Evaluation
from prerank.evaluation.statistics import Difference, Estimate

__all__ = ["as_text", "cost_table", "difference_table", "metric_table", "shown_keys"]

_FIRST = ("gauc/T1", "auc/T1", "ne/T1", "ece/T1", "mrr/T1")
_AT_QUOTA = (
    *(f"recall@{{}}/{truth}" for truth in ("T1", "T2", "T3", "T5", "U")),
    *("ndcg@{}/T4", "dislike@{}/T2", "regret@{}/U", "survival@{}/T1"),
    *("overlap@{}/ranker", "score_lost@{}/ranker", "gain@{}/ranker"),
)
_LAST = ("kendall/ranker", "auc_macro/sources", "auc_min/sources")


def shown_keys(evaluation: Evaluation) -> list[str]:
    """Return the metric keys worth a row for people; JSON has all."""
    every = {key for run in evaluation.runs.values() for key in run.metrics}
    keys = [key for key in _FIRST if key in every]
    declared = {key.split("/", 2)[2] for key in every if key.count("/") == 2}
    for task in sorted(declared):
        of_task = (f"{metric}/T1/{task}" for metric in ("gauc", "auc", "ne", "ece"))
        keys += [key for key in of_task if key in every]
    cuts = sorted(int(k[7:-3]) for k in every if k.startswith("recall@") and k.endswith("/T1"))
    keys += [f"recall@{k}/T1" for k in cuts] + [f"ndcg@{k}/T1" for k in cuts[:1]]
    if any(k.startswith("gauc/source:") and not k.endswith(":exposed") for k in every):
        keys += sorted(k for k in every if k.startswith("gauc/source:"))
        keys += sorted(k for k in every if k.startswith("request_auc/source:"))
    at_quota = [key.format(evaluation.quota) for key in _AT_QUOTA]
    return list(dict.fromkeys([*keys, *(k for k in (*at_quota, *_LAST) if k in every)]))


def metric_table(evaluation: Evaluation) -> Table:
    """Return one row per metric, one column per scorer."""
    table = Table(title=f"{evaluation.log}, part {evaluation.part}", title_justify="left")
    table.add_column("metric", no_wrap=True)
    for name in evaluation.runs:
        table.add_column(name.replace("+", " +"), justify="right")
    for key in shown_keys(evaluation):
        table.add_row(key, *(_short(run.metrics.get(key)) for run in evaluation.runs.values()))
    return table


def _short(estimate: Estimate | None) -> str:
    return "-" if estimate is None or math.isnan(estimate.value) else f"{estimate.value:.4f}"


def difference_table(evaluation: Evaluation, key: str = "gauc/T1") -> Table:
    """Return the paired differences of one metric with their intervals."""
    title = f"paired differences of {key}, 95 % interval over users"
    table = Table(title=title, title_justify="left")
    for name in ("difference", "value", "low", "high", "p"):
        table.add_column(name, justify="left" if name == "difference" else "right", no_wrap=True)
    for pair, found in evaluation.differences.items():
        if key in found:
            table.add_row(pair, *_difference(found[key]))
    return table


def _difference(d: Difference) -> tuple[str, ...]:
    return (f"{d.value:+.4f}", f"{d.low:+.4f}", f"{d.high:+.4f}", f"{d.p_value:.3g}")


def cost_table(evaluation: Evaluation) -> Table:
    """Return what each model costs."""
    table = Table(title="cost on this machine (medians)", title_justify="left")
    table.add_column("model", no_wrap=True)
    names = ("us_per_request", "us_per_item", "us_per_candidate", "flops_per_candidate")
    for name in (*names, "params_dense", "params_table", "peak_mb"):
        table.add_column(name.replace("_per_", " per ").replace("_", " "), justify="right")
    for name, run in evaluation.runs.items():
        if run.cost is not None:
            c = run.cost
            numbers = [f"{getattr(c, n):,.2f}" for n in names[:3]]
            numbers += [f"{c.flops_per_candidate:,.0f}", f"{c.params_dense:,}"]
            table.add_row(name, *numbers, f"{c.params_table:,}", f"{c.peak_mb:.2f}")
            table.title = (
                f"cost of a request of {c.num_candidates:,} candidates (medians), {c.device}, "
                f"{c.threads} threads"
            )
    return table


def as_text(evaluation: Evaluation, width: int = 160) -> str:
    """Return the tables as plain text."""
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None)
    console.print(metric_table(evaluation))
    if evaluation.differences:
        console.print(difference_table(evaluation))
    return out.getvalue()
