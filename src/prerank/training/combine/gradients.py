"""Gradients of several parts side by side: inner products, and weighted sums of them.

Shapes: ``G`` sources, ``n`` rows of a table that any of them touches, ``D`` width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prerank.training.optim.gradients import sparse_rows, sum_rows

__all__ = ["Stacked", "gradients", "stack"]


@dataclass(frozen=True, slots=True)
class Stacked:
    """The gradients of one parameter, one per source.

    Parameters
    ----------
    values : Tensor ``[G, ...]`` or ``[G, n, D]``
        Zeros where a source has no gradient.
    rows : Tensor ``[n]`` int64, optional
        Ascending rows of a sparse gradient.
    """

    values: Tensor
    rows: Tensor | None = None

    def products(self) -> Tensor:
        """Return inner products ``[G, G]`` float64."""
        flat = self.values.flatten(1)
        return (flat @ flat.T).double()

    def mixed(self, weight_G: Tensor, like: nn.Parameter) -> Tensor:
        """Return the weighted sum over sources, a gradient of ``like``; sparse ones are summed."""
        total: Tensor = torch.tensordot(weight_G.to(self.values), self.values, dims=1)
        if self.rows is None:
            return total.to(like.dtype)
        return sparse_rows(self.rows, total, like, coalesced=True)


def gradients(part: Tensor, parameters: Sequence[nn.Parameter]) -> tuple[Tensor | None, ...]:
    """Return the gradients of a scalar, its graph kept; None where it does not reach."""
    if not part.requires_grad:
        return (None,) * len(parameters)
    found: tuple[Tensor | None, ...] = torch.autograd.grad(
        part, parameters, retain_graph=True, allow_unused=True
    )
    return found


def stack(grads: Sequence[Tensor | None]) -> Stacked | None:
    """Put the gradients of one parameter side by side; None if there is none.

    Examples
    --------
    >>> table = torch.zeros(5, 1, requires_grad=True)
    >>> def grad(ids):
    ...     looked_up = nn.functional.embedding(torch.tensor(ids), table, sparse=True)
    ...     return torch.autograd.grad(looked_up.sum(), table)[0]
    >>> both = stack([grad([3, 1, 3]), None, grad([4])])
    >>> both.rows.tolist(), both.values.squeeze(2).tolist()
    ([1, 3, 4], [[1.0, 2.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    """
    found = {k: grad for k, grad in enumerate(grads) if grad is not None}
    if not found:
        return None
    if all(grad.is_sparse for grad in found.values()):
        return _stack_rows(found, len(grads))
    first = next(iter(found.values()))
    nothing = torch.zeros(first.shape, dtype=first.dtype, device=first.device)
    dense = {k: grad.to_dense() if grad.is_sparse else grad for k, grad in found.items()}
    return Stacked(torch.stack([dense.get(k, nothing) for k in range(len(grads))]))


def _stack_rows(found: dict[int, Tensor], num_sources: int) -> Stacked:
    """Sum each sparse gradient over repeated rows, on the rows that any of them touches."""
    first = next(iter(found.values()))
    index = first._indices()
    if all(torch.equal(grad._indices(), index) for grad in found.values()):
        # Sources are looked up together, so their gradients name the same rows: sort them once.
        wide = torch.cat([grad._values() for grad in found.values()], dim=1)
        shape = (first.shape[0], wide.shape[1])
        side_by_side = torch.sparse_coo_tensor(
            index, wide, shape, is_coalesced=first.is_coalesced(), check_invariants=False
        )
        rows, summed = sum_rows(side_by_side)
        parts = dict(zip(found, summed.view(len(rows), len(found), -1).unbind(1), strict=True))
    else:
        sums = {k: sum_rows(grad) for k, grad in found.items()}
        rows = torch.unique(torch.cat([rows for rows, _ in sums.values()]))
        parts = {}
        for k, (own, summed) in sums.items():
            parts[k] = summed.new_zeros(len(rows), summed.shape[1])
            parts[k][torch.searchsorted(rows, own)] = summed
    nothing = torch.zeros_like(next(iter(parts.values())))
    return Stacked(torch.stack([parts.get(k, nothing) for k in range(num_sources)]), rows)
