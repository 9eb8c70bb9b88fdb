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


def test_clipping_twice_sums_once() -> None:
    """A coalesced gradient is not summed again, and its norm is then what clipping left."""
    parameters = _with_gradients(sparse=True)
    clip_gradients(parameters, 0.5)
    torch.testing.assert_close(clip_gradients(parameters, 1e6), torch.tensor(0.5))


def test_gradients_in_bfloat16_are_summed_in_float32() -> None:
    values = torch.full((300, 1), 1.0, dtype=torch.bfloat16)
    index = torch.zeros(1, 300, dtype=torch.int64)
    grad = torch.sparse_coo_tensor(index, values, (2, 1), check_invariants=False)
    _, summed = sum_rows(grad)
    assert summed.dtype is torch.float32
    assert summed.item() == 300
    total = torch.zeros((), dtype=torch.bfloat16)
    for value in values.flatten():
        total += value
    assert total.item() == 256, "negative control: in bfloat16 the sum stops growing"


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
