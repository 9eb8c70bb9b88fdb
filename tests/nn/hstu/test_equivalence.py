"""Two passes, one masked sequence and tiled rows: the same scores, losses and gradients.

And the controls: what is known to break the equality must break it here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prerank.nn import HSTUStack
from prerank.nn.hstu import plan

FORMS = ("forward", "masked", "tiled")
Result = tuple[Tensor, Tensor, list[Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]


def per_impression(logit_I: Tensor, target_I: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logit_I, target_I)


def results(
    stack: HSTUStack, requests: Any, forward: Callable[..., Tensor], loss: Loss = per_impression
) -> Result:
    """Return logits, loss and the gradients of all weights and inputs."""
    wanted = [*stack.parameters(), *requests.leaves]
    logit_I = requests.run(forward).sum(1)
    target_I = (torch.arange(logit_I.numel()) % 3 == 0).to(logit_I.dtype)
    value = loss(logit_I, target_I)
    return logit_I.detach(), value.detach(), list(torch.autograd.grad(value, wanted))


def gap(a: Result, b: Result) -> float:
    """Return the largest difference of logits, loss or any gradient."""
    pairs = zip([a[0], a[1], *a[2]], [b[0], b[1], *b[2]], strict=True)
    return max(float((x - y).abs().max()) for x, y in pairs if x.numel())


def test_three_forms_are_one(stack: HSTUStack, draw: Any) -> None:
    requests = draw(stack)
    two_pass, masked, tiled = (results(stack, requests, getattr(stack, f)) for f in FORMS)
    assert gap(two_pass, tiled) < 1e-12
    assert gap(masked, tiled) < 1e-12
    assert all(float(g.abs().max()) > 1e-9 for g in tiled[2]), "a gradient is zero"


def test_equals_its_definition(stack: HSTUStack, draw: Any, reference: Any) -> None:
    """Logits, loss and gradients of the formula written out for one pair of tokens at a time."""
    requests = draw(stack, num=4, longest=6, most=3, seed=3)
    by_hand = results(stack, requests, lambda *_, **__: reference(stack, requests))
    assert gap(results(stack, requests, stack.forward), by_hand) < 1e-12


def test_float32_is_within_a_hundred_thousandth(stack: HSTUStack, draw: Any) -> None:
    stack.float()
    requests = draw(stack)
    tiled = results(stack, requests, stack.tiled)
    for form in ("forward", "masked"):
        assert gap(results(stack, requests, getattr(stack, form)), tiled) < 1e-5


@pytest.mark.parametrize("options", [{}, {"weights": "softmax", "num_context": 1}])
def test_rows_of_one_shape(stacks: Any, draw: Any, options: dict[str, Any]) -> None:
    """Equal lengths take shorter ways through the padding."""
    stack = stacks(**options)
    requests = replace(draw(stack, num=6), request_of=torch.arange(6).repeat_interleave(3))
    g = torch.Generator().manual_seed(0)
    requests = replace(
        requests,
        history=torch.randn(30, 6, generator=g, dtype=torch.float64).requires_grad_(),
        lengths=torch.full((6,), 5),
        candidate=torch.randn(18, 6, generator=g, dtype=torch.float64).requires_grad_(),
        age_ms=torch.arange(30, 0, -1),
    )
    two_pass, masked, tiled = (results(stack, requests, getattr(stack, f)) for f in FORMS)
    assert gap(two_pass, tiled) < 1e-12
    assert gap(masked, tiled) < 1e-12


@given(seed=st.integers(0, 10**6), num=st.integers(0, 5), most=st.integers(1, 9))
@settings(max_examples=12)
def test_any_shape(stacks: Any, draw: Any, seed: int, num: int, most: int) -> None:
    stack = stacks(num_context=1, window=5, position_buckets=4, time_buckets=6, num_layers=2)
    requests = draw(stack, seed=seed, num=num, most=most, longest=1 + seed % 17)
    if not requests.candidate.numel():
        assert requests.run(stack.forward).shape == (0, 6)
        return
    two_pass, masked, tiled = (results(stack, requests, getattr(stack, f)) for f in FORMS)
    assert gap(two_pass, tiled) < 1e-12
    assert gap(masked, tiled) < 1e-12


@given(chunk=st.integers(1, 20), cells=st.integers(1, 300))
@settings(max_examples=10)
def test_blocks_do_not_matter(stacks: Any, draw: Any, chunk: int, cells: int) -> None:
    """Neither the queries of a block nor the rows of a group change a result."""
    options = {"num_context": 1, "time_buckets": 6, "window": 6}
    usual, other = stacks(**options), stacks(**options, chunk=chunk, cells=cells)
    requests = draw(usual)
    a, b = (results(stack, requests, stack.forward) for stack in (usual, other))
    assert gap(a, b) < 1e-12


@pytest.mark.parametrize("most", [0, 200])
def test_masks_made_anew_are_those_kept(
    stack: HSTUStack, draw: Any, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Long sequences keep no masks between layers; nothing but time and memory may change."""
    requests = draw(stack)
    usual = results(stack, requests, stack.forward)
    monkeypatch.setattr(plan, "_KEPT", most)
    assert gap(results(stack, requests, stack.forward), usual) < 1e-12
    assert gap(results(stack, requests, stack.masked), usual) < 1e-12


def control(stack: HSTUStack, requests: Any, loss: Loss = per_impression) -> float:
    """Return how far request-level results are from those of tiled rows."""
    tiled = results(stack, requests, stack.tiled)
    return min(gap(results(stack, requests, getattr(stack, f), loss), tiled) for f in FORMS[:2])


def test_control_normaliser_of_the_longest_row(stacks: Any, draw: Any) -> None:
    """Dividing by the batch's longest sequence: candidates riding along change the score."""

    class BatchMaximum(HSTUStack):
        def _sequence(self, *args: Any) -> Any:
            tokens, age = super()._sequence(*args)
            self.rule = replace(self.rule, length=float(tokens.offsets.diff().max()))
            return tokens, age

    stack = stacks()
    broken = BatchMaximum(stack.config).double()
    broken.load_state_dict(stack.state_dict())
    requests = draw(stack)
    assert control(stack, requests) < 1e-12
    assert control(broken, requests) > 1e-3


def test_control_batch_norm(stacks: Any, draw: Any) -> None:
    """Batch statistics count a history once per request, or once per impression."""
    stack = stacks()
    requests = draw(stack)
    for layer in stack.layers:
        layer.norm_in = nn.BatchNorm1d(6, dtype=torch.float64)
    assert control(stack, requests) > 1e-3


def test_control_mean_of_request_means(stacks: Any, draw: Any) -> None:
    """A loss averaged per request weighs impressions of short requests more."""
    stack = stacks()
    requests = draw(stack)

    def per_request(logit_I: Tensor, target_I: Tensor) -> Tensor:
        each = F.binary_cross_entropy_with_logits(logit_I, target_I, reduction="none")
        rows = requests.request_of.unique().tolist()
        return torch.stack([each[requests.request_of == r].mean() for r in rows]).mean()

    assert control(stack, requests) < 1e-12
    assert control(stack, requests, per_request) > 1e-3
