"""Optimisers of tables against their textbook forms, one row and one number at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prerank.training import FitConfig, fit
from prerank.training.optim import Adagrad, LazyAdam, RowOptimiser, RowWiseAdagrad
from prerank.training.optim.gradients import sum_rows
from prerank.training.optim.rows import put_rows, round_stochastically

ROWS, DIM, LR, EPS = 7, 3, 0.1, 1e-8
KINDS: list[type[RowOptimiser]] = [RowWiseAdagrad, Adagrad, LazyAdam]
Batches = list[tuple[torch.Tensor, torch.Tensor]]


def _batches(num: int = 6) -> Batches:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randint(0, ROWS - 1, (9,), generator=generator),
            torch.randn(9, DIM, dtype=torch.float64, generator=generator),
        )
        for _ in range(num)
    ]


def _train(kind: Any, batches: Batches, *, sparse: bool = True) -> torch.Tensor:
    table = nn.Parameter(torch.ones(ROWS, DIM, dtype=torch.float64))
    optimiser = kind([table], lr=LR, eps=EPS)
    for index, slope in batches:
        table.grad = None
        (F.embedding(index, table, sparse=sparse) * slope).sum().backward()
        assert table.grad is not None
        assert table.grad.is_sparse == sparse
        optimiser.step()
    return table.detach()


def _row_wise(grads: list[list[float]], weight: list[float]) -> list[float]:
    total = 0.0
    for grad in grads:
        total += sum(g * g for g in grad) / DIM
        weight = [w - LR * g / (total**0.5 + EPS) for w, g in zip(weight, grad, strict=True)]
    return weight


def _element_wise(grads: list[list[float]], weight: list[float]) -> list[float]:
    total = [0.0] * DIM
    for grad in grads:
        for d, g in enumerate(grad):
            total[d] += g * g
            weight[d] -= LR * g / (total[d] ** 0.5 + EPS)
    return weight


def _adam(grads: list[list[float]], weight: list[float]) -> list[float]:
    m, v = [0.0] * DIM, [0.0] * DIM
    for t, grad in enumerate(grads, start=1):
        for d, g in enumerate(grad):
            m[d] = 0.9 * m[d] + 0.1 * g
            v[d] = 0.999 * v[d] + 0.001 * g * g
            corrected = m[d] / (1 - 0.9**t), v[d] / (1 - 0.999**t)
            weight[d] -= LR * corrected[0] / (corrected[1] ** 0.5 + EPS)
    return weight


TEXTBOOK: dict[Any, Callable[..., list[float]]] = {
    RowWiseAdagrad: _row_wise,
    Adagrad: _element_wise,
    LazyAdam: _adam,
}


def _textbook(kind: Any, batches: Batches) -> torch.Tensor:
    """Give every row the list of its summed gradients, and run the formula on each list."""
    histories: list[list[list[float]]] = [[] for _ in range(ROWS)]
    for index, slope in batches:
        for row in sorted(set(index.tolist())):
            histories[row].append(slope[index == row].sum(0).tolist())
    rows = [TEXTBOOK[kind](grads, [1.0] * DIM) for grads in histories]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_textbook_loop(kind: Any) -> None:
    ours = _train(kind, _batches())
    torch.testing.assert_close(ours, _textbook(kind, _batches()), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", [RowWiseAdagrad, Adagrad])
def test_dense_gradients_give_the_same(kind: Any) -> None:
    torch.testing.assert_close(
        _train(kind, _batches(), sparse=False), _train(kind, _batches()), rtol=1e-13, atol=1e-14
    )


@pytest.mark.parametrize("kind", KINDS)
def test_one_update_per_occurrence_is_something_else(kind: Any) -> None:
    """Negative control: the batches do hold repeated rows, and summing them matters."""
    batches = _batches()
    split = [(index[i : i + 1], slope[i : i + 1]) for index, slope in batches for i in range(9)]
    assert not torch.allclose(_textbook(kind, split), _textbook(kind, batches), atol=1e-3)


@pytest.mark.parametrize("sparse", [True, False])
def test_adagrad_is_torchs(sparse: bool) -> None:
    theirs = nn.Parameter(torch.ones(ROWS, DIM, dtype=torch.float64))
    optimiser = torch.optim.Adagrad([theirs], lr=LR, eps=EPS)
    for index, slope in _batches():
        theirs.grad = None
        (F.embedding(index, theirs) * slope).sum().backward()
        optimiser.step()
    torch.testing.assert_close(_train(Adagrad, _batches(), sparse=sparse), theirs.detach())


def test_lazy_adam_on_batches_that_touch_all_rows_is_torchs_adam() -> None:
    every = torch.arange(ROWS)
    batches = [
        (torch.cat([index, every]), torch.cat([slope, slope[:ROWS] + 1]))
        for index, slope in _batches()
    ]
    theirs = nn.Parameter(torch.ones(ROWS, DIM, dtype=torch.float64))
    optimiser = torch.optim.Adam([theirs], lr=LR, eps=EPS)
    for index, slope in batches:
        theirs.grad = None
        (F.embedding(index, theirs) * slope).sum().backward()
        optimiser.step()
    torch.testing.assert_close(_train(LazyAdam, batches), theirs.detach())


def test_counting_all_updates_is_something_else() -> None:
    """Negative control: rows are touched at different times, so whose count it is matters."""
    theirs = nn.Parameter(torch.ones(ROWS, DIM, dtype=torch.float64))
    optimiser = torch.optim.SparseAdam([theirs], lr=LR, eps=EPS)
    for index, slope in _batches():
        theirs.grad = None
        (F.embedding(index, theirs, sparse=True) * slope).sum().backward()
        optimiser.step()
    assert not torch.allclose(_train(LazyAdam, _batches()), theirs.detach(), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_without_a_gradient_are_untouched(kind: Any, dtype: torch.dtype) -> None:
    table = nn.Parameter(torch.randn(ROWS, DIM, dtype=dtype))
    before = table.detach().clone()
    optimiser = kind([table], lr=0.1)
    for _ in range(2):
        table.grad = None
        F.embedding(torch.tensor([2, 4, 2]), table, sparse=True).sum().backward()
        optimiser.step()
    assert (table.detach() != before).any(1).nonzero().flatten().tolist() == [2, 4]
    for state in optimiser.state[table].values():
        if state.dim():
            assert (
                state.flatten(1).any(1).nonzero().flatten().tolist() == [2, 4]
                if (state.dim() > 1)
                else state.nonzero().flatten().tolist() == [2, 4]
            )
            assert state.dtype in (torch.float32, torch.int32)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_gradient_is_no_update(kind: Any) -> None:
    table = nn.Parameter(torch.ones(ROWS, DIM))
    F.embedding(torch.zeros(0, dtype=torch.int64), table, sparse=True).sum().backward()
    kind([table]).step()
    assert bool((table == 1).all())


def test_one_dimensional_parameter_is_plain_adagrad() -> None:
    ours, theirs = (nn.Parameter(torch.ones(5, dtype=torch.float64)) for _ in range(2))
    optimisers = RowWiseAdagrad([ours], lr=0.1, eps=1e-10), torch.optim.Adagrad([theirs], lr=0.1)
    for step in range(4):
        for parameter, optimiser in zip((ours, theirs), optimisers, strict=True):
            parameter.grad = torch.arange(5, dtype=torch.float64) - step
            optimiser.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [{"lr": 0.0}, {"lr": -1.0}, {"eps": 0.0}, {"lr": float("nan")}])
def test_rates_must_be_positive(kind: Any, bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__}: .* must be positive"):
        kind([nn.Parameter(torch.zeros(2, 2))], **bad)


def test_betas_must_be_below_one() -> None:
    with pytest.raises(ValueError, match="betas"):
        LazyAdam([nn.Parameter(torch.zeros(2, 2))], betas=(0.9, 1.0))


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_tables_follow_float32_ones(kind: Any) -> None:
    """Small steps add up in the mean; rounded to the nearest they would all be lost."""
    size, steps, lr = 4000, 40, 2e-4
    tables = [nn.Parameter(torch.ones(size, 1, dtype=d)) for d in (torch.float32, torch.bfloat16)]
    optimisers = [kind([table], lr=lr) for table in tables]
    for _ in range(steps):
        for table, optimiser in zip(tables, optimisers, strict=True):
            table.grad = None
            F.embedding(torch.arange(size), table, sparse=True).float().sum().backward()
            optimiser.step()
    wide, short = (table.detach().float() for table in tables)
    moved = float(1 - wide.mean())
    assert moved < 2.0**-8 * steps / 2, "each step is under half the distance of two numbers"
    assert abs(float(1 - short.mean()) - moved) < 0.1 * moved
    nearest = torch.ones((), dtype=torch.bfloat16)
    assert float((nearest.float() - lr).bfloat16()) == 1.0, "negative control"


def test_stochastic_rounding_is_between_its_neighbours_and_repeatable() -> None:
    values = torch.randn(1000, 3)
    rounded = round_stochastically(values, seed=3)
    assert torch.equal(rounded, round_stochastically(values, seed=3))
    assert not torch.equal(rounded, round_stochastically(values, seed=4))
    assert bool(((rounded.float() - values).abs() <= values.abs() * 2.0**-7).all())
    exact = values.bfloat16().float()
    assert torch.equal(round_stochastically(exact, seed=1).float(), exact)


@pytest.mark.parametrize("storage", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("name", "lr"), [("rowwise_adagrad", 0.3), ("adagrad", 0.3), ("lazy_adam", 0.05)]
)
def test_every_choice_learns(
    new_model: Callable[..., Any], planted: Any, bce: Any, name: Any, lr: float, storage: str
) -> None:
    model = new_model(storage=storage)
    report = fit(
        model,
        planted.log["train"],
        bce,
        valid=planted.log["valid"],
        config=FitConfig(
            epochs=2, batch_size=32, clip_norm=5.0, lr=0.03, table_optimizer=name, table_lr=lr
        ),
        progress=False,
    )
    assert model.encode.tables.weight.dtype is (
        torch.bfloat16 if storage == "bf16" else torch.float32
    )
    assert report.best is not None
    assert report.best.value > 0.6, "gauc; 0.5 is chance"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("is_contiguous", [True, False])
def test_rows_are_put_where_they_belong(dtype: torch.dtype, is_contiguous: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(50, 2 * DIM, generator=generator).to(dtype)
    table = wide[:, :DIM].contiguous() if is_contiguous else wide[:, :DIM]
    rows = torch.randperm(50, generator=generator)[:20]
    values = torch.randn(20, 2 * DIM, generator=generator).to(dtype)[:, :DIM]
    expected = table.clone().index_copy(0, rows, values)
    version = table._version
    put_rows(table, rows, values)
    assert torch.equal(table, expected)
    # What autograd has saved of the table must be known to be stale.
    assert table._version > version


def test_summed_rows_are_those_of_a_coalesced_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(0, 900, (1, 5000), generator=generator)
    values = torch.randn(5000, DIM, dtype=torch.float64, generator=generator)
    grad = torch.sparse_coo_tensor(index, values, (1000, DIM), check_invariants=False)
    rows, summed = sum_rows(grad)
    coalesced = grad.coalesce()
    assert torch.equal(rows, coalesced.indices()[0])
    torch.testing.assert_close(summed, coalesced.values(), rtol=1e-13, atol=1e-13)
