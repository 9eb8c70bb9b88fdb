"""Twenty updates on requests and on impressions end at the same weights, for every optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prerank.jagged import Jagged
from prerank.nn import FusedTables, HSTUStack
from prerank.training.optim import Adagrad, LazyAdam, RowWiseAdagrad

Optimisers = tuple[Callable[..., Any], Callable[..., Any]]

OPTIMISERS: dict[str, Optimisers] = {
    "sgd": (
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: RowWiseAdagrad(p, lr=0.1),
    ),
    "adam": (lambda p: torch.optim.Adam(p, lr=0.01), lambda p: LazyAdam(p, lr=0.01)),
    "adamw": (lambda p: torch.optim.AdamW(p, lr=0.01), lambda p: RowWiseAdagrad(p, lr=0.1)),
    "adagrad": (lambda p: torch.optim.Adagrad(p, lr=0.05), lambda p: Adagrad(p, lr=0.1)),
}
"""Of the dense weights and of the table."""


class Net(nn.Module):
    """Events and candidates from one table, the stack, a linear head."""

    def __init__(self, stack: HSTUStack) -> None:
        super().__init__()
        self.tables = FusedTables.Config(dim=6, init_std=1.0).build({"item": 30}).double()
        self.stack = stack
        self.head = nn.Linear(6, 1, dtype=torch.float64)

    def look_up(self, ids: Tensor) -> Tensor:
        looked_up: Tensor = self.tables(ids.unsqueeze(1), torch.tensor([0])).squeeze(1)
        return looked_up

    def loss(self, ids: Jagged, items: Tensor, request_of: Tensor, target: Tensor, how: str) -> Any:
        history = ids.with_values(self.look_up(ids.values))
        read = getattr(self.stack, how)(history, self.look_up(items), request_of)
        return F.binary_cross_entropy_with_logits(self.head(read).squeeze(1), target)


def trained(net: Net, optimisers: Optimisers, how: str, fewest: int) -> Tensor:
    """Train on 20 batches and return all weights; ``tiled`` gets one row per impression."""
    dense = [p for p in net.parameters() if p is not net.tables.weight]
    steps = optimisers[0](dense), optimisers[1]([net.tables.weight])
    g = torch.Generator().manual_seed(7)
    for _ in range(20):
        lengths, counts = (torch.randint(0, n, (5,), generator=g) for n in (9, 6))
        counts = counts.clamp(min=fewest)
        ids = torch.randint(2, 30, (int(lengths.sum()),), generator=g)
        items = torch.randint(2, 30, (int(counts.sum()),), generator=g)
        target = torch.randint(0, 2, items.shape, generator=g).double()
        history = Jagged.from_lengths(ids, lengths)
        request_of = torch.arange(5).repeat_interleave(counts)
        if how == "tiled":
            history, request_of = history.select(request_of), torch.arange(items.numel())
        for step in steps:
            step.zero_grad()
        net.loss(history, items, request_of, target, how).backward()
        for step in steps:
            step.step()
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def results(stacks: Any, name: str, fewest: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weights at the start and after training in each form."""

    def net() -> Net:
        torch.manual_seed(0)
        return Net(stacks())

    start = torch.cat([p.detach().flatten() for p in net().parameters()])
    forms = ("forward", "masked", "tiled")
    return start, {how: trained(net(), OPTIMISERS[name], how, fewest) for how in forms}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_weights_stay_equal(stacks: Any, name: str) -> None:
    start, weights = results(stacks, name, fewest=1 if name == "adam" else 0)
    assert float((weights["tiled"] - start).abs().max()) > 0.05
    for how in ("forward", "masked"):
        assert float((weights[how] - weights["tiled"]).abs().max()) < 1e-9, how


def test_lazy_adam_tells_requests_without_candidates(stacks: Any) -> None:
    """Their gradient is zero, but lazy Adam's momentum goes on for every row that was read.

    Impressions do not know such requests; the other optimisers leave rows of zero gradient alone.
    """
    _, weights = results(stacks, "adam", fewest=0)
    assert float((weights["forward"] - weights["masked"]).abs().max()) < 1e-9
    assert float((weights["forward"] - weights["tiled"]).abs().max()) > 1e-3
