"""Flat rows, one per impression, to requests and back."""

from prerank.log.impressions.build import ImpressionReport, from_impressions, group_impressions
from prerank.log.impressions.flatten import to_impressions
from prerank.log.impressions.mapping import ColumnMap, HistoryRule, ImpressionMap, LabelMap

__all__ = [
    "ColumnMap",
    "HistoryRule",
    "ImpressionMap",
    "ImpressionReport",
    "LabelMap",
    "from_impressions",
    "group_impressions",
    "to_impressions",
]
