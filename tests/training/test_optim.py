from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prerank.training.config import FitConfig
from prerank.training.optim import (
    RowWiseAdagrad,
    build_optimisers,
    clip_gradients,
    sum_rows,
    table_parameters,
)

ROWS, DIM = 7, 3


def _batches(num: int = 6) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randint(0, ROWS - 1, (9,), generator=generator),
            torch.randn(9, DIM, dtype=torch.float64, generator=generator),
        )
        for _ in range(num)
    ]


def _train(batches: list[tuple[torch.Tensor, torch.Tensor]], *, sparse: bool) -> torch.Tensor:
    table = nn.Parameter(torch.ones(ROWS, DIM, dtype=torch.float64))
    optimiser = RowWiseAdagrad([table], lr=0.1, eps=1e-8)
    for index, slope in batches:
        table.grad = None
        (F.embedding(index, table, sparse=sparse) * slope).sum().backward()
        assert table.grad is not None
        assert table.grad.is_sparse == sparse
        optimiser.step()
    return table.detach()


def _textbook(batches: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    weight = [[1.0] * DIM for _ in range(ROWS)]
    total = [0.0] * ROWS
    for index, slope in batches:
        grad: dict[int, list[float]] = {}
        for row, values in zip(index.tolist(), slope.tolist(), strict=True):
            old = grad.get(row, [0.0] * DIM)
            grad[row] = [a + b for a, b in zip(old, values, strict=True)]
        for row, values in grad.items():
            total[row] += sum(v * v for v in values) / DIM
            for d, v in enumerate(values):
                weight[row][d] -= 0.1 * v / (total[row] ** 0.5 + 1e-8)
    return torch.tensor(weight, dtype=torch.float64)


@pytest.mark.parametrize("sparse", [True, False])
def test_row_wise_adagrad_is_the_textbook_loop(sparse: bool) -> None:
    batches = _batches()
    torch.testing.assert_close(
        _train(batches, sparse=sparse), _textbook(batches), rtol=1e-13, atol=1e-14
    )


def test_one_update_per_occurrence_is_something_else() -> None:
    """Negative control: the batches do hold repeated rows, and summing them matters."""
    batches = _batches()
    split = [(index[i : i + 1], slope[i : i + 1]) for index, slope in batches for i in range(9)]
    assert not torch.allclose(_textbook(split), _textbook(batches), atol=1e-3)


def test_rows_without_a_gradient_are_untouched() -> None:
    table = nn.Parameter(torch.randn(ROWS, DIM))
    before = table.detach().clone()
    optimiser = RowWiseAdagrad([table], lr=0.1)
    F.embedding(torch.tensor([2, 4, 2]), table, sparse=True).sum().backward()
    optimiser.step()
    changed = (table.detach() != before).any(1)
    assert changed.nonzero().flatten().tolist() == [2, 4]
    assert optimiser.state[table]["sum"].nonzero().flatten().tolist() == [2, 4]


def test_one_dimensional_parameter_is_plain_adagrad() -> None:
    ours, theirs = (nn.Parameter(torch.ones(5, dtype=torch.float64)) for _ in range(2))
    optimisers = RowWiseAdagrad([ours], lr=0.1, eps=1e-10), torch.optim.Adagrad([theirs], lr=0.1)
    for step in range(4):
        for parameter, optimiser in zip((ours, theirs), optimisers, strict=True):
            parameter.grad = torch.arange(5, dtype=torch.float64) - step
            optimiser.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("bad", [{"lr": 0.0}, {"lr": -1.0}, {"eps": 0.0}, {"lr": float("nan")}])
def test_rates_must_be_positive(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        RowWiseAdagrad([nn.Parameter(torch.zeros(2, 2))], **bad)


@given(st.lists(st.integers(0, 5), max_size=40), st.integers(0, 100))
def test_sum_rows_is_coalesce(index: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(len(index), 2, dtype=torch.float64, generator=generator)
    grad = torch.sparse_coo_tensor(
        torch.tensor([index], dtype=torch.int64), values, (6, 2), check_invariants=False
    )
    rows, summed = sum_rows(grad)
    expected = grad.coalesce()
    assert rows.tolist() == expected.indices()[0].tolist()
    torch.testing.assert_close(summed, expected.values())


def _with_gradients(*, sparse: bool) -> list[nn.Parameter]:
    torch.manual_seed(3)
    table, dense = nn.Parameter(torch.randn(ROWS, DIM)), nn.Parameter(torch.randn(4))
    unused = nn.Parameter(torch.randn(2))
    looked_up = F.embedding(torch.tensor([1, 5, 1]), table, sparse=sparse)
    (looked_up.pow(2).sum() + dense.pow(3).sum()).backward()
    return [table, dense, unused]


@pytest.mark.parametrize("max_norm", [0.1, 1e6])
def test_clipping_counts_sparse_gradients_like_dense_ones(max_norm: float) -> None:
    ours, theirs = _with_gradients(sparse=True), _with_gradients(sparse=False)
    norm = clip_gradients(ours, max_norm)
    expected = nn.utils.clip_grad_norm_(theirs, max_norm)
    torch.testing.assert_close(norm, expected)
    for a, b in zip(ours[:2], theirs[:2], strict=True):
        assert a.grad is not None
        assert b.grad is not None
        dense = a.grad.to_dense() if a.grad.is_sparse else a.grad
        torch.testing.assert_close(dense, b.grad, rtol=1e-4, atol=1e-6)
    assert ours[2].grad is None


def test_clipping_nothing() -> None:
    assert clip_gradients([nn.Parameter(torch.ones(1))], 1.0) == 0


def test_every_trainable_parameter_has_one_optimiser(new_model: Callable[..., Any]) -> None:
    model = new_model()
    frozen = next(model.user_tower.parameters())
    frozen.requires_grad_(False)
    optimisers = build_optimisers(model, FitConfig(lr=0.5, table_lr=0.25, weight_decay=0.1))
    owned = [p for o in optimisers.values() for group in o.param_groups for p in group["params"]]
    assert sorted(map(id, owned)) == sorted(id(p) for p in model.parameters() if p is not frozen)
    (table,) = table_parameters(model)
    assert isinstance(optimisers["table"], RowWiseAdagrad)
    assert optimisers["table"].param_groups[0]["params"] == [table]
    assert optimisers["table"].param_groups[0]["lr"] == 0.25
    assert isinstance(optimisers["dense"], torch.optim.AdamW)
    assert optimisers["dense"].param_groups[0]["weight_decay"] == 0.1


def test_adam_is_torchs_adam(new_model: Callable[..., Any]) -> None:
    dense = build_optimisers(new_model(), FitConfig(optimizer="adam"))["dense"]
    assert type(dense) is torch.optim.Adam
