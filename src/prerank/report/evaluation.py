"""Figures of an evaluation: metrics with intervals, AUC per source, recall around the quota."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prerank.report.canvas import INK, MUTED, add_note, add_title, new_figure, save_figure, style_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["evaluation_figures", "metric_figure", "recall_figure", "source_figure"]

_PER_SOURCE = ("gauc", "request_auc", "auc")
_BARS = "Bars: 95 % intervals, bootstrap over users."
_BASELINES = frozenset({"random", "popularity", "retrieval", "item_mean", "item_mean+user_mean"})


def _value(run: Mapping[str, Any], key: str) -> tuple[float, float, float] | None:
    """Return value, low and high of a metric; None where there is none."""
    found = run["metrics"].get(key)
    if not found or found["value"] is None or not math.isfinite(found["value"]):
        return None
    value = float(found["value"])
    low, high = found.get("low"), found.get("high")
    return value, value if low is None else low, value if high is None else high


def metric_figure(result: Mapping[str, Any], key: str) -> Figure:
    """Draw one metric of all runs and baselines, with intervals.

    Parameters
    ----------
    result : mapping
        What ``prerank evaluate --json`` prints, or ``Evaluation.to_json()``.
    key : str
        Such as ``recall@100/T1``.

    Examples
    --------
    >>> interval = {"value": 0.6, "low": 0.5, "high": 0.7}
    >>> figure = metric_figure({"runs": {"mlp": {"metrics": {"gauc/T1": interval}}}}, "gauc/T1")
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['mlp']
    """
    found = {name: _value(run, key) for name, run in result["runs"].items()}
    rows = {name: value for name, value in found.items() if value is not None}
    figure, (ax,) = new_figure(width=6.4, height=1.3 + 0.3 * max(len(rows), 2))
    for y, (name, (value, low, high)) in enumerate(rows.items()):
        is_baseline = name in _BASELINES
        color, marker = (MUTED, "o") if is_baseline else ("#0072B2", "s")
        ax.plot([low, high], [y, y], color=color, linewidth=1.6, solid_capstyle="butt")
        ax.plot([value], [y], color=color, marker=marker, markersize=5.5)
        ax.annotate(
            f"{value:.4f}", (1.0, y), xycoords=("axes fraction", "data"), fontsize=8,
            xytext=(4, 0), textcoords="offset points", va="center", color=INK,
        )  # fmt: skip
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_ylim(len(rows) - 0.5, -0.5)
    add_title(ax, _title(result, key))
    ax.set_xlabel(key)
    add_note(figure, _BARS)
    return figure


def _title(result: Mapping[str, Any], what: str) -> str:
    part = result.get("part")
    return f"{what} on part '{part}'" if part else what


def source_figure(result: Mapping[str, Any], metric: str = "auc") -> Figure:
    """Draw the AUC of positives against the negatives of each source, one series per run.

    Parameters
    ----------
    result : mapping
        As for :func:`metric_figure`.
    metric : {"auc", "gauc", "request_auc"}
        Pairs of all requests, of a user's, or of one request's candidates.

    Examples
    --------
    >>> interval = {"value": 0.6, "low": 0.5, "high": 0.7}
    >>> run = {"metrics": {"auc/source:rank": interval}}
    >>> figure = source_figure({"runs": {"mlp": run, "random": run}})
    >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
    ['rank']
    """
    prefix = f"{metric}/source:"
    every = [k for run in result["runs"].values() for k in run["metrics"] if k.startswith(prefix)]
    # Runs list sources as the schema does, easiest first.
    sources = [key.removeprefix(prefix) for key in dict.fromkeys(every)][::-1]
    runs = [n for n, r in result["runs"].items() if any(_value(r, prefix + s) for s in sources)]
    figure, (ax,) = new_figure(width=max(7.0, 1.6 * len(sources) + 2.6), height=4.2)
    _dodged(ax, result, runs, [f"{prefix}{source}" for source in sources])
    ax.axhline(0.5, color=INK, linewidth=0.8)
    ax.set_xticks(range(len(sources)), sources)
    ax.set_ylabel(metric)
    add_title(ax, _title(result, "engaged against the negatives of one source"))
    ax.set_xlabel("source of the negatives, hardest first")
    add_note(figure, f"{_BARS} Line: chance.")
    return figure


def _dodged(ax: Any, result: Mapping[str, Any], runs: Sequence[str], keys: Sequence[str]) -> None:
    """Draw points with intervals, series side by side at every key."""
    for k, name in enumerate(runs):
        offset = 0.6 * ((k + 0.5) / len(runs) - 0.5)
        style = style_of(name, runs)
        if name in _BASELINES:
            style |= {"color": MUTED, "markerfacecolor": "white"}
        label: str | None = name
        for x, key in enumerate(keys):
            found = _value(result["runs"][name], key)
            if found is None:
                continue
            value, low, high = found
            at = x + offset
            ax.plot([at, at], [low, high], color=style["color"], linewidth=1.5)
            ax.plot([at], [value], markersize=5, linestyle="none", label=label, **style)
            label = None
    ax.set_xlim(-0.5, len(keys) - 0.5)
    if runs:
        ax.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def recall_figure(result: Mapping[str, Any], truth: str = "T1") -> Figure | None:
    """Draw recall at half of, one time and twice what pre-ranking kept; None without a quota.

    Parameters
    ----------
    result : mapping
        As for :func:`metric_figure`, with ``quota``.
    truth : str
        ``T1`` engaged, ``T2`` exposed, ``T3`` the ranker's top, ``U`` true utility.

    Examples
    --------
    >>> at = {f"recall@{k}/T3": {"value": k / 40, "low": None, "high": None} for k in (5, 10, 20)}
    >>> figure = recall_figure({"quota": 10, "runs": {"mlp": {"metrics": at}}}, "T3")
    >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
    ['5 (half)', '10 (quota)', '20 (twice)']
    """
    quota = result.get("quota")
    if not quota:
        return None
    cuts = {max(1, quota // 2): "half", quota: "quota", 2 * quota: "twice"}
    keys = [f"recall@{k}/{truth}" for k in cuts]
    runs = [n for n, r in result["runs"].items() if any(_value(r, key) for key in keys)]
    if not runs:
        return None
    figure, (ax,) = new_figure(width=7.6, height=4.2)
    _dodged(ax, result, runs, keys)
    ax.set_xticks(range(len(keys)), [f"{k} ({name})" for k, name in cuts.items()])
    ax.set_ylabel(f"recall of {truth}")
    add_title(ax, _title(result, f"recall of {truth} around the real quota"))
    ax.set_xlabel("candidates kept")
    add_note(figure, _BARS)
    return figure


def evaluation_figures(
    result: Mapping[str, Any], folder: str | Path, keys: Sequence[str] = ()
) -> list[Path]:
    """Write every figure that an evaluation has values for.

    Parameters
    ----------
    result : mapping
        As for :func:`metric_figure`.
    folder : path
        Where to.
    keys : sequence of str
        Metrics to draw; default ``gauc/T1``, ``mrr/T1`` and the largest cut of ``recall@k/T1``.

    Returns
    -------
    list of Path
        SVG and PNG files.
    """
    every = list(dict.fromkeys(k for run in result["runs"].values() for k in run["metrics"]))
    cuts = [int(m[1]) for m in (re.fullmatch(r"recall@(\d+)/T1", k) for k in every) if m]
    usual = ["gauc/T1", "mrr/T1", *(f"recall@{k}/T1" for k in sorted(cuts)[-1:])]
    paths: list[Path] = []
    for key in keys or usual:
        if any(_value(run, key) for run in result["runs"].values()):
            paths += save_figure(metric_figure(result, key), folder, key)
    for metric in _PER_SOURCE:
        if any(key.startswith(f"{metric}/source:") for key in every):
            paths += save_figure(source_figure(result, metric), folder, f"{metric}-per-source")
    for truth in ("T1", "T2", "T3", "U"):
        figure = recall_figure(result, truth)
        if figure is not None:
            paths += save_figure(figure, folder, f"recall-around-quota-{truth}")
    return paths
