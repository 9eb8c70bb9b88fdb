"""Random requests for the stack, and the stack written out token by token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prerank.jagged import Jagged
from prerank.nn import HSTUStack

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "biases": {"position_buckets": 6, "time_buckets": 8},
    "window": {"window": 3, "position_buckets": 4},
    "context": {"num_context": 2},
    "isolated_context": {"num_context": 1, "context_sees": "context", "window": 2},
    "paper": {"form": "paper", "time_buckets": 5, "num_context": 1, "num_layers": 3},
    "visible": {"normaliser": "visible", "num_context": 1, "window": 4},
    "widths": {"query_width": 2, "value_width": 5, "norm": "head", "num_layers": 1},
    "softmax": {"weights": "softmax"},
    "softmax_all": {
        "weights": "softmax",
        "form": "paper",
        "num_context": 2,
        "window": 3,
        "position_buckets": 5,
        "time_buckets": 9,
    },
    "softmax_isolated": {
        "weights": "softmax",
        "num_context": 1,
        "context_sees": "context",
        "time_buckets": 7,
        "norm": "head",
    },
}
"""Options of a stack that between them use every branch."""


@dataclass(frozen=True)
class Requests:
    """Arguments of a forward; ``history``, ``candidate`` and ``context`` are leaves."""

    history: Tensor
    lengths: Tensor
    candidate: Tensor
    request_of: Tensor
    age_ms: Tensor
    context: Tensor | None

    @property
    def leaves(self) -> list[Tensor]:
        return [x for x in (self.history, self.candidate, self.context) if x is not None]

    def run(self, forward: Callable[..., Tensor]) -> Tensor:
        return forward(
            Jagged.from_lengths(self.history, self.lengths),
            self.candidate,
            self.request_of,
            age_ms=self.age_ms,
            context_RCD=self.context,
        )

    def candidates(self, index: Tensor) -> Requests:
        return replace(self, candidate=self.candidate[index], request_of=self.request_of[index])


def make_requests(
    stack: HSTUStack, *, seed: int = 0, num: int = 8, longest: int = 13, most: int = 6
) -> Requests:
    """Draw requests: 1 has no candidate, 2 no event; candidates come in no order."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (num,), generator=g)
    counts = torch.randint(1, most + 1, (num,), generator=g)
    lengths[2:3], counts[1:2] = 0, 0
    num_events, num_candidates = int(lengths.sum()), int(counts.sum())
    D, C = stack.config.width, stack.config.num_context
    dtype = next(stack.parameters()).dtype

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=dtype).requires_grad_()

    gaps = torch.rand(num_events, generator=g).mul(30).exp2().long() + 1
    ages = [gap.flip(0).cumsum(0).flip(0) for gap in gaps.split(lengths.tolist())]
    shuffle = torch.randperm(num_candidates, generator=g)
    return Requests(
        leaf(num_events, D),
        lengths,
        leaf(num_candidates, D),
        torch.arange(num).repeat_interleave(counts)[shuffle],
        torch.cat([*ages, gaps[:0]]),
        leaf(num, C, D) if C else None,
    )


def make_stack(seed: int = 0, **options: Any) -> HSTUStack:
    """Make a small stack in float64, off its initial values, that works in many small blocks."""
    torch.manual_seed(seed)
    values = {"width": 6, "num_heads": 2, "length": 7.0, "chunk": 4, "cells": 40, **options}
    stack = HSTUStack.Config(**values).build().double()
    with torch.no_grad():
        for p in stack.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return stack


def by_hand(stack: HSTUStack, requests: Requests) -> Tensor:
    """Score each candidate in a sequence of its own, one pair of tokens after another."""
    starts = requests.lengths.cumsum(0) - requests.lengths
    out = []
    for x_D, r in zip(requests.candidate, requests.request_of.tolist(), strict=True):
        events = slice(int(starts[r]), int(starts[r] + requests.lengths[r]))
        context = x_D.new_zeros(0, x_D.numel()) if requests.context is None else requests.context[r]
        tokens = torch.cat([context, requests.history[events], x_D.unsqueeze(0)])
        ages = requests.age_ms[events].tolist()
        for layer in stack.layers:
            tokens = _layer_by_hand(stack.config, layer, tokens, ages)
        out.append(tokens[-1])
    return torch.stack(out) if out else requests.candidate


def _layer_by_hand(
    config: HSTUStack.Config, layer: nn.Module, x_SD: Tensor, ages: list[int]
) -> Tensor:
    h, C = config.num_heads, config.num_context
    last, ages = x_SD.shape[0] - 1, [0] * C + [age // 1000 for age in ages] + [0]
    projected = layer.project_in(layer.norm_in(x_SD))
    if config.form == "paper":
        projected = projected * torch.sigmoid(projected)
    u, q, k, v = projected.split(layer.widths, dim=1)
    u = u if config.form == "paper" else u * torch.sigmoid(u)
    rows = []
    for i in range(last + 1):
        seen = [j for j in range(last + 1) if _sees(config, i, j, last)]
        heads = []
        for head in range(h):
            a, b = (slice(head * x.shape[1] // h, (head + 1) * x.shape[1] // h) for x in (q, v))
            scores = []
            for j in seen:
                score = q[i, a] @ k[j, a] / q[i, a].numel() ** 0.5
                with_context = min(i, j) < C
                if config.position_buckets:
                    bucket = -1 if with_context else _distance(i - j, config.position_buckets)
                    score = score + layer.position[head, bucket]
                if config.time_buckets:
                    elapsed = max(ages[j] - ages[i], 0)
                    bucket = min(elapsed.bit_length(), config.time_buckets - 1)
                    score = score + layer.time[head, -1 if with_context else bucket]
                scores.append(score)
            s = torch.stack(scores)
            divisor = config.length if config.normaliser == "constant" else len(seen)
            w = (
                torch.softmax(s, 0)
                if config.weights == "softmax"
                else s * torch.sigmoid(s) / divisor
            )
            heads.append(sum(w[n] * v[j, b] for n, j in enumerate(seen)))
        rows.append(torch.cat(heads))
    o = torch.stack(rows)
    mix = u * layer.norm_out(o)
    mix = torch.cat([u, o, mix], dim=1) if config.form == "code" else mix
    return x_SD + layer.project_out(mix)


def _sees(config: HSTUStack.Config, i: int, j: int, last: int) -> bool:
    C = config.num_context
    if i == j:
        return True
    if i < C:
        return j < C or (config.context_sees == "history" and j < last)
    if j < C:
        return True
    return j < i and (config.window is None or i - j <= config.window)


def _distance(distance: int, num_buckets: int) -> int:
    starts = [0]
    while len(starts) < num_buckets:
        step = 1 if len(starts) < num_buckets // 2 else max(1, starts[-1] // 5)
        starts.append(starts[-1] + step)
    return sum(start <= distance for start in starts) - 1


@pytest.fixture(params=OPTIONS)
def stack(request: pytest.FixtureRequest) -> HSTUStack:
    """A small stack in float64 under each set of options."""
    return make_stack(**OPTIONS[request.param])


@pytest.fixture(scope="session")
def stacks() -> Callable[..., HSTUStack]:
    """``stacks(seed=..., **options)``: a small stack in float64."""
    return make_stack


@pytest.fixture(scope="session")
def draw() -> Callable[..., Requests]:
    """``draw(stack, seed=..., num=..., longest=..., most=...)``: random requests."""
    return make_requests


@pytest.fixture(scope="session")
def reference() -> Callable[[HSTUStack, Requests], Tensor]:
    """``reference(stack, requests)``: scores by the definition, loop by loop."""
    return by_hand
