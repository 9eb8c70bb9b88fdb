"""Fits a logging cascade on real interactions and logs what it would have logged."""

from prerank.funnel.adversary import AdversaryConfig, AdversaryReport, realness_report
from prerank.funnel.build import FunnelReport, build_funnel, work_folder
from prerank.funnel.config import FunnelConfig, Quotas, Shares
from prerank.funnel.ladder import Ladder, LadderConfig, Rung, difficulty_ladder

__all__ = [
    "AdversaryConfig",
    "AdversaryReport",
    "FunnelConfig",
    "FunnelReport",
    "Ladder",
    "LadderConfig",
    "Quotas",
    "Rung",
    "Shares",
    "build_funnel",
    "difficulty_ladder",
    "realness_report",
    "work_folder",
]
