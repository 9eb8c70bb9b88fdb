"""Changing a log in one step: append, side columns, item statistics."""

from prerank.log.growth.append import append_log, compatible
from prerank.log.growth.side import JoinReport, add_columns, join_labels
from prerank.log.growth.stats import StatsReport, compute_stats, parse_window

__all__ = [
    "JoinReport",
    "StatsReport",
    "add_columns",
    "append_log",
    "compatible",
    "compute_stats",
    "join_labels",
    "parse_window",
]
