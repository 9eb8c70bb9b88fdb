"""Fits a logging cascade on real interactions and logs what it would have logged."""

from prerank.funnel.build import FunnelReport, build_funnel, work_folder
from prerank.funnel.config import FunnelConfig, Quotas, Shares

__all__ = ["FunnelConfig", "FunnelReport", "Quotas", "Shares", "build_funnel", "work_folder"]
