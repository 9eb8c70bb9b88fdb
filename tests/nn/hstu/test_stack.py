"""What the stack promises of candidates, requests and stored states."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prerank.errors import InputError
from prerank.jagged import Jagged
from prerank.nn import HSTUStack, HSTUState

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def encoded(stack: HSTUStack, requests: Any, rows: torch.Tensor | None = None) -> HSTUState:
    history = Jagged.from_lengths(requests.history, requests.lengths)
    age, context = requests.age_ms, requests.context
    if rows is not None:
        age = history.with_values(age).select(rows).values
        context = None if context is None else context[rows]
        history = history.select(rows)
    return stack.encode(history, age_ms=age, context_RCD=context)


def test_swapped_candidates_swap_their_outputs(stack: HSTUStack, draw: Any) -> None:
    requests = draw(stack)
    before = requests.run(stack)
    shuffle = torch.randperm(before.shape[0], generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(requests.candidates(shuffle).run(stack), before[shuffle], **EXACT)


def test_another_candidate_changes_nothing(stack: HSTUStack, draw: Any) -> None:
    requests = draw(stack)
    before = requests.run(stack)
    other = requests.candidate.detach().clone()
    other[3] += 1.0
    after = replace(requests, candidate=other).run(stack)
    others = torch.arange(before.shape[0]) != 3
    assert torch.equal(after[others], before[others])
    assert not torch.equal(after[3], before[3])


def test_batch_mates_do_not_matter(stack: HSTUStack, draw: Any) -> None:
    """A request scores the same alone, and next to requests of any length."""
    requests = draw(stack, longest=30)
    whole = requests.run(stack)
    for r in range(requests.lengths.numel()):
        mine = requests.request_of == r
        state = encoded(stack, requests, torch.tensor([r]))
        alone = stack.cross(state, requests.candidate[mine], torch.zeros_like(mine[mine]).long())
        torch.testing.assert_close(alone, whole[mine], **EXACT)


def test_a_request_split_in_two_scores_the_same(stack: HSTUStack, draw: Any) -> None:
    """More candidates than a row may hold: repeat the request, never cut the list."""
    requests = draw(stack)
    twice = torch.arange(requests.lengths.numel()).repeat(2)
    state = encoded(stack, requests, twice)
    num = requests.request_of.numel()
    second = (torch.arange(num) % 2) * requests.lengths.numel()
    split = stack.cross(state, requests.candidate, requests.request_of + second)
    torch.testing.assert_close(split, requests.run(stack), **EXACT)


def test_states_are_rows(stack: HSTUStack, draw: Any) -> None:
    """Selected, concatenated and re-ordered states score as fresh ones do."""
    requests = draw(stack)
    with torch.no_grad():
        whole = encoded(stack, requests)
        rows = torch.arange(whole.num_rows)
        parts = [encoded(stack, requests, part) for part in rows.split(3)]
        expected = requests.run(stack)
    merged = HSTUState.cat(parts[::-1])
    where = torch.cat(list(rows.split(3))[::-1]).argsort()
    candidates = requests.candidate.detach()
    again = stack.cross(merged, candidates, where[requests.request_of])
    torch.testing.assert_close(again.detach(), expected, **EXACT)
    backwards = stack.cross(
        whole.select(rows.flip(0)), candidates, rows.flip(0)[requests.request_of]
    )
    torch.testing.assert_close(backwards.detach(), expected, **EXACT)
    assert whole.to(torch.float32).keys[0].values.dtype == torch.float32
    tokens = requests.history.shape[0] + whole.num_rows * stack.config.num_context
    kept = sum(layer.widths[2] + layer.widths[3] for layer in stack.layers) * tokens * 8
    offsets = 8 * (whole.num_rows + 1)
    ages = 0 if whole.age is None else 4 * tokens + offsets
    assert whole.nbytes == kept + ages + 2 * len(stack.layers) * offsets


@given(cut=st.integers(0, 12), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_a_prefix_has_the_states_of_the_whole(stacks: Any, draw: Any, cut: int, seed: int) -> None:
    """The history is causal: what came later does not change what was kept of an event."""
    stack = stacks(
        num_layers=3, window=4, position_buckets=5, num_context=1, context_sees="context"
    )
    requests = draw(stack, num=1, seed=seed, longest=13)
    kept = min(cut, int(requests.lengths[0]))
    short = replace(
        requests,
        history=requests.history[:kept],
        age_ms=requests.age_ms[:kept],
        lengths=torch.tensor([kept]),
    )
    part, whole = encoded(stack, short), encoded(stack, requests)
    for a, b in zip((*part.keys, *part.values), (*whole.keys, *whole.values), strict=True):
        torch.testing.assert_close(a.values, b.values[: 1 + kept], **EXACT)


def test_the_history_reaches_every_candidate(stack: HSTUStack, draw: Any) -> None:
    """And the first event does too, unless a window hides it in every layer."""
    requests = draw(stack, num=1, longest=2, seed=5)
    out = requests.run(stack)
    (grad,) = torch.autograd.grad(out.square().sum(), requests.history)
    assert bool((grad.abs().amax(1) > 1e-9).all())


def test_a_window_hides_what_is_further(stacks: Any, draw: Any) -> None:
    """One layer of window 3 reads three events; each further layer three more."""
    for num_layers in (1, 2):
        stack = stacks(window=3, num_layers=num_layers)
        requests = draw(stack, num=1, seed=1)
        requests = replace(
            requests,
            history=torch.randn(12, 6, dtype=torch.float64, requires_grad=True),
            lengths=torch.tensor([12]),
            age_ms=torch.arange(12, 0, -1),
        )
        (grad,) = torch.autograd.grad(requests.run(stack).square().sum(), requests.history)
        reached = grad.abs().amax(1) > 0
        assert reached.tolist() == [False] * (12 - 3 * num_layers) + [True] * 3 * num_layers


def test_only_differences_of_time_matter(stacks: Any, draw: Any) -> None:
    """Between events; a candidate's moment is its request's."""
    stack = stacks(time_buckets=8)
    requests = draw(stack)
    later = replace(requests, age_ms=requests.age_ms + 5_000_000)
    first, other = encoded(stack, requests), encoded(stack, later)
    torch.testing.assert_close(first.keys[1].values, other.keys[1].values, **EXACT)
    assert not torch.allclose(requests.run(stack), later.run(stack))


def test_dropout_works_and_vanishes_in_eval(stacks: Any, draw: Any) -> None:
    stack = stacks(dropout=0.5)
    requests = draw(stack)
    assert not torch.equal(requests.run(stack), requests.run(stack))
    stack.eval()
    torch.testing.assert_close(requests.run(stack), requests.run(stack.tiled), **EXACT)


def test_more_candidates_do_not_make_pass_one_keep_more(stacks: Any, draw: Any) -> None:
    """What training keeps of a request for the backward pass does not grow with its candidates."""

    def saved(forward: Any, requests: Any) -> int:
        kept: dict[int, int] = {}

        def pack(x: torch.Tensor) -> torch.Tensor:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            out = forward(requests)
        assert out is not None
        return sum(kept.values())

    stack = stacks()
    few, many = (draw(stack, num=1, most=1, seed=s) for s in (1, 1))
    many = replace(few, candidate=few.candidate.repeat(40, 1), request_of=few.request_of.repeat(40))
    one, forty = (saved(lambda r: encoded(stack, r), r) for r in (few, many))
    assert one == forty
    tiled = [saved(lambda r: r.run(stack.tiled), r) for r in (few, many)]
    assert tiled[1] > 20 * tiled[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_layers": 0}, "^hstu: num_layers is 0; expected a number above 0$"),
        ({"length": -1.0}, "^hstu: length is -1.0; expected a number above 0$"),
        ({"num_context": -1}, "^hstu: num_context is -1; expected 0 or more$"),
        ({"window": 0}, "^hstu: window is 0; expected a number above 0, or none$"),
    ],
)
def test_sizes_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        HSTUStack.Config(**values).build()
