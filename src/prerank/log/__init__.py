"""The request log: write, read, stream, split, check, transform."""

from prerank.log.check import CheckReport, Finding, check_log
from prerank.log.dedup import as_impressions, dedup_impressions
from prerank.log.format.columns import Columns
from prerank.log.growth import (
    JoinReport,
    StatsReport,
    append_log,
    compute_stats,
    join_labels,
)
from prerank.log.impressions import (
    ColumnMap,
    HistoryRule,
    ImpressionMap,
    ImpressionReport,
    from_impressions,
    group_impressions,
    to_impressions,
)
from prerank.log.inputs.transform import Transforms
from prerank.log.log import Log, Part, open_log
from prerank.log.split import RowRanges, split_log
from prerank.log.write import WriteReport, write_log

__all__ = [
    "CheckReport",
    "ColumnMap",
    "Columns",
    "Finding",
    "HistoryRule",
    "ImpressionMap",
    "ImpressionReport",
    "JoinReport",
    "Log",
    "Part",
    "RowRanges",
    "StatsReport",
    "Transforms",
    "WriteReport",
    "append_log",
    "as_impressions",
    "check_log",
    "compute_stats",
    "dedup_impressions",
    "from_impressions",
    "group_impressions",
    "join_labels",
    "open_log",
    "split_log",
    "to_impressions",
    "write_log",
]
