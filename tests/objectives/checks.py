"""What must be true of every objective; one function per property, for objectives and controls.

All take an objective and a batch; scores are drawn in float64, one column per task.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from prerank.batch import UNKNOWN, Inputs, RequestBatch, Scores
from prerank.jagged import lengths_to_offsets

Objective = Callable[[Mapping[str, Scores], RequestBatch], dict[str, Tensor]]

EXACT = {"rtol": 1e-12, "atol": 1e-14}


def drawn(batch: RequestBatch, seed: int = 0) -> Tensor:
    """Return random logits ``[I, T]`` that take gradients."""
    generator = torch.Generator().manual_seed(seed)
    shape = batch.evidence.targets.shape
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def parts_of(objective: Objective, logits: Tensor, batch: RequestBatch) -> dict[str, Tensor]:
    return objective({"model": Scores(logits)}, batch)


def gradient(objective: Objective, logits: Tensor, batch: RequestBatch) -> Tensor:
    total = sum(parts_of(objective, logits, batch).values())
    return torch.autograd.grad(total, logits)[0]


def same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(actual) == list(expected)
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], **EXACT, msg=name)


def with_evidence(batch: RequestBatch, **fields: Tensor) -> RequestBatch:
    return RequestBatch(batch.inputs, dataclasses.replace(batch.evidence, **fields))


def named_scalars(objective: Objective, batch: RequestBatch) -> None:
    """Parts are finite scalars named ``kind/what``; their gradient is finite and not all zero."""
    logits = drawn(batch)
    parts = parts_of(objective, logits, batch)
    assert parts
    for name, part in parts.items():
        kind, slash, what = name.partition("/")
        assert kind, name
        assert slash, name
        assert what, name
        assert part.shape == (), f"{name} is not a scalar"
        assert part.dtype == logits.dtype, f"{name} changes the dtype"
        assert torch.isfinite(part), f"{name} is {part.item()}"
    grad = gradient(objective, logits, batch)
    assert torch.isfinite(grad).all()
    assert bool((grad != 0).any()), "nothing is learned"


def extreme_logits(objective: Objective, batch: RequestBatch) -> None:
    """Logits of +-1000 overflow nothing."""
    logits = (drawn(batch).detach().sign() * 1000.0).requires_grad_()
    for name, part in parts_of(objective, logits, batch).items():
        assert torch.isfinite(part), f"{name} is {part.item()}"
    assert torch.isfinite(gradient(objective, logits, batch)).all()


def request_order(objective: Objective, batch: RequestBatch) -> None:
    """The order of requests does not matter."""
    logits = drawn(batch)
    requests = torch.arange(batch.num_requests).flip(0)
    of = batch.inputs.request_of
    candidates = torch.cat([torch.where(of == r)[0] for r in requests])
    other = parts_of(objective, logits[candidates], batch.select(requests))
    same(other, parts_of(objective, logits, batch))


def split_requests(objective: Objective, batch: RequestBatch) -> None:
    """A request cut into two rows weighs what it weighed (per-impression objectives only)."""
    if not getattr(objective, "per_impression", False):
        return
    inputs, evidence = batch.inputs, batch.evidence
    lengths = inputs.offsets.diff()
    half = lengths // 2
    rows = torch.arange(batch.num_requests).repeat_interleave(2)
    cut = torch.stack([half, lengths - half], dim=1).flatten()
    user = {name: inputs.history[name].select(rows) for name in inputs.history}
    twice = Inputs(
        user=inputs.user.select(rows),
        context=inputs.context.select(rows),
        history=user,
        items=inputs.items,
        candidate=inputs.candidate,
        offsets=lengths_to_offsets(cut),
        request_of=torch.arange(cut.numel()).repeat_interleave(cut),
        item_of=inputs.item_of,
    )
    split = RequestBatch(twice, evidence.select(rows, torch.arange(batch.num_candidates)))
    logits = drawn(batch)
    same(parts_of(objective, logits, split), parts_of(objective, logits, batch))


def empty_batch(objective: Objective, batch: RequestBatch) -> None:
    """No candidate, no request, or nothing known: zero parts and zero gradients, never NaN."""
    nothing = torch.full_like(batch.evidence.targets, torch.nan)
    unknown = with_evidence(
        batch,
        targets=nothing,
        source=torch.full_like(batch.evidence.source, UNKNOWN),
        engaged=torch.full_like(batch.evidence.engaged, torch.nan),
        labels=dict.fromkeys(batch.evidence.labels, nothing[:, 0]),
    )
    no_candidate = batch.select(torch.where(batch.inputs.offsets.diff() == 0)[0])
    no_request = batch.select(torch.tensor([], dtype=torch.int64))
    for some in (unknown, no_candidate, no_request):
        logits = drawn(some)
        for name, part in parts_of(objective, logits, some).items():
            assert part.item() == 0.0, f"{name} is {part.item()} without anything known"
        assert bool((gradient(objective, logits, some) == 0).all())


def unknown_candidates(objective: Objective, batch: RequestBatch) -> None:
    """A candidate of unknown source and targets takes no gradient and changes no part."""
    logits = drawn(batch)
    unknown = batch.evidence.source == UNKNOWN
    assert bool(unknown.any())
    assert bool((gradient(objective, logits, batch)[unknown] == 0).all())
    moved = logits + unknown.unsqueeze(1)
    same(parts_of(objective, moved, batch), parts_of(objective, logits, batch))


def weights(objective: Objective, batch: RequestBatch) -> None:
    """Only ratios of weights count; a weight of zero removes a candidate's gradient."""
    logits = drawn(batch)
    weight = batch.evidence.weight
    scaled = with_evidence(batch, weight=weight * 4.0)
    same(parts_of(objective, logits, scaled), parts_of(objective, logits, batch))
    uneven = with_evidence(batch, weight=weight * torch.linspace(0.0, 1.0, weight.numel()))
    before, after = (parts_of(objective, logits, b) for b in (batch, uneven))
    assert any(before[name] != after[name] for name in before), "weights are not read"
    if getattr(objective, "per_impression", False):
        grad = gradient(objective, logits, uneven)
        assert bool((grad[0] == 0).all()), "a candidate of weight 0 takes gradient"


def processes(objective: Objective, batch: RequestBatch) -> None:
    """Averaged over two unequal processes, gradients equal those of one (per impression only)."""
    if not getattr(objective, "per_impression", False):
        return
    requests = torch.arange(batch.num_requests)
    shards = [batch.select(requests[:2]), batch.select(requests[2:])]
    logits = drawn(batch)
    sizes = [shard.num_candidates for shard in shards]
    pieces = [piece.detach().requires_grad_() for piece in logits.split(sizes)]
    local, seen = objective.normaliser, []

    def record(weight: Tensor) -> Tensor:
        seen.append(weight)
        return weight

    objective.normaliser = record
    for piece, shard in zip(pieces, shards, strict=True):
        parts_of(objective, piece, shard)
    assert seen, "the normaliser is not asked"
    first, second = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    means = [(a + b) / 2 for a, b in zip(first, second, strict=True)] * 2
    objective.normaliser = lambda _: means.pop(0)
    grads = [gradient(objective, *pair) / 2 for pair in zip(pieces, shards, strict=True)]
    objective.normaliser = local
    torch.testing.assert_close(torch.cat(grads), gradient(objective, logits, batch), **EXACT)


ALL = (
    named_scalars,
    extreme_logits,
    request_order,
    split_requests,
    empty_batch,
    unknown_candidates,
    weights,
    processes,
)
"""Every check; all take an objective and a batch."""
