"""Figures of quality against cost, and of quality against the share that is forwarded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prerank.report.canvas import INK, MUTED, add_note, add_title, log_axis, new_figure, style_of
from prerank.report.labels import place_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["frontier_figure", "share_figure"]


def frontier_figure(
    points: Sequence[Mapping[str, Any]],
    key: str,
    *,
    seeds: int = 1,
    baselines: Mapping[str, float] | None = None,
) -> Figure:
    """Draw models and cuts: quality beside microseconds per request.

    Parameters
    ----------
    points : sequence of mapping
        ``name``, ``us``, ``mean``, ``sd``, ``efficient``, as ``prerank bench frontier --json``
        gives them under ``points``.
    key : str
        The metric, larger is better.
    seeds : int
        Over how many mean and sd are taken.
    baselines : mapping of str to float, optional
        What costs nothing: a line where it is within sight of the points, its number anyway.

    Examples
    --------
    >>> point = {"name": "light", "us": 10.0, "mean": 0.4, "sd": 0.01, "efficient": True}
    >>> frontier_figure([point], "recall@10/T1").axes[0].get_xlabel()[:12]
    'microseconds'
    """
    figure, (ax,) = new_figure(width=9.6, height=4.8)
    for efficient, color, marker, label in (
        (False, MUTED, "o", "something cheaper is as good"),
        (True, "#0072B2", "s", "nothing cheaper is as good"),
    ):
        chosen = sorted((p for p in points if p["efficient"] is efficient), key=lambda p: p["us"])
        if not chosen:
            continue
        x, y = [p["us"] for p in chosen], [p["mean"] for p in chosen]
        if efficient:  # quality is had from each point's cost on
            ax.step(x, y, where="post", color=color, linewidth=1.0, alpha=0.5)
        ax.errorbar(
            x, y, yerr=[p["sd"] or 0.0 for p in chosen], color=color, marker=marker, markersize=6,
            linestyle="none", linewidth=1.3, capsize=2, label=label, zorder=5,
        )  # fmt: skip
    if points:
        ax.margins(x=0.12, y=0.14)
        log_axis(ax.xaxis)
    ax.set_ylim(ax.get_ylim())
    for k, (name, value) in enumerate((baselines or {}).items()):
        dashes = ("--", ":", "-.", (0, (1, 4)))[k % 4]
        label = f"{name}: {value:.4f}"
        ax.axhline(value, color=MUTED, linewidth=1.1, linestyle=dashes, label=label, zorder=1)
    add_title(ax, f"{key}: quality against cost")
    ax.set_xlabel("microseconds per request (log scale)")
    if seeds > 1:
        add_note(figure, f"Whiskers: sd over {seeds} seeds.")
    ax.set_ylabel(f"{key} (mean)" if seeds > 1 else key)
    ax.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    marks = [(p["us"], p["mean"], p["sd"] or 0.0, p["name"]) for p in points]
    place_labels(figure, ax, marks)
    return figure


def share_figure(
    curves: Mapping[str, Sequence[Mapping[str, float]]],
    key: str,
    *,
    references: Mapping[str, float] | None = None,
    quota_share: float | None = None,
    note: str = "Bands: sd over seeds.",
) -> Figure:
    """Draw quality against the share of candidates that a first model forwards.

    Parameters
    ----------
    curves : mapping of str to sequence of mapping
        By cascade: points with ``share`` (0 to 1), ``mean`` and ``sd``, or ``low`` and ``high``.
    key : str
        The metric.
    references : mapping of str to float, optional
        Single models, drawn as horizontal lines.
    quota_share : float, optional
        Share of the candidates that pre-ranking keeps: a cut there has the light model's recall by
        construction.
    note : str
        What the bands are.

    Examples
    --------
    >>> curve = [{"share": 0.1, "mean": 0.5, "sd": 0.01}, {"share": 1.0, "mean": 0.6, "sd": 0.01}]
    >>> share_figure({"light to heavy": curve}, "recall@10/T1").axes[0].get_xscale()
    'log'
    """
    figure, (ax,) = new_figure(width=8.0, height=4.4)
    names = list(curves)
    for name, found in curves.items():
        curve = sorted(found, key=lambda point: point["share"])
        style = style_of(name, names)
        x, y = [p["share"] for p in curve], [p["mean"] for p in curve]
        low = [p.get("low", p["mean"] - (p.get("sd") or 0.0)) for p in curve]
        high = [p.get("high", p["mean"] + (p.get("sd") or 0.0)) for p in curve]
        ax.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
        ax.plot(x, y, label=name, linewidth=1.8, markersize=5, **style)
    for k, (name, value) in enumerate((references or {}).items()):
        dashes = ("--", ":", "-.")[k % 3]
        ax.axhline(value, color=INK, linewidth=1.1, linestyle=dashes, label=name)
    if quota_share is not None:
        ax.axvline(quota_share, color=MUTED, linewidth=1.0)
        ax.annotate(
            "what is kept", (quota_share, 0.02), xycoords=("data", "axes fraction"), fontsize=8,
            xytext=(3, 0), textcoords="offset points", color=MUTED,
        )  # fmt: skip
    if curves:
        ax.set_xscale("log")
        shares = sorted({p["share"] for found in curves.values() for p in found}, reverse=True)
        ticks: list[float] = []
        for share in shares:  # the labels of near ones would overlap
            if not ticks or share < 0.72 * ticks[-1]:
                ticks.append(share)
        ax.set_xticks(ticks, [f"{100 * s:g} %" for s in ticks])
        ax.minorticks_off()
    add_title(ax, f"{key} against the share forwarded")
    ax.set_xlabel("candidates forwarded to the second model (log scale)")
    add_note(figure, note)
    ax.set_ylabel(key)
    ax.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
