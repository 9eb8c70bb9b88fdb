"""Optimisers: sparse row-wise ones for embedding tables, torch's Adam for everything else.

A batch touches few rows of a table, so tables get sparse gradients and an optimiser that reads and
writes only the touched rows. Gradients of one row are summed before the update ("exact" updates):
the result does not depend on how many candidates of a batch share the row, so request-level and
impression-level batches train alike.
"""

from prerank.training.optim.adagrad import Adagrad, RowWiseAdagrad
from prerank.training.optim.build import build_optimisers, table_parameters
from prerank.training.optim.gradients import clip_gradients, sum_rows
from prerank.training.optim.lazy_adam import LazyAdam
from prerank.training.optim.rows import RowOptimiser

__all__ = [
    "Adagrad",
    "LazyAdam",
    "RowOptimiser",
    "RowWiseAdagrad",
    "build_optimisers",
    "clip_gradients",
    "sum_rows",
    "table_parameters",
]
