"""Inner products of gradients: norms, angles and shares all follow from them.

Shapes: ``K`` gradients, ``I`` candidates, ``T`` tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prerank.training.optim import sum_rows, table_parameters

__all__ = ["gram_matrices"]


def gram_matrices(
    model: nn.Module, logits: Tensor, pulls: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Send gradients of the scores back through a model; return their inner products.

    One pass for every distinct pull that is not 0; none of them touches ``.grad``.

    Parameters
    ----------
    model : Module
        Parameters that need no gradient are left out.
    logits : Tensor ``[I, T]``
        Its output, with its graph, which is kept.
    pulls : sequence of ``K`` Tensor ``[I, T]``
        Gradients with respect to ``logits``.

    Returns
    -------
    dense, table : Tensor ``[K, K]`` float64
        Over dense weights and over rows of embedding tables.

    Examples
    --------
    >>> model = nn.Linear(2, 1, bias=False)
    >>> logits = model(torch.tensor([[3.0, 4.0], [1.0, 0.0]]))
    >>> first, second = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [2.0]])
    >>> gram_matrices(model, logits, [first, second, first])[0]
    tensor([[25.,  6., 25.],
            [ 6.,  4.,  6.],
            [25.,  6., 25.]], dtype=torch.float64)
    """
    tables = {id(p) for p in table_parameters(model)}
    parameters = [p for p in model.parameters() if p.requires_grad]
    rows: list[tuple[Tensor | None, ...]] = []
    row_of: list[int | None] = []
    for k, pull in enumerate(pulls):
        same = next((row_of[j] for j in range(k) if torch.equal(pulls[j], pull)), None)
        if same is None and bool(pull.any()):
            same = len(rows)
            rows.append(_gradients(logits, parameters, pull))
        row_of.append(same)
    device = logits.device
    dense = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=device)
    table = dense.clone()
    for p, parameter in enumerate(parameters):
        grads = [row[p] for row in rows]
        target = table if id(parameter) in tables else dense
        target += _inner_products(grads, like=target)
    index = [len(rows) if row is None else row for row in row_of]
    return _spread(dense, index), _spread(table, index)


def _gradients(logits: Tensor, parameters: Sequence[nn.Parameter], pull: Tensor) -> Any:
    return torch.autograd.grad(
        logits, parameters, grad_outputs=pull, retain_graph=True, allow_unused=True
    )


def _inner_products(grads: Sequence[Tensor | None], like: Tensor) -> Tensor:
    """Return the inner products of the gradients of one parameter, absent ones as 0."""
    here = [k for k, grad in enumerate(grads) if grad is not None]
    found = [grad for grad in grads if grad is not None]
    products = torch.zeros_like(like)
    if not found:
        return products
    if all(grad.is_sparse for grad in found):
        flat = _on_common_rows(found)
    else:
        flat = torch.stack([(g.to_dense() if g.is_sparse else g).reshape(-1) for g in found])
    flat = flat.double()
    index = torch.tensor(here, device=like.device)
    products[index.unsqueeze(1), index] = flat @ flat.T
    return products


def _on_common_rows(grads: Sequence[Tensor]) -> Tensor:
    """Return sparse gradients side by side, on the rows that any of them touches."""
    summed = [sum_rows(grad) for grad in grads]
    touched = torch.unique(torch.cat([rows for rows, _ in summed]))
    width = grads[0].shape[1]
    flat = summed[0][1].new_zeros(len(grads), touched.numel(), width)
    for k, (rows, values) in enumerate(summed):
        flat[k, torch.searchsorted(touched, rows)] = values
    return flat.flatten(1)


def _spread(products: Tensor, index: list[int]) -> Tensor:
    """Return the products of all pulls from those of the distinct ones; the last index is 0."""
    size = products.shape[0]
    padded = products.new_zeros(size + 1, size + 1)
    padded[:size, :size] = products
    at = torch.tensor(index, device=products.device)
    return padded[at.unsqueeze(1), at]
