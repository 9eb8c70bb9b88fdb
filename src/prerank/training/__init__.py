"""Training: fit, combine rules, optimisers, schedules, checkpoints, run folders."""

from prerank.training.combine import Combine, Sum
from prerank.training.config import FitConfig
from prerank.training.fit import fit
from prerank.training.interrupt import InterruptedRunError
from prerank.training.optim import RowWiseAdagrad
from prerank.training.run import Run, load_run, read_run
from prerank.training.sitting import FitReport
from prerank.training.warm import Drift, Start, WarmStart, warm_start

__all__ = [
    "Combine",
    "Drift",
    "FitConfig",
    "FitReport",
    "InterruptedRunError",
    "Run",
    "RowWiseAdagrad",
    "Start",
    "Sum",
    "WarmStart",
    "fit",
    "load_run",
    "read_run",
    "warm_start",
]
