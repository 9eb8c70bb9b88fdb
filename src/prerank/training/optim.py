"""Optimisers: row-wise Adagrad for embedding tables, torch's Adam for everything else.

A batch touches few rows of a table, so tables get sparse gradients and an optimiser that reads and
writes only the touched rows. Gradients of one row are summed before the update ("exact" updates):
the result does not depend on how many candidates of a batch share the row, so request-level and
impression-level batches train alike.

Shapes: ``V`` rows of a table, ``N`` gradients, ``n`` distinct rows touched, ``D`` width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prerank.nn.tables import FusedTables
from prerank.training.config import FitConfig

__all__ = [
    "RowWiseAdagrad",
    "build_optimisers",
    "clip_gradients",
    "sum_rows",
    "table_parameters",
]


def sum_rows(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Sum a sparse gradient over repeated rows.

    The same as ``grad.coalesce()``, several times faster on CPU and with a fixed order of
    summation, so equal runs stay equal bit for bit.

    Parameters
    ----------
    grad : sparse COO Tensor ``[V, D]``
        One sparse dimension, any number of repeated rows.

    Returns
    -------
    rows : Tensor ``[n]`` int64
        Distinct rows, ascending.
    values : Tensor ``[n, D]``
        Their summed gradients.

    Examples
    --------
    >>> weight = torch.zeros(5, 1, requires_grad=True)
    >>> F.embedding(torch.tensor([3, 1, 3]), weight, sparse=True).sum().backward()
    >>> rows, values = sum_rows(weight.grad)
    >>> rows.tolist(), values.tolist()
    ([1, 3], [[1.0], [2.0]])
    """
    index, values = grad._indices()[0], grad._values()
    if grad.is_coalesced() or index.numel() == 0:
        return index, values
    ordered, order = torch.sort(index, stable=True)
    rows, counts = torch.unique_consecutive(ordered, return_counts=True)
    return rows, F.embedding_bag(order, values, counts.cumsum(0) - counts, mode="sum")


class RowWiseAdagrad(torch.optim.Optimizer):
    r"""Adagrad with one accumulator per row of a table.

    For every touched row with summed gradient :math:`g \in R^D`:
    :math:`s \leftarrow s + \frac{1}{D} \sum_d g_d^2`, then
    :math:`w \leftarrow w - lr \cdot g / (\sqrt{s} + \epsilon)`. A row without a gradient is
    neither read nor written. The state is ``D`` times smaller than Adagrad's.

    Source: Duchi, Hazan and Singer, "Adaptive Subgradient Methods", JMLR 2011, for Adagrad; the
    mean over the row as in the "exact row-wise Adagrad" of open embedding-table libraries.

    Parameters
    ----------
    params : iterable of Parameter
        Tables ``[V, D]`` (``[V]`` and higher ranks work too) with sparse or dense gradients.
    lr : float, default 0.05
        Step size, > 0.
    eps : float, default 1e-8
        Keeps the first step of a row finite.

    Raises
    ------
    ValueError
        ``lr`` or ``eps`` is not positive.

    Examples
    --------
    >>> table = nn.Parameter(torch.zeros(4, 2))
    >>> optimiser = RowWiseAdagrad([table], lr=0.1)
    >>> F.embedding(torch.tensor([2, 2]), table, sparse=True).sum().backward()
    >>> optimiser.step()
    >>> table.detach().tolist()[1:3]
    [[0.0, 0.0], [-0.10000000149011612, -0.10000000149011612]]
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 0.05, eps: float = 1e-8) -> None:
        if not lr > 0 or not eps > 0:
            raise ValueError(f"RowWiseAdagrad: lr and eps must be positive, got {lr} and {eps}")
        super().__init__(params, {"lr": lr, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the rows that have a gradient; ``closure`` re-evaluates the loss if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["sum"] = weight.new_zeros(weight.shape[0])
                _update_rows(weight, weight.grad, state["sum"], group["lr"], group["eps"])
        return loss


def _update_rows(weight: Tensor, grad: Tensor, total: Tensor, lr: float, eps: float) -> None:
    if not grad.is_sparse:
        total += grad.square().flatten(1).mean(1) if grad.dim() > 1 else grad.square()
        scale = lr / (total.sqrt() + eps)
        weight.sub_(grad * scale.view(-1, *[1] * (grad.dim() - 1)))
        return
    rows, g_nD = sum_rows(grad)
    if rows.numel() == 0:
        return
    sum_n = total.index_select(0, rows) + g_nD.square().mean(1)
    total.index_copy_(0, rows, sum_n)
    step_nD = g_nD * (lr / (sum_n.sqrt() + eps)).unsqueeze(1)
    # Rows are distinct, so read-modify-copy is exact; it beats index_add_ several times on CPU.
    weight.index_copy_(0, rows, weight.index_select(0, rows) - step_nD)


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients so that their joint L2 norm is at most ``max_norm``.

    Dense and sparse gradients count alike, a sparse one by its sum over repeated rows; it stays
    summed afterwards. One factor for all keeps the direction.

    Returns
    -------
    Tensor, scalar
        The norm before clipping.

    Examples
    --------
    >>> weight = nn.Parameter(torch.zeros(2))
    >>> weight.grad = torch.tensor([3.0, 4.0])
    >>> clip_gradients([weight], 1.0), weight.grad
    (tensor(5.), tensor([0.6000, 0.8000]))
    """
    values: list[Tensor] = []
    for parameter in parameters:
        grad = parameter.grad
        if grad is None:
            continue
        if grad.is_sparse:
            rows, summed = sum_rows(grad)
            parameter.grad = torch.sparse_coo_tensor(
                rows.unsqueeze(0), summed, grad.shape, is_coalesced=True, check_invariants=False
            )
            values.append(parameter.grad._values())
        else:
            values.append(grad)
    if not values:
        return torch.zeros(())
    norm: Tensor
    with torch.no_grad():
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(v) for v in values]))
        factor = (max_norm / norm.clamp(min=max_norm)).to(norm.dtype)
        for value in values:
            value.mul_(factor)
    return norm


def table_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights of all :class:`~prerank.nn.tables.FusedTables` in a model, each once."""
    found = [module.weight for module in model.modules() if isinstance(module, FusedTables)]
    return list({id(weight): weight for weight in found}.values())


# Name -> maker of an optimiser for tables. Adagrad per element and lazy Adam belong here too.
_TABLE_OPTIMISERS: dict[str, Callable[[list[nn.Parameter], FitConfig], torch.optim.Optimizer]] = {
    "rowwise_adagrad": lambda tables, config: RowWiseAdagrad(tables, lr=config.table_lr),
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
    if tables:
        optimisers["table"] = _TABLE_OPTIMISERS[config.table_optimizer](tables, config)
    return optimisers
