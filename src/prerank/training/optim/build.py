"""Which optimiser gets which parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from prerank.nn.tables import FusedTables
from prerank.nn.torchrec_tables import TorchRecTables
from prerank.training.config import FitConfig
from prerank.training.optim.adagrad import Adagrad, RowWiseAdagrad
from prerank.training.optim.in_backward import InBackward
from prerank.training.optim.lazy_adam import LazyAdam

__all__ = ["build_optimisers", "table_parameters"]


def table_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights of all :class:`~prerank.nn.tables.FusedTables` in a model, each once."""
    found = [module.weight for module in model.modules() if isinstance(module, FusedTables)]
    return list({id(weight): weight for weight in found}.values())


_TABLE_OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "rowwise_adagrad": RowWiseAdagrad,
    "adagrad": Adagrad,
    "lazy_adam": LazyAdam,
}


def build_optimisers(model: nn.Module, config: FitConfig) -> dict[str, torch.optim.Optimizer]:
    """Build the optimisers of a run: ``dense`` and, where the model has tables, ``table``.

    Parameters
    ----------
    model : nn.Module
        Weights of :class:`~prerank.nn.tables.FusedTables` go to ``config.table_optimizer``, all
        other trainable parameters to ``config.optimizer``.
    config : FitConfig
        Names, learning rates and weight decay (of the dense part only: decay of a table would
        touch every row at every step).

    Examples
    --------
    >>> list(build_optimisers(nn.Linear(2, 1), FitConfig()))
    ['dense']
    """
    tables = [weight for weight in table_parameters(model) if weight.requires_grad]
    ids = {id(weight) for weight in table_parameters(model)}
    dense = [p for p in model.parameters() if p.requires_grad and id(p) not in ids]
    optimisers: dict[str, torch.optim.Optimizer] = {}
    if dense:
        kind: Any = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
        optimisers["dense"] = kind(
            dense, lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
    backed = [module for module in model.modules() if isinstance(module, TorchRecTables)]
    if tables and backed:
        optimisers["table"] = InBackward(backed, lr=config.table_lr)
    elif tables:
        optimisers["table"] = _TABLE_OPTIMISERS[config.table_optimizer](tables, lr=config.table_lr)
    return optimisers
