"""What must be true of every model; one function per property, used by models and controls alike.

All take a model from :func:`prepared` (float64, off its initial zeros) and a batch in float64.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prerank.batch import Features, History, Inputs, RequestBatch
from prerank.jagged import Jagged
from prerank.models import Model
from prerank.nn import FusedTables

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def prepared(model: Model, seed: int = 1) -> Model:
    """Return the model in float64 and eval mode, every weight moved off its initial value.

    Heads that start at zero would otherwise hide a leak behind them.
    """
    generator = torch.Generator().manual_seed(seed)
    model.double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return model


def logits(model: Model, inputs: Inputs) -> Tensor:
    """Return detached logits, with the same dropout masks at every call."""
    torch.manual_seed(0)
    return model(inputs).logits.detach()


def composed(model: Model, inputs: Inputs) -> Tensor:
    """Return detached logits of the three methods, with the same dropout masks at every call."""
    torch.manual_seed(0)
    states = model.request_state(inputs), model.item_state(inputs.items)
    return model.score(*states, inputs.pairs).logits.detach()


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, **EXACT)


def leaves(tree: Any) -> list[Tensor]:
    """Return the tensors of a state, jagged ones as values and offsets."""
    if tree is None:
        return []
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, tuple):
        children = list(tree)
    elif isinstance(tree, dict):
        children = list(tree.values())
    else:
        children = [getattr(tree, f.name) for f in dataclasses.fields(tree)]
    return [leaf for child in children for leaf in leaves(child)]


def states_close(actual: Any, expected: Any) -> None:
    pairs = zip(leaves(actual), leaves(expected), strict=True)
    for a, b in pairs:
        close(a, b)


def with_candidate(inputs: Inputs, j: int) -> Inputs:
    """Return inputs where candidate ``j`` is another item with other candidate features."""
    num_candidates, num_items = inputs.num_candidates, inputs.items.num_rows
    rows = torch.arange(num_candidates)
    candidate = inputs.candidate.select(rows)
    for tensor in leaves(candidate):
        if tensor.shape[0] == num_candidates and tensor.numel():
            # Flip the lowest bit: another id of the vocabulary; shift what is real.
            tensor[j] = tensor[j] + 1.0 if tensor.is_floating_point() else tensor[j] ^ 1
    item_of = inputs.item_of.clone()
    item_of[j] = (item_of[j] + 1) % num_items
    return dataclasses.replace(inputs, candidate=candidate, item_of=item_of)


def isolation(model: Model, batch: RequestBatch) -> None:
    """Another candidate changes no other logit (scope ``set``: none of another request).

    Bitwise for the three methods, as all shapes stay; in train mode too, where batch statistics
    would hide. Within rounding for ``forward``, which may leave out items of no candidate.
    """
    inputs = batch.inputs
    for training in (False, True):
        model.train(training)
        before = composed(model, inputs)
        for j in (0, inputs.num_candidates // 2, inputs.num_candidates - 1):
            other = with_candidate(inputs, j)
            after = composed(model, other)
            others = torch.arange(inputs.num_candidates) != j
            if model.scope == "set":
                others = inputs.request_of != inputs.request_of[j]
            assert torch.equal(after[others], before[others]), f"candidate {j} reached others"
            assert not torch.equal(after[j], before[j]), f"candidate {j} does not reach its logit"
            if not training:
                close(logits(model, other)[others], logits(model, inputs)[others])
    model.eval()


def candidate_order(model: Model, batch: RequestBatch) -> None:
    """Permuting the candidates of each request permutes their logits."""
    inputs = batch.inputs
    shuffle = torch.randperm(inputs.num_candidates, generator=torch.Generator().manual_seed(3))
    order = shuffle[torch.argsort(inputs.request_of[shuffle], stable=True)]
    permuted = dataclasses.replace(
        inputs, candidate=inputs.candidate.select(order), item_of=inputs.item_of[order]
    )
    close(logits(model, permuted), logits(model, inputs)[order])


def batch_mates(model: Model, batch: RequestBatch) -> None:
    """A request scores the same alone, in another order, and next to unused items."""
    inputs = batch.inputs
    whole = logits(model, inputs)
    for r in range(inputs.num_requests):
        alone = logits(model, inputs.select(torch.tensor([r])))
        close(alone, whole[inputs.request_of == r])
    backwards = torch.arange(inputs.num_requests).flip(0)
    candidates = torch.cat([torch.where(inputs.request_of == r)[0] for r in backwards])
    close(logits(model, inputs.select(backwards)), whole[candidates])
    more = torch.cat([torch.arange(inputs.items.num_rows), torch.tensor([0, 3, 3])])
    close(logits(model, dataclasses.replace(inputs, items=inputs.items.select(more))), whole)


def history_length(model: Model, batch: RequestBatch) -> None:
    """A request scores the same however long the histories of the others are."""
    inputs = batch.inputs
    whole = logits(model, inputs)
    for r in range(inputs.num_requests):
        longer = {name: _longer(h, r) for name, h in inputs.history.items()}
        mine = inputs.request_of == r
        close(logits(model, dataclasses.replace(inputs, history=longer))[mine], whole[mine])


def _longer(history: History, kept: int) -> History:
    """Return the history with every row but one three times as long."""
    copies = torch.full((history.item_of.num_rows,), 3)
    copies[kept] = 1
    rows = torch.arange(history.item_of.num_rows).repeat_interleave(copies)

    def repeat(jagged: Jagged) -> Jagged:
        return Jagged.from_lengths(jagged.select(rows).values, jagged.lengths * copies)

    return History(*(repeat(getattr(history, f.name)) for f in dataclasses.fields(history)))


def composition(model: Model, batch: RequestBatch) -> None:
    """``forward`` is the three methods composed; states have R and U rows; extra is empty."""
    inputs = batch.inputs
    request_state, item_state = model.request_state(inputs), model.item_state(inputs.items)
    assert request_state.num_rows == inputs.num_requests
    assert item_state.num_rows == inputs.items.num_rows
    scores = model.score(request_state, item_state, inputs.pairs)
    close(scores.logits.detach(), logits(model, inputs))
    assert scores.logits.shape == (inputs.num_candidates, model.num_tasks)
    assert not scores.extra, "extra outputs in eval mode"


def split_states(model: Model, batch: RequestBatch) -> None:
    """States of parts, concatenated, are the state of the whole; so are selected rows."""
    inputs = batch.inputs
    requests = torch.arange(inputs.num_requests)
    items = torch.arange(inputs.items.num_rows)
    whole_r, whole_u = model.request_state(inputs), model.item_state(inputs.items)
    parts_r = [model.request_state(inputs.select(half)) for half in requests.split(4)]
    states_close(type(whole_r).cat(parts_r), whole_r)
    parts_u = [model.item_state(inputs.items.select(part)) for part in items.split(7)]
    states_close(type(whole_u).cat(parts_u), whole_u)
    backwards = requests.flip(0)
    states_close(whole_r.select(backwards), model.request_state(inputs.select(backwards)))


def microbatches(model: Model, batch: RequestBatch) -> None:
    """Scoring in small parts, or against shuffled and merged states, gives the same logits."""
    inputs = batch.inputs
    request_state, item_state = model.request_state(inputs), model.item_state(inputs.items)
    whole = logits(model, inputs)
    candidates = torch.arange(inputs.num_candidates)
    parts = candidates.split(5)
    if model.scope == "set":
        parts = [candidates[inputs.request_of == r] for r in range(inputs.num_requests)]
    scored = [model.score(request_state, item_state, inputs.pairs.select(p)).logits for p in parts]
    close(torch.cat(scored), whole)
    # A server merges cached states: rows in another order, some of them twice, some unused.
    rows = torch.randperm(inputs.items.num_rows, generator=torch.Generator().manual_seed(4))
    rows = torch.cat([rows, rows[:3]])
    where = torch.empty(inputs.items.num_rows, dtype=torch.int64)
    where[rows] = torch.arange(rows.numel())
    pairs = dataclasses.replace(inputs.pairs, item_of=where[inputs.item_of])
    close(model.score(request_state, item_state.select(rows), pairs).logits, whole)


def request_state_inputs(model: Model, batch: RequestBatch) -> None:
    """The request state reads user and history only: not context, candidates or their items."""
    inputs = batch.inputs
    state = model.request_state(inputs)
    seen = torch.zeros(inputs.items.num_rows, dtype=torch.bool)
    for history in inputs.history.values():
        seen[history.item_of.values] = True
    rows = torch.arange(inputs.items.num_rows)
    others = dataclasses.replace(
        inputs,
        context=_shifted(inputs.context),
        candidate=_shifted(inputs.candidate),
        item_of=inputs.item_of.flip(0),
        items=inputs.items.select(torch.where(seen, rows, rows.flip(0))),
    )
    for a, b in zip(leaves(model.request_state(others)), leaves(state), strict=True):
        assert torch.equal(a, b), "the request state reads more than user and history"


def _shifted(features: Features) -> Features:
    """Return other values: the rows backwards, ids flipped within their vocabulary."""
    moved = features.select(torch.arange(features.num_rows).flip(0))
    return dataclasses.replace(
        moved,
        categorical=moved.categorical ^ 1,
        dense=moved.dense + 1.0,
        vectors=tuple(v + 1.0 for v in moved.vectors),
    )


def evidence_is_unseen(model: Model, batch: RequestBatch) -> None:
    """Permuted evidence leaves every logit as it is."""
    requests = torch.arange(batch.num_requests).flip(0)
    candidates = torch.arange(batch.num_candidates).flip(0)
    other = RequestBatch(batch.inputs, batch.evidence.select(requests, candidates))
    assert torch.equal(logits(model, other.inputs), logits(model, batch.inputs))


def gradients(model: Model, batch: RequestBatch) -> None:
    """Every parameter, and every vocabulary of a table, gets a finite gradient somewhere.

    What a model has frozen gets none.
    """
    model.train().zero_grad()
    scores = model(batch.inputs).logits
    weights = torch.randn(
        scores.shape, generator=torch.Generator().manual_seed(5), dtype=scores.dtype
    )
    (scores * weights).sum().backward()
    model.eval()
    for name, p in model.named_parameters():
        if not p.requires_grad:
            assert p.grad is None, f"a gradient reaches {name}, which is frozen"
            continue
        if not p.numel():
            continue
        assert p.grad is not None, f"no gradient reaches {name}"
        grad = p.grad.to_dense()
        assert torch.isfinite(grad).all(), f"gradient of {name} is not finite"
        assert bool((grad != 0).any()), f"gradient of {name} is zero"
    for name, module in model.named_modules():
        if isinstance(module, FusedTables) and module.weight.grad is not None:
            grad = module.weight.grad.to_dense()
            for vocabulary in module.vocabularies:
                used = bool((grad[module.rows_of(vocabulary)] != 0).any())
                assert used, f"no row of '{vocabulary}' in {name} is used"


def empty_requests(model: Model, batch: RequestBatch) -> None:
    """No candidate, no history, no request, no item: right shapes and nothing but numbers."""
    inputs = batch.inputs
    for training in (False, True):
        model.train(training)
        assert torch.isfinite(logits(model, inputs)).all(), "a request without history or candidate"
        for rows in ([1], [2], []):
            part = inputs.select(torch.tensor(rows, dtype=torch.int64))
            scored = logits(model, part)
            assert scored.shape == (part.num_candidates, model.num_tasks)
            assert torch.isfinite(scored).all(), f"requests {rows} alone"
        nothing = torch.tensor([], dtype=torch.int64)
        part = dataclasses.replace(inputs.select(nothing), items=inputs.items.select(nothing))
        scores = model(part).logits
        assert scores.shape == (0, model.num_tasks)
    model.eval()


def saving(model: Model, other: Model, batch: RequestBatch, folder: Path) -> None:
    """Weights saved as safetensors and loaded into another instance give the same bits."""
    assert not torch.equal(logits(other, batch.inputs), logits(model, batch.inputs))
    save_file(model.state_dict(), folder / "weights.safetensors")
    other.load_state_dict(load_file(folder / "weights.safetensors"))
    assert torch.equal(logits(other, batch.inputs), logits(model, batch.inputs))


def precision(model: Model, batch: RequestBatch) -> None:
    """Float32 is within 1e-5 of float64."""
    exact = logits(model, batch.inputs)
    rough = logits(model.float(), batch.inputs.to(torch.float32))
    model.double()
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough.double(), exact, rtol=1e-5, atol=1e-5)


def bfloat16(model: Model, batch: RequestBatch) -> None:
    """Under autocast, forward and backward work and stay within what 8 bits can tell."""
    exact = logits(model, batch.inputs)
    model.float().zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(batch.inputs.to(torch.float32)).logits
        assert rough.shape == exact.shape
        rough.float().sum().backward()
    model.double()
    error = (rough.detach().double() - exact).abs().amax()
    assert error < 0.05 * exact.abs().amax().clamp(min=1.0), f"off by {error:.3g}"


ON_BATCH = (
    isolation,
    candidate_order,
    batch_mates,
    history_length,
    composition,
    split_states,
    microbatches,
    request_state_inputs,
    evidence_is_unseen,
    gradients,
    empty_requests,
    precision,
    bfloat16,
)
"""The checks that need only a prepared model and a batch."""
