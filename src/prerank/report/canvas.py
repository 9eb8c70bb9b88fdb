"""Figures without a display and without global state: made, styled and saved here.

matplotlib is imported when the first figure is made. Its ``pyplot`` is never used: figures are
plain objects that nobody has to close.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prerank.errors import InputError, missing_extra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "INK",
    "MUTED",
    "Style",
    "add_note",
    "add_title",
    "log_axis",
    "new_figure",
    "save_figure",
    "style_of",
]

Style = dict[str, Any]

# Okabe and Ito, "Color Universal Design", 2008: told apart with any kind of colour vision. Markers
# differ too, for print in grey.
_COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#222222")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
INK, MUTED = "#222222", "#8A8A8A"
_FONT = 9


def style_of(name: str, names: Sequence[str]) -> Style:
    """Return color and marker of one of several series: the same in every figure of a set.

    Examples
    --------
    >>> style_of("rank", ["exposed", "rank"])
    {'color': '#0072B2', 'marker': 's'}
    """
    k = list(names).index(name)
    return {"color": _COLORS[k % len(_COLORS)], "marker": _MARKERS[(k // 8 + k) % len(_MARKERS)]}


def new_figure(
    num_rows: int = 1, num_columns: int = 1, *, width: float = 6.4, height: float = 3.8
) -> tuple[Figure, list[Any]]:
    """Make a figure of ``width`` x ``height`` inches and its axes, row by row.

    Raises
    ------
    InputError
        matplotlib is not installed; says how to get it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_extra("matplotlib", "report") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(num_rows, num_columns, squeeze=False).ravel())
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(MUTED)
        ax.tick_params(colors=INK, labelsize=_FONT, length=3)
        ax.grid(color="#E4E4E4", linewidth=0.7)
        ax.set_axisbelow(True)
        ax.xaxis.label.set(size=_FONT, color=INK)
        ax.yaxis.label.set(size=_FONT, color=INK)
    return figure, axes


def add_title(ax: Any, text: str) -> None:
    """Write a title over the left edge of axes."""
    ax.set_title(text, loc="left", fontsize=_FONT + 0.5, color=INK)


def add_note(figure: Figure, text: str) -> None:
    """Write what must be known to read a figure below it."""
    figure.supxlabel(text, fontsize=7.5, color=MUTED, x=0.01, ha="left")


def log_axis(axis: Any) -> None:
    """Make an axis with data logarithmic, its ticks numbers as people write them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
    low, high = axis.get_view_interval()
    few = high / low < 100
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def save_figure(
    figure: Figure, folder: str | Path, name: str, formats: Sequence[str] = ("svg", "png")
) -> list[Path]:
    """Write a figure; the same figure gives the same bytes.

    Parameters
    ----------
    figure : Figure
        From :func:`new_figure`.
    folder : path
        Made if absent.
    name : str
        Of the files, without suffix; ``/``, ``@`` and ``:`` of metric keys become ``-``.
    formats : sequence of str
        Suffixes.

    Returns
    -------
    list of Path
        The files, one per format.

    Raises
    ------
    InputError
        The folder cannot be made or written to.

    Examples
    --------
    >>> import tempfile
    >>> figure, (ax,) = new_figure()
    >>> _ = ax.plot([1, 2], [3, 4])
    >>> [path.name for path in save_figure(figure, tempfile.mkdtemp(), "recall@10/T1")]
    ['recall-10-T1.svg', 'recall-10-T1.png']
    """
    import matplotlib

    folder = Path(folder)
    stem = name.translate(str.maketrans("/@: ", "----"))
    paths = [folder / f"{stem}.{kind}" for kind in formats]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Names inside an SVG are drawn at random without a salt; dates differ from day to day.
        with matplotlib.rc_context({"svg.hashsalt": "prerank"}):
            for kind, path in zip(formats, paths, strict=True):
                metadata = {"Date": None} if kind == "svg" else None
                figure.savefig(path, format=kind, dpi=150, metadata=metadata)
    except OSError as error:
        raise InputError(f"{folder}: cannot hold figures: {error.strerror or error}") from None
    return paths
