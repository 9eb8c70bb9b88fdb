"""Labels beside points, placed so that they do not hide each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prerank.report.canvas import INK, MUTED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["place_labels"]

_NEAR, _FAR = 6.0, 20.0
_PLACES = [
    *((d, 0.0, "left", "center") for d in (_NEAR, _FAR)),
    *((-d, 0.0, "right", "center") for d in (_NEAR, _FAR)),
    *((0.0, d, "center", "bottom") for d in (9.0, _FAR, 2 * _FAR)),
    *((0.0, -d, "center", "top") for d in (9.0, _FAR, 2 * _FAR)),
    *((x, y, side, "center") for y in (14.0, -14.0, 28.0, -28.0)
      for x, side in ((_NEAR, "left"), (-_NEAR, "right"))),
]  # fmt: skip
"""Offsets in points from a mark, best first, and the side of the text that points to it."""


def place_labels(figure: Figure, ax: Any, marks: Sequence[tuple[float, float, float, str]]) -> None:
    """Write a text beside each mark ``(x, y, half its whisker, text)``, where it hides least.

    Places are tried in a fixed order, point by point, so the same points give the same figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    renderer: Any = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    figure.draw_without_rendering()  # lays the axes out
    inside = ax.get_window_extent(renderer)
    scale = figure.dpi / 72
    line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2}
    paper = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6}
    taken = []
    for x, y, whisker, _ in marks:
        (left, bottom), (right, top) = ax.transData.transform([(x, y - whisker), (x, y + whisker)])
        half = 4 * scale
        taken.append((left - half, min(bottom, top - half), right + half, max(top, bottom + half)))
    for x, y, _, text in marks:
        best: Any = None
        for dx, dy, ha, va in _PLACES:
            pointer = line if abs(dx) + abs(dy) > 10 else None
            note = ax.annotate(
                text, (x, y), xytext=(dx, dy), textcoords="offset points", ha=ha, va=va,
                fontsize=7.5, color=INK, zorder=4, arrowprops=pointer, bbox=paper,
            )  # fmt: skip
            note.update_positions(renderer)
            # of the text alone: an annotation's own extent has its pointer in it
            found = Text.get_window_extent(note, renderer)
            box = (found.x0, found.y0, found.x1, found.y1)
            hidden = sum(_overlap(box, other) for other in taken)
            hidden += 2 * ((box[2] - box[0]) * (box[3] - box[1]) - _overlap(box, inside.extents))
            if best is None or hidden < best[0] - 1.0:
                if best is not None:
                    best[1].remove()
                best = (hidden, note, box)
            else:
                note.remove()
            if best[0] < 1.0:
                break
        taken.append(best[2])


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the area that two boxes ``(x0, y0, x1, y1)`` share."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)
