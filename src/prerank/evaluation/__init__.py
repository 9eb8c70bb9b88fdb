"""Evaluation: truths, metrics with intervals, baselines, paired comparison, cost."""

from prerank.evaluation.baselines import DEFAULT_BASELINES
from prerank.evaluation.cost import Cost
from prerank.evaluation.evaluate import evaluate
from prerank.evaluation.prepared import DEFAULT_KS, Prepared, prepare
from prerank.evaluation.result import Evaluation, RunResult
from prerank.evaluation.statistics import Difference, Estimate
from prerank.evaluation.truth.truths import GROUPS, TruthOptions
from prerank.evaluation.units import Units, load_units, save_units

__all__ = [
    "DEFAULT_BASELINES",
    "DEFAULT_KS",
    "GROUPS",
    "Cost",
    "Difference",
    "Estimate",
    "Evaluation",
    "Prepared",
    "RunResult",
    "TruthOptions",
    "Units",
    "evaluate",
    "load_units",
    "prepare",
    "save_units",
]
