"""Gradients of tables: sums over repeated rows, and the joint norm with dense ones.

Shapes: ``V`` rows of a table, ``N`` gradients, ``n`` distinct rows touched, ``D`` width.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["clip_gradients", "sparse_rows", "sum_rows"]


def sum_rows(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Sum a sparse gradient over repeated rows.

    The same as ``grad.coalesce()``, several times faster on CPU and with a fixed order of
    summation, so equal runs stay equal bit for bit. Gradients in bfloat16 are summed, and
    returned, in float32.

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
    if values.dtype is torch.bfloat16:
        values = values.float()
    if grad.is_coalesced() or index.numel() == 0:
        return index, values
    # Half the bytes to sort, and a table of 2**31 rows is far beyond one process.
    short = index.int() if grad.shape[0] <= torch.iinfo(torch.int32).max else index
    ordered, order = torch.sort(short, stable=True)
    starts = _starts_of_runs(ordered)
    return ordered[starts].long(), F.embedding_bag(order, values, starts, mode="sum")


def _starts_of_runs(ordered: Tensor) -> Tensor:
    """Return where a new value begins in sorted ``[N]``, int64."""
    is_new = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[1:], ordered[:-1], out=is_new[1:])
    if ordered.device.type == "cpu":  # several times faster than torch's nonzero
        return torch.from_numpy(np.flatnonzero(is_new.numpy()))
    return is_new.nonzero().squeeze(1)


def sparse_rows(rows: Tensor, values: Tensor, like: Tensor, *, coalesced: bool) -> Tensor:
    """Return a sparse gradient of ``like``'s shape and dtype from rows and their values."""
    return torch.sparse_coo_tensor(
        rows.unsqueeze(0),
        values.to(like.dtype),
        like.shape,
        is_coalesced=coalesced,
        check_invariants=False,
    )


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
            if not grad.is_coalesced():
                rows, summed = sum_rows(grad)
                parameter.grad = sparse_rows(rows, summed, parameter, coalesced=True)
            grad = parameter.grad
            assert grad is not None
            values.append(grad._values())
        else:
            values.append(grad)
    if not values:
        return torch.zeros(())
    with torch.no_grad():
        norms = torch._foreach_norm(values)
        widest = max((norm.dtype for norm in norms), key=lambda kind: kind.itemsize)
        norm: Tensor = torch.linalg.vector_norm(torch.stack([n.to(widest) for n in norms]))
        # A factor of 1 needs no pass over the gradients; elsewhere to look would be to wait.
        if norm.device.type != "cpu" or not float(norm) <= max_norm:
            torch._foreach_mul_(values, max_norm / norm.clamp(min=max_norm))
    return norm
