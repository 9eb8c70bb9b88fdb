"""Figures of evaluations, frontiers and diagnoses, as SVG and PNG.

They draw plain values, those that commands print with ``--json``, so a stored result can be drawn
again. matplotlib comes with ``pip install 'prerank[report]'`` and is imported when needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prerank.plugins import lazy_names

if TYPE_CHECKING:
    from prerank.report.canvas import new_figure as new_figure
    from prerank.report.canvas import save_figure as save_figure
    from prerank.report.diagnosis import snapshot_figure as snapshot_figure
    from prerank.report.diagnosis import training_figure as training_figure
    from prerank.report.evaluation import evaluation_figures as evaluation_figures
    from prerank.report.evaluation import metric_figure as metric_figure
    from prerank.report.evaluation import recall_figure as recall_figure
    from prerank.report.evaluation import source_figure as source_figure
    from prerank.report.frontier import frontier_figure as frontier_figure
    from prerank.report.frontier import share_figure as share_figure

__all__ = [
    "evaluation_figures",
    "frontier_figure",
    "metric_figure",
    "new_figure",
    "recall_figure",
    "save_figure",
    "share_figure",
    "snapshot_figure",
    "source_figure",
    "training_figure",
]

_FILES = {
    "canvas": ("new_figure", "save_figure"),
    "diagnosis": ("snapshot_figure", "training_figure"),
    "evaluation": ("evaluation_figures", "metric_figure", "recall_figure", "source_figure"),
    "frontier": ("frontier_figure", "share_figure"),
}
__getattr__, __dir__ = lazy_names(
    __name__, {n: f"prerank.report.{file}:{n}" for file, names in _FILES.items() for n in names}
)
