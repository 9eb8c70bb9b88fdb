"""Projection against the algorithm on whole vectors, on dense and sparse gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from prerank.training.combine import PCGrad, Sum
from prerank.training.combine.pcgrad import projected_weights

NAMES = ("exposed", "rank", "prerank", "random")


class Toy(nn.Module):
    """A table and two dense weights; ``lonely`` is reached by the last source only."""

    def __init__(self, *, sparse: bool) -> None:
        super().__init__()
        self.sparse = sparse
        generator = torch.Generator().manual_seed(0)

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))

        self.table, self.layer, self.lonely = weight(9, 3), weight(3, 4), weight(2)
        self.unused = weight(2)

    def parts(self, ids: list[list[int]] | None = None) -> dict[str, Tensor]:
        ids = ids or [[1, 3, 3, 7]] * len(NAMES)
        parts = {}
        for k, name in enumerate(NAMES):
            looked_up = F.embedding(torch.tensor(ids[k]), self.table, sparse=self.sparse)
            pull = torch.ones(4, dtype=torch.float64).index_fill(0, torch.tensor(k), -3.0)
            parts[f"nce/{name}"] = (looked_up @ self.layer).sin().sum(0) @ pull
            parts[f"bce/{name}"] = (-1) ** k * (looked_up**2).mean() * (k + 1)
        parts["nce/random"] = parts["nce/random"] + self.lonely.sum()
        return parts


def by_definition(vectors: list[Tensor], orders: list[list[int]]) -> Tensor:
    """Project whole vectors one after another, as published."""
    total = torch.zeros_like(vectors[0])
    for g, order in enumerate(orders):
        mine = vectors[g].clone()
        for h in order:
            dot = mine @ vectors[h]
            if dot < 0:
                mine -= dot / (vectors[h] @ vectors[h]) * vectors[h]
        total += mine
    return total


@given(st.integers(0, 10**6), st.integers(1, 5))
def test_weights_equal_projecting_whole_vectors(seed: int, num: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(num, 3, generator=generator, dtype=torch.float64)
    orders = [
        [h for h in torch.randperm(num, generator=generator).tolist() if h != g] for g in range(num)
    ]
    weights, conflicts = projected_weights(vectors @ vectors.T, orders)
    found = torch.tensor(weights, dtype=torch.float64) @ vectors
    torch.testing.assert_close(found, by_definition(list(vectors), orders), rtol=1e-9, atol=1e-9)
    assert conflicts == int(((vectors @ vectors.T).triu(1) < 0).sum())


def flat(grads: Any, like: list[nn.Parameter]) -> Tensor:
    dense = [
        torch.zeros_like(p) if g is None else g.to_dense() for g, p in zip(grads, like, strict=True)
    ]
    return torch.cat([g.flatten() for g in dense])


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("ids", [None, [[1, 3], [3, 2, 2], [5], [1, 5, 8]]])
def test_gradients_of_a_model(sparse: bool, ids: Any) -> None:
    """Of tables too, whether or not sources name the same rows."""
    toy = Toy(sparse=sparse)
    parameters = list(toy.parameters())
    rule = PCGrad()
    orders = [rule._order(g, 4) for g in range(4)]
    parts = toy.parts(ids)
    total = rule(parts, parameters)
    assert not total.requires_grad
    torch.testing.assert_close(total, torch.stack(list(parts.values())).sum().detach())
    assert toy.unused.grad is None
    assert toy.table.grad.is_sparse == sparse
    parts = toy.parts(ids)
    vectors = []
    for name in NAMES:
        both = parts[f"nce/{name}"] + parts[f"bce/{name}"]
        grads = torch.autograd.grad(both, parameters, retain_graph=True, allow_unused=True)
        vectors.append(flat(grads, parameters))
    expected = by_definition(vectors, orders)
    assert rule.report()["conflicts"] > 0, "nothing was projected"
    assert not torch.allclose(expected, sum(vectors)), "nothing was projected"
    torch.testing.assert_close(flat([p.grad for p in parameters], parameters), expected)


def test_tables_may_be_left_out() -> None:
    """Then the table has the plain sum, and the dense weights their own projection."""
    toy, plain = Toy(sparse=True), Toy(sparse=True)
    PCGrad.Config(tables="sum").build()(toy.parts(), list(toy.parameters()))
    Sum()(plain.parts(), list(plain.parameters()))
    torch.testing.assert_close(toy.table.grad.to_dense(), plain.table.grad.to_dense())
    assert not torch.allclose(toy.layer.grad, plain.layer.grad)
    whole = Toy(sparse=True)
    PCGrad()(whole.parts(), list(whole.parameters()))
    assert not torch.allclose(whole.table.grad.to_dense(), plain.table.grad.to_dense())


def test_without_conflict_it_is_the_sum() -> None:
    w, v = (nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(2))
    both = [{"nce/a": x[0] * 3, "nce/b": x.sum(), "nce/c": torch.tensor(0.0)} for x in (w, v)]
    PCGrad()(both[0], [w])
    Sum()(both[1], [v])
    torch.testing.assert_close(w.grad, v.grad)


def test_order_is_a_function_of_seed_and_step() -> None:
    def orders(rule: PCGrad, num_steps: int) -> list[Any]:
        w, found = nn.Parameter(torch.ones(1)), []
        for _ in range(num_steps):
            found.append([rule._order(g, 4) for g in range(4)])
            rule({"nce/a": w.sum()}, [w])
        return found

    whole = orders(PCGrad(), 8)
    assert len({str(order) for order in whole}) > 4
    assert all(
        sorted([g, *order]) == [0, 1, 2, 3] for step in whole for g, order in enumerate(step)
    )
    assert orders(PCGrad.Config(seed=1).build(), 8) != whole
    first, second = PCGrad(), PCGrad()
    begun = orders(first, 5)
    second.load_state(first.state_tensors())
    assert begun + orders(second, 3) == whole


def test_nothing_to_learn() -> None:
    w = nn.Parameter(torch.ones(1))
    assert PCGrad()({"nce/a": torch.tensor(0.0)}, [w]) == 0
    assert w.grad is None


def test_table_gradient_is_what_optimisers_expect() -> None:
    """Coalesced rows of the parameter's dtype, each once, ascending."""
    toy = Toy(sparse=True)
    PCGrad()(toy.parts([[1, 3], [3, 2, 2], [5], [1, 5, 8]]), list(toy.parameters()))
    grad = toy.table.grad
    assert grad.is_coalesced()
    assert grad.indices()[0].tolist() == [1, 2, 3, 5, 8]
    assert grad.dtype == toy.table.dtype


def test_tables_stored_in_bfloat16() -> None:
    """Rows are summed and mixed in float32, and stored as the table is."""
    table = nn.Parameter(torch.ones(4, 2, dtype=torch.bfloat16))
    looked_up = F.embedding(torch.tensor([1, 1, 3]), table, sparse=True).float()
    PCGrad()({"nce/a": looked_up[:, 0].sum(), "nce/b": looked_up.sum() * 2}, [table])
    grad = table.grad
    assert grad.dtype == torch.bfloat16
    assert grad.to_dense().tolist() == [[0.0, 0.0], [6.0, 4.0], [0.0, 0.0], [3.0, 2.0]]
