"""Changing a log in one step: append, side columns, item statistics."""

from prerank.log.growth.append import append_log
from prerank.log.growth.side import JoinReport, add_columns, join_labels
from prerank.log.growth.stats import StatsReport, compute_stats

__all__ = [
    "JoinReport",
    "StatsReport",
    "add_columns",
    "append_log",
    "compute_stats",
    "join_labels",
]
