from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from prerank.jagged import (
    Jagged,
    lengths_to_offsets,
    ranges,
    segment_ids,
    segment_logsumexp,
    segment_max,
    segment_mean,
    segment_softmax,
    segment_sum,
)

LENGTHS = st.lists(st.integers(0, 5), max_size=6)
CASES = [[], [0], [0, 0], [3], [2, 0, 3], [0, 1, 4, 0]]
TAILS = [(), (2,), (2, 3)]


def long(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def numbers(num: int, tail: tuple[int, ...] = (), seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, *tail, dtype=torch.float64, generator=generator)


def jagged(lengths: list[int], tail: tuple[int, ...] = (), seed: int = 0) -> Jagged:
    return Jagged.from_lengths(numbers(sum(lengths), tail, seed), long(lengths))


def rows(x: Jagged) -> list[Tensor]:
    """Each row by a plain loop."""
    bounds = x.offsets.tolist()
    return [x.values[a:b] for a, b in itertools.pairwise(bounds)]


def same(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def stacked(parts: list[Tensor], tail: tuple[int, ...]) -> Tensor:
    return torch.stack(parts) if parts else torch.zeros(0, *tail, dtype=torch.float64)


SEGMENT: dict[str, tuple[Callable[..., Tensor], Callable[[Tensor], Tensor]]] = {
    "sum": (segment_sum, lambda row: row.sum(dim=0)),
    "mean": (
        segment_mean,
        lambda row: row.mean(dim=0) if len(row) else row.new_zeros(row.shape[1:]),
    ),
    "max": (
        segment_max,
        lambda row: row.amax(dim=0) if len(row) else row.new_full(row.shape[1:], -torch.inf),
    ),
    "logsumexp": (segment_logsumexp, lambda row: torch.logsumexp(row, dim=0)),
}


@given(LENGTHS)
def test_offsets_ids_and_ranges_are_those_of_a_loop(lengths: list[int]) -> None:
    offsets = lengths_to_offsets(long(lengths))
    assert offsets.dtype == torch.int64
    assert offsets.tolist() == [sum(lengths[:r]) for r in range(len(lengths) + 1)]
    ids = [r for r, n in enumerate(lengths) for _ in range(n)]
    assert segment_ids(offsets, sum(lengths)).tolist() == ids
    starts = [7 * r for r in range(len(lengths))]
    expected = [s + i for s, n in zip(starts, lengths, strict=True) for i in range(n)]
    assert ranges(long(starts), long(lengths)).tolist() == expected


def test_lengths_of_another_integer_type() -> None:
    assert lengths_to_offsets(torch.tensor([2, 3], dtype=torch.int32)).tolist() == [0, 2, 5]


@pytest.mark.parametrize("name", sorted(SEGMENT))
@given(lengths=LENGTHS, tail=st.sampled_from(TAILS), seed=st.integers(0, 99))
def test_segments_equal_a_loop(
    name: str, lengths: list[int], tail: tuple[int, ...], seed: int
) -> None:
    operation, row_operation = SEGMENT[name]
    x = jagged(lengths, tail, seed)
    got = operation(x.values, x.row_of, x.num_rows)
    same(got, stacked([row_operation(row) for row in rows(x)], tail))
    # The order of values must not matter: segments need not be contiguous.
    shuffle = torch.randperm(sum(lengths), generator=torch.Generator().manual_seed(seed))
    same(operation(x.values[shuffle], x.row_of[shuffle], x.num_rows), got)


@given(lengths=LENGTHS, tail=st.sampled_from(TAILS), seed=st.integers(0, 99))
def test_softmax_equals_a_loop(lengths: list[int], tail: tuple[int, ...], seed: int) -> None:
    x = jagged(lengths, tail, seed)
    got = segment_softmax(x.values, x.row_of, x.num_rows)
    same(got, torch.cat([torch.softmax(row, dim=0) for row in rows(x)] or [x.values]))


def differentiable() -> dict[str, Callable[[Tensor, Tensor], Any]]:
    def on_segments(operation: Callable[..., Tensor]) -> Callable[[Tensor, Tensor], Any]:
        def function(values: Tensor, lengths: Tensor) -> Tensor:
            x = Jagged.from_lengths(values, lengths)
            out = operation(values, x.row_of, x.num_rows)
            # Empty rows of max and logsumexp are -inf, a constant no numeric gradient can see.
            return torch.where(torch.isfinite(out), out, torch.zeros_like(out))

        return function

    def on_rows(operation: Callable[[Jagged], Tensor]) -> Callable[[Tensor, Tensor], Any]:
        return lambda values, lengths: operation(Jagged.from_lengths(values, lengths))

    def repeats(x: Jagged) -> Tensor:
        index = torch.arange(x.num_rows).flip(0).repeat(2)
        return x.select(index).values

    functions = {name: on_segments(pair[0]) for name, pair in SEGMENT.items()}
    functions["softmax"] = on_segments(segment_softmax)
    functions["Jagged.sum"] = on_rows(Jagged.sum)
    functions["Jagged.mean"] = on_rows(Jagged.mean)
    functions["to_padded last"] = on_rows(lambda x: x.to_padded(2, 0.5))
    functions["to_padded first"] = on_rows(lambda x: x.to_padded(2, 0.5, keep="first"))
    functions["select"] = on_rows(repeats)
    functions["cat"] = on_rows(lambda x: Jagged.cat([x, x.with_values(x.values**2)]).values)
    functions["round trip"] = on_rows(
        lambda x: Jagged.from_padded(x.to_padded(6), x.lengths).values
    )
    return functions


@pytest.mark.parametrize("name", sorted(differentiable()))
@pytest.mark.parametrize("lengths", [c for c in CASES if sum(c)], ids=str)
def test_gradients_equal_finite_differences(name: str, lengths: list[int]) -> None:
    for tail in TAILS[:2]:
        values = numbers(sum(lengths), tail).requires_grad_()
        assert gradcheck(differentiable()[name], (values, long(lengths)))


@pytest.mark.parametrize("name", sorted(differentiable()))
@pytest.mark.parametrize("lengths", [c for c in CASES if not sum(c)], ids=str)
def test_gradients_of_nothing_are_empty(name: str, lengths: list[int]) -> None:
    values = numbers(0, (2,)).requires_grad_()
    differentiable()[name](values, long(lengths)).sum().backward()
    assert values.grad is not None
    assert values.grad.shape == (0, 2)


def test_gradients_reach_no_other_row() -> None:
    x = jagged([2, 3, 1])
    values = x.values.requires_grad_()
    for name in SEGMENT:
        out = SEGMENT[name][0](values, x.row_of, 3)
        (gradient,) = torch.autograd.grad(out[1], values)
        assert (gradient[:2] == 0).all()
        assert (gradient[5:] == 0).all()
        assert gradient[2:5].sum() == pytest.approx(3.0 if name == "sum" else 1.0)


def test_gradient_of_max_is_shared_among_ties() -> None:
    values = torch.tensor([2.0, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    segment_max(values, long([0, 0, 0]), 1).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.5, 0.0, 0.5]


def test_logsumexp_and_softmax_survive_extreme_logits() -> None:
    values = torch.tensor([1e4, 1e4 - 1, -1e4, -torch.inf, -torch.inf], dtype=torch.float64)
    values.requires_grad_()
    segment = long([0, 0, 1, 1, 2])
    got = segment_logsumexp(values, segment, 4)
    expected = [torch.logsumexp(values[segment == r], dim=0) for r in range(4)]
    same(got, torch.stack(expected))
    (gradient,) = torch.autograd.grad(got[:2].sum(), values)
    share = torch.softmax(values[:2].detach(), dim=0)
    same(gradient, torch.cat([share, gradient.new_tensor([1.0, 0.0, 0.0])]))
    soft = segment_softmax(values[:4], segment[:4], 2).detach()
    same(soft, torch.cat([share, soft.new_tensor([1.0, 0.0])]))


@given(lengths=LENGTHS, width=st.integers(0, 6), tail=st.sampled_from(TAILS))
def test_padding_equals_a_loop(lengths: list[int], width: int, tail: tuple[int, ...]) -> None:
    x = jagged(lengths, tail)
    for keep in ("last", "first"):
        expected = torch.full((len(lengths), width, *tail), -7.0, dtype=torch.float64)
        for r, row in enumerate(rows(x)):
            kept = row[max(len(row) - width, 0) :] if keep == "last" else row[:width]
            expected[r, : len(kept)] = kept
        same(x.to_padded(width, -7.0, keep=keep), expected)


@given(lengths=LENGTHS, tail=st.sampled_from(TAILS), extra=st.integers(0, 3))
def test_padding_round_trip(lengths: list[int], tail: tuple[int, ...], extra: int) -> None:
    x = jagged(lengths, tail)
    padded = x.to_padded(max(lengths, default=0) + extra, torch.nan)
    back = Jagged.from_padded(padded, x.lengths)
    same(back.values, x.values)
    assert back.offsets.tolist() == x.offsets.tolist()


@given(lengths=LENGTHS, tail=st.sampled_from(TAILS), data=st.data())
def test_select_equals_a_loop(lengths: list[int], tail: tuple[int, ...], data: Any) -> None:
    x = jagged(lengths, tail)
    pick = st.integers(0, len(lengths) - 1) if lengths else st.nothing()
    index = data.draw(st.lists(pick, max_size=8) if lengths else st.just([]))
    got = x.select(long(index))
    assert got.num_rows == len(index)
    same(got.values, torch.cat([rows(x)[r] for r in index] or [x.values[:0]]))
    assert got.lengths.tolist() == [lengths[r] for r in index]


@given(st.lists(LENGTHS, min_size=1, max_size=4))
def test_cat_keeps_every_row(parts: list[list[int]]) -> None:
    pieces = [jagged(lengths, (2,), seed) for seed, lengths in enumerate(parts)]
    whole = Jagged.cat(pieces)
    expected = [row for piece in pieces for row in rows(piece)]
    assert whole.num_rows == len(expected)
    for got, row in zip(rows(whole), expected, strict=True):
        same(got, row)


def test_to_converts_values_but_no_links() -> None:
    x = Jagged.from_lengths(torch.ones(3), long([1, 2])).to("cpu", torch.float64)
    assert x.values.dtype == torch.float64
    assert x.offsets.dtype == torch.int64
    ids = Jagged.from_lengths(long([5, 6, 7]), long([1, 2])).to(torch.float16)
    assert ids.values.tolist() == [5, 6, 7]
    assert ids.values.dtype == torch.int64


def test_nbytes_counts_values_and_offsets() -> None:
    assert jagged([2, 0, 3], (2,)).nbytes == 5 * 2 * 8 + 4 * 8


def test_a_jagged_tensor_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        jagged([1]).values = numbers(1)  # type: ignore[misc]
