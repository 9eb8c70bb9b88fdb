"""What optimisers of tables share: summed gradients in, touched rows out.

Shapes: ``V`` rows of a table, ``n`` distinct rows touched, ``D`` width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from prerank.nn.tables import gather_rows
from prerank.rng import hash64, stream
from prerank.training.optim.gradients import sum_rows

__all__ = ["RowOptimiser", "put_rows", "round_stochastically", "take_rows"]

_ROUNDING = stream("training/rounding")


class RowOptimiser(torch.optim.Optimizer):
    """Base of optimisers that read and write only the rows a batch has touched.

    Gradients of a row are summed first. State and arithmetic are in float32 or wider also where
    the table is stored in bfloat16; there the new weight is rounded up or down with probabilities
    that make its mean exact: rounded to the nearest, the small steps of a late optimiser (under
    1/256 of a weight) would all be lost. The random bits are a function of the number of updates,
    so a resumed run, and every process of a data-parallel one, draws the same.

    Parameters
    ----------
    params : iterable of Parameter
        Tables ``[V, D]`` with sparse gradients; dense ones (then of any rank) touch all rows.
    defaults : dict
        Options of the parameter groups, ``lr`` and ``eps`` among them.

    Raises
    ------
    ValueError
        ``lr`` or ``eps`` is not positive.
    """

    def __init__(self, params: Iterable[nn.Parameter], defaults: dict[str, Any]) -> None:
        for name in ("lr", "eps"):
            if not defaults[name] > 0:
                raise ValueError(
                    f"{type(self).__name__}: {name} must be positive, got {defaults[name]}"
                )
        super().__init__(params, defaults)

    @abstractmethod
    def new_state(self, weight: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the state of a table before its first update, in ``dtype``.

        All of it must be tensors, so that a checkpoint can hold it.
        """

    @abstractmethod
    def update(
        self, grad_nD: Tensor, rows: Tensor | None, state: dict[str, Any], group: dict[str, Any]
    ) -> Tensor:
        """Take the summed gradients of some rows into the state; return what to subtract.

        Parameters
        ----------
        grad_nD : Tensor ``[n, ...]``
            Summed gradients.
        rows : Tensor ``[n]`` int64 or None
            Their distinct rows; None means all rows in order.
        state, group : dict
            State of the table and options of its group.
        """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the rows that have a gradient; ``closure`` re-evaluates the loss if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step(weight, weight.grad, group)
        return loss

    def _step(self, weight: nn.Parameter, grad: Tensor, group: dict[str, Any]) -> None:
        is_short = weight.dtype is torch.bfloat16
        state = self.state[weight]
        if not state:
            state |= self.new_state(weight, torch.float32 if is_short else weight.dtype)
        if is_short:
            state.setdefault("updates", torch.zeros((), dtype=torch.int64))
        rows, grad_nD = sum_rows(grad) if grad.is_sparse else (None, grad)
        if rows is not None and rows.numel() == 0:
            return
        step_nD = self.update(grad_nD.float() if is_short else grad_nD, rows, state, group)
        new_nD = take_rows(weight.detach(), rows)
        if is_short:
            state["updates"] += 1
            new_nD = round_stochastically(new_nD.float().sub_(step_nD), int(state["updates"]))
        else:
            new_nD = new_nD.sub_(step_nD)
        put_rows(weight, rows, new_nD)


def take_rows(table: Tensor, rows: Tensor | None) -> Tensor:
    """Return distinct rows of a table, new (None: all of it, not new)."""
    if rows is None:
        return table
    is_wide = table.dim() == 2 and table.is_floating_point()
    return gather_rows(table, rows) if is_wide else table.index_select(0, rows)


def put_rows(table: Tensor, rows: Tensor | None, values: Tensor) -> None:
    """Write what was made of :func:`take_rows` back."""
    # Rows are distinct, so read-modify-copy is exact; it beats index_add_ on CPU.
    if rows is None:
        if table.data_ptr() != values.data_ptr():
            table.copy_(values)
    elif table.device.type == "cpu" and table.dim() == 2 and table.is_contiguous():
        # A row at a time as one lump of memory: several times faster than index_copy_.
        _lumps(table)[rows.numpy()] = _lumps(values.contiguous())
        torch.autograd.graph.increment_version(table)
    else:
        table.index_copy_(0, rows, values)


def _lumps(table: Tensor) -> npt.NDArray[np.void]:
    """Return a contiguous ``[V, D]`` on CPU as ``[V]`` lumps of memory, shared."""
    flat = table.detach().view(torch.uint8).numpy()
    lumps: npt.NDArray[np.void] = flat.view(np.dtype((np.void, flat.shape[1])))[:, 0]
    return lumps


def round_stochastically(values: Tensor, seed: int) -> Tensor:
    """Round float32 to bfloat16, up or down with probabilities that keep the mean.

    Examples
    --------
    >>> third = torch.full((30000,), 1 + 1 / 384)  # a third of the way from 1 to 1 + 1/128
    >>> rounded = round_stochastically(third, seed=0).float()
    >>> sorted(set(rounded.tolist())), round(float(rounded.mean() - 1) * 384, 1)
    ([1.0, 1.0078125], 1.0)
    """
    generator = torch.Generator(values.device)
    generator.manual_seed(int(hash64(_ROUNDING, seed) >> np.uint64(1)))
    # 64 bits at a time, four draws of 16: drawing is what costs here.
    noise = torch.empty(-(-values.numel() // 4), dtype=torch.int64, device=values.device)
    noise.random_(-(1 << 63), None, generator=generator)
    short = noise.view(torch.int16)[: values.numel()].view(values.shape)
    # Adding below the cut, then cutting: the carry comes with the probability of the cut part.
    bits = short.int().bitwise_and_(0xFFFF).add_(values.view(torch.int32)).bitwise_and_(-(1 << 16))
    return bits.view(torch.float32).bfloat16()
