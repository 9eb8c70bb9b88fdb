"""Adam on the touched rows of a table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from prerank.training.optim.rows import RowOptimiser, put_rows, take_rows

__all__ = ["LazyAdam"]


class LazyAdam(RowOptimiser):
    r"""Adam whose moments and step counts live per row and move only when the row is touched.

    For every touched row with summed gradient :math:`g`, its own count :math:`t \leftarrow t + 1`:

    .. math::
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
        v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
        w \leftarrow w - lr \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    So a row does what textbook Adam would do if the batches without the row did not exist. The
    bias correction counts the row's own updates: with the number of all updates instead, the first
    step of a row that comes up late would be :math:`(1-\beta_1)/\sqrt{1-\beta_2} \approx 3.2`
    times too long. Momentum does not move untouched rows. The state is twice the table (in
    float32) and a count per row.

    Source: Kingma and Ba, "Adam", ICLR 2015; "lazy" updates as in open deep-learning libraries,
    per-row counts are ours.

    Parameters
    ----------
    params : iterable of Parameter
        Tables.
    lr : float, default 1e-3
        Step size, > 0.
    betas : (float, float), default (0.9, 0.999)
        Decay of the two moments, each in [0, 1).
    eps : float, default 1e-8
        Keeps the division finite.

    Raises
    ------
    ValueError
        ``lr`` or ``eps`` is not positive, or a beta is out of range.

    Examples
    --------
    >>> import torch.nn.functional as F
    >>> table = nn.Parameter(torch.zeros(4, 2))
    >>> optimiser = LazyAdam([table], lr=0.1)
    >>> F.embedding(torch.tensor([2, 2]), table, sparse=True).sum().backward()
    >>> optimiser.step()
    >>> table.detach()[1:3]
    tensor([[ 0.0000,  0.0000],
            [-0.1000, -0.1000]])
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"LazyAdam: betas must be in [0, 1), got {betas}")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    def new_state(self, weight: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """Two moments per weight and a count per row."""
        mean, square = (torch.zeros_like(weight, dtype=dtype) for _ in range(2))
        return {"mean": mean, "square": square, "count": weight.new_zeros(len(weight)).int()}

    def update(
        self, grad_nD: Tensor, rows: Tensor | None, state: dict[str, Any], group: dict[str, Any]
    ) -> Tensor:
        """Move the moments of the rows and return their steps."""
        beta1, beta2 = group["betas"]
        count_n = take_rows(state["count"], rows).add_(1)
        mean_nD = take_rows(state["mean"], rows).lerp_(grad_nD, 1 - beta1)
        square_nD = take_rows(state["square"], rows).mul_(beta2)
        square_nD = square_nD.addcmul_(grad_nD, grad_nD, value=1 - beta2)
        for name, value in (("count", count_n), ("mean", mean_nD), ("square", square_nD)):
            put_rows(state[name], rows, value)
        # In double: 1 - 0.999**t of the first updates would lose half its digits in float32.
        lr: float = group["lr"]
        exponent = count_n.double().view(-1, *[1] * (grad_nD.dim() - 1))
        rate = (lr / (1 - beta1**exponent)).to(grad_nD.dtype)
        root = (1 - beta2**exponent).sqrt().to(grad_nD.dtype)
        step_nD: Tensor = mean_nD * rate / (square_nD.sqrt() / root).add_(group["eps"])
        return step_nD
