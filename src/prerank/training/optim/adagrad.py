"""Adagrad on tables, with one accumulator per row or one per weight.

Source: Duchi, Hazan and Singer, "Adaptive Subgradient Methods", JMLR 2011; the mean over the row
as in the "exact row-wise Adagrad" of open embedding-table libraries.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from prerank.training.optim.rows import RowOptimiser, put_rows, take_rows

__all__ = ["Adagrad", "RowWiseAdagrad"]


class Adagrad(RowOptimiser):
    r"""Adagrad: one accumulator per weight.

    For every touched row with summed gradient :math:`g \in R^D`:
    :math:`s \leftarrow s + g^2`, then :math:`w \leftarrow w - lr \cdot g / (\sqrt{s} + \epsilon)`,
    all per element. An untouched row has :math:`g = 0` and would not move anyway, so this *is*
    dense Adagrad. The state is as large as the table (in float32).

    Parameters
    ----------
    params : iterable of Parameter
        Tables.
    lr : float, default 0.05
        Step size, > 0.
    eps : float, default 1e-8
        Keeps the first step of a weight finite.

    Examples
    --------
    >>> table = nn.Parameter(torch.zeros(4, 2))
    >>> optimiser = Adagrad([table], lr=0.1)
    >>> (table[[2, 2]] * torch.tensor([1.0, 10.0])).sum().backward()
    >>> optimiser.step()
    >>> table.detach()[2]
    tensor([-0.1000, -0.1000])
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 0.05, eps: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "eps": eps})

    def new_state(self, weight: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """One sum per weight."""
        return {"sum": torch.zeros_like(weight, dtype=dtype)}

    def update(
        self, grad_nD: Tensor, rows: Tensor | None, state: dict[str, Any], group: dict[str, Any]
    ) -> Tensor:
        """Add squares to the sums and return the scaled gradients."""
        sums_nD = _add(state["sum"], rows, grad_nD.square())
        lr: float = group["lr"]
        return grad_nD / sums_nD.sqrt().add_(group["eps"]) * lr


class RowWiseAdagrad(RowOptimiser):
    r"""Adagrad with one accumulator per row of a table.

    For every touched row with summed gradient :math:`g \in R^D`:
    :math:`s \leftarrow s + \frac{1}{D} \sum_d g_d^2`, then
    :math:`w \leftarrow w - lr \cdot g / (\sqrt{s} + \epsilon)`. A row without a gradient is
    neither read nor written. The state is ``D`` times smaller than Adagrad's.

    Parameters
    ----------
    params : iterable of Parameter
        Tables.
    lr : float, default 0.05
        Step size, > 0.
    eps : float, default 1e-8
        Keeps the first step of a row finite.

    Examples
    --------
    >>> import torch.nn.functional as F
    >>> table = nn.Parameter(torch.zeros(4, 2))
    >>> optimiser = RowWiseAdagrad([table], lr=0.1)
    >>> F.embedding(torch.tensor([2, 2]), table, sparse=True).sum().backward()
    >>> optimiser.step()
    >>> table.detach().tolist()[1:3]
    [[0.0, 0.0], [-0.10000000149011612, -0.10000000149011612]]
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 0.05, eps: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "eps": eps})

    def new_state(self, weight: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """One sum per row."""
        return {"sum": weight.new_zeros(weight.shape[0], dtype=dtype)}

    def update(
        self, grad_nD: Tensor, rows: Tensor | None, state: dict[str, Any], group: dict[str, Any]
    ) -> Tensor:
        """Add mean squares to the sums and return the scaled gradients."""
        squares_n = grad_nD.square()
        if grad_nD.dim() > 1:
            # A product with a vector: torch's mean is slow over rows as short as these.
            wide_nD = squares_n.flatten(1)
            width = wide_nD.shape[1]
            squares_n = wide_nD @ wide_nD.new_full((width,), 1.0 / width)
        lr: float = group["lr"]
        scale_n = lr / _add(state["sum"], rows, squares_n).sqrt().add_(group["eps"])
        return grad_nD * scale_n.view(-1, *[1] * (grad_nD.dim() - 1))


def _add(total: Tensor, rows: Tensor | None, values: Tensor) -> Tensor:
    """Add values to distinct rows (None: all) of a state in place; return the new rows."""
    new = take_rows(total, rows).add_(values)
    put_rows(total, rows, new)
    return new
