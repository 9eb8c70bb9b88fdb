"""Evaluation: truths, metrics with intervals, baselines, paired comparison, cost."""

from prerank.evaluation.baselines import DEFAULT_BASELINES
from prerank.evaluation.cost import Cost
from prerank.evaluation.evaluate import DEFAULT_KS, Evaluation, RunResult, evaluate
from prerank.evaluation.statistics import Difference, Estimate
from prerank.evaluation.truth.truths import GROUPS, TruthOptions

__all__ = [
    "DEFAULT_BASELINES",
    "DEFAULT_KS",
    "GROUPS",
    "Cost",
    "Difference",
    "Estimate",
    "Evaluation",
    "RunResult",
    "TruthOptions",
    "evaluate",
]
