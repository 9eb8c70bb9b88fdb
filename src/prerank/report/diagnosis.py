"""Figures of a gradient diagnosis: over training, and of a finished run.

Each says which norm it shows; late negative cosines carry their caveat with them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prerank.report.canvas import INK, add_note, add_title, log_axis, new_figure, style_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["snapshot_figure", "training_figure"]

_CAVEAT = (
    "Near convergence the gradients of the sources must cancel: late negative cosines are partly "
    "arithmetic, early ones show conflict."
)
_SMOOTH = 9


def training_figure(lines: Sequence[Mapping[str, Any]], sources: Sequence[str]) -> Figure:
    """Draw how norms, cosines and mean logits of sources went over a training.

    Parameters
    ----------
    lines : sequence of mapping
        Lines of ``metrics.jsonl`` with ``kind`` = ``diagnosis``: ``step`` and the values of
        :func:`prerank.training.diagnosis.diagnose`.
    sources : sequence of str
        Hardest first.

    Examples
    --------
    >>> lines = [{"step": s, "per_sample/rank": 1 / s, "logit/rank": -s} for s in (1, 11)]
    >>> len(training_figure(lines, ["rank"]).axes)
    6
    """
    figure, axes = new_figure(2, 3, width=12.8, height=6.4)
    panels = {
        "norm/dense/contrast/": "contrast norm, dense weights",
        "norm/dense/negative/": "negative-side norm, dense weights",
        "per_sample/": "per sample: mean |dL/ds| of a negative",
        "norm/table/contrast/": "contrast norm, embedding tables",
    }
    for ax, (prefix, title) in zip(axes[:4], panels.items(), strict=True):
        _lines(ax, lines, prefix, sources, title)
        if any(line.get(prefix + name, 0) > 0 for line in lines for name in sources):
            log_axis(ax.yaxis)
    pairs = [f"{a}:{b}" for a, b in itertools.combinations(sources, 2)]
    _lines(axes[4], lines, "cos/dense/", pairs, "cosine of contrasts, dense weights")
    axes[4].axhline(0.0, color=INK, linewidth=0.8)
    axes[4].set_ylim(-1.05, 1.05)
    _lines(axes[5], lines, "logit/", [*sources, "positive"], "mean logit")
    for ax in axes[3:]:
        ax.set_xlabel("update")
    places: Any = ((axes[5], "outside right upper"), (axes[4], "outside right lower"))
    for (ax, place), title in zip(places, ("source", "pair of sources"), strict=True):
        handles, labels = ax.get_legend_handles_labels()
        if handles:
            figure.legend(
                handles, labels, title=title, loc=place, fontsize=8,
                title_fontsize=8, frameon=False, alignment="left",
            )  # fmt: skip
    add_note(figure, _CAVEAT)
    return figure


def _lines(
    ax: Any, lines: Sequence[Mapping[str, Any]], prefix: str, names: Sequence[str], title: str
) -> None:
    add_title(ax, title)
    for name in names:
        found = [(line["step"], line.get(prefix + name)) for line in lines]
        points = np.array([(s, v) for s, v in found if v is not None], dtype=np.float64)
        if not len(points):
            continue
        style = style_of(name, names)
        steps, seen = points.T
        if len(seen) <= 2 * _SMOOTH:
            ax.plot(steps, seen, label=_label(name), linewidth=1.5, markersize=3, **style)
            continue
        # One batch is noisy: its points stay visible behind their running mean.
        ax.plot(steps, seen, color=style["color"], alpha=0.25, linewidth=0.8)
        window = np.ones(_SMOOTH) / _SMOOTH
        half = _SMOOTH // 2
        mean = np.convolve(seen, window, mode="valid")
        ax.plot(
            steps[half:-half], mean, label=_label(name), color=style["color"], linewidth=1.8,
            marker=style["marker"], markersize=4, markevery=max(1, len(mean) // 8),
        )  # fmt: skip


def _label(name: str) -> str:
    return name.replace(":", " · ")


def snapshot_figure(summary: Mapping[str, Any]) -> Figure:
    """Draw the diagnosis of a finished run: ratios of norms, cosines, mean logits.

    Parameters
    ----------
    summary : mapping
        A :class:`prerank.training.diagnosis.Summary` as plain values, with ``sources``,
        ``values``, ``ratios`` and ``conflicts``.

    Examples
    --------
    >>> spread = {"mean": 4.0, "low": 3.0, "high": 5.0}
    >>> values = {"logit/rank": spread, "logit/random": spread}
    >>> summary = {"sources": ["rank", "random"], "num_batches": 2, "values": values,
    ...            "ratios": {"per_sample/rank:random": spread}, "conflicts": {}}
    >>> [ax.get_title(loc="left") for ax in snapshot_figure(summary).axes][2]
    'mean logit'
    """
    figure, (norms, angles, logits) = new_figure(1, 3, width=12.0, height=4.2)
    sources = list(summary["sources"])
    _ratios(norms, summary["ratios"], sources)
    _cosines(angles, summary, sources)
    _dots(logits, [*sources, "positive"], lambda name: summary["values"].get(f"logit/{name}"))
    add_title(logits, "mean logit")
    logits.set_xlabel("score of the first task")
    text = f"Means over {summary['num_batches']} batches with 95 % intervals. {_CAVEAT}"
    add_note(figure, text)
    return figure


_MEASURES = {
    "per_sample": "per sample",
    "norm/dense/contrast": "contrast, dense",
    "norm/dense/negative": "negative side, dense",
    "norm/table/contrast": "contrast, tables",
    "norm/table/negative": "negative side, tables",
}


def _ratios(ax: Any, ratios: Mapping[str, Any], sources: Sequence[str]) -> None:
    easiest = sources[-1] if sources else ""
    add_title(ax, f"gradient against '{easiest}' (ratio)")
    others = sources[:-1]
    ax.axvline(1.0, color=INK, linewidth=0.8)
    shown = [m for m in _MEASURES if any(f"{m}/{s}:{easiest}" in ratios for s in others)]
    for k, measure in enumerate(shown):
        offset = 0.28 * (k - (len(shown) - 1) / 2) / max(1, (len(shown) - 1) / 2)
        pairs = [(j, ratios.get(f"{measure}/{s}:{easiest}")) for j, s in enumerate(others)]
        found = [(j + offset, spread) for j, spread in pairs if spread]
        style = style_of(measure, shown)
        _with_intervals(ax, found, label=_MEASURES[measure], **style)
    ax.set_yticks(range(len(others)), others)
    ax.set_ylim(len(others) - 0.4, -0.6)
    log_axis(ax.xaxis)
    ax.set_xlabel("times as large (log scale)")
    if shown:
        handles, labels = ax.get_legend_handles_labels()
        ax.figure.legend(
            handles, labels, loc="outside upper left", ncols=len(shown), fontsize=8, frameon=False
        )


def _with_intervals(ax: Any, found: Sequence[tuple[float, Any]], **style: Any) -> None:
    """Draw points at heights, with whiskers where there is an interval."""
    for k, (y, spread) in enumerate(found):
        label = style.get("label") if k == 0 else None
        color, marker = style["color"], style["marker"]
        low, high = spread["low"], spread["high"]
        if low is not None and high is not None and math.isfinite(low) and math.isfinite(high):
            ax.plot([low, high], [y, y], color=color, linewidth=1.4, solid_capstyle="butt")
        ax.plot(
            [spread["mean"]], [y], color=color, marker=marker, markersize=5, linestyle="none",
            label=label,
        )  # fmt: skip


def _cosines(ax: Any, summary: Mapping[str, Any], sources: Sequence[str]) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    add_title(ax, "cosine of contrasts, dense (conflict rate)")
    size = len(sources)
    cosine = np.eye(size)
    ax.grid(visible=False)
    for (a, first), (b, second) in itertools.combinations(enumerate(sources), 2):
        pair = f"{first}:{second}"
        spread = summary["values"].get(f"cos/dense/{pair}")
        cosine[a, b] = cosine[b, a] = spread["mean"] if spread else np.nan
        conflict = summary["conflicts"].get(f"dense/{pair}")
        if spread and conflict is not None:
            ax.text(a, b, f"{spread['mean']:+.2f}\n({conflict:.0%})", **_cell(spread["mean"]))
            ax.text(b, a, f"{spread['mean']:+.2f}", **_cell(spread["mean"]))
    colors = LinearSegmentedColormap.from_list("signed", ["#D55E00", "#FFFFFF", "#0072B2"])
    if size:
        ax.imshow(cosine, cmap=colors, vmin=-1, vmax=1, aspect="auto")
    ax.set_xticks(range(size), sources)
    ax.set_yticks(range(size), sources)


def _cell(cosine: float) -> dict[str, Any]:
    color = "white" if abs(cosine) > 0.75 else INK
    return {"ha": "center", "va": "center", "fontsize": 8.5, "color": color}


def _dots(ax: Any, names: Sequence[str], spread_of: Callable[[str], Any]) -> None:
    for k, name in enumerate(names):
        spread = spread_of(name)
        if spread:
            _with_intervals(ax, [(k, spread)], **style_of(name, names))
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
