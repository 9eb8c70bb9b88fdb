"""Negative controls: a model broken in one way fails the check of that property.

A check that a broken model passes proves nothing; each case here names the checks that must fail.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prerank.batch import Inputs, Pairs, RequestBatch, Scores
from prerank.jagged import segment_mean
from prerank.models import Model
from prerank.models.two_tower import ItemState, RequestState, TwoTower
from prerank.schema import Schema


class Rescored(TwoTower):
    """A two tower whose logits are changed afterwards."""

    def score(self, request_state: RequestState, item_state: ItemState, pairs: Pairs) -> Scores:
        return Scores(self.change(super().score(request_state, item_state, pairs).logits, pairs))

    def change(self, logits: Tensor, pairs: Pairs) -> Tensor:
        raise NotImplementedError


class Restated(TwoTower):
    """A two tower whose request vectors are changed, in ``forward`` too."""

    def _request(self, inputs: Inputs, items_UE: Tensor) -> RequestState:
        return RequestState(self.change(super()._request(inputs, items_UE).vector, inputs))

    def change(self, vectors: Tensor, inputs: Inputs) -> Tensor:
        raise NotImplementedError


class CentredOverBatch(Rescored):
    def change(self, logits: Tensor, pairs: Pairs) -> Tensor:
        return logits - logits.mean(0)


class BatchNormOverCandidates(Rescored):
    """Hides in eval mode, where running statistics are used."""

    def __init__(self, schema: Schema, config: Any) -> None:
        super().__init__(schema, config)
        self.norm = nn.BatchNorm1d(self.num_tasks, momentum=0.0)

    def change(self, logits: Tensor, pairs: Pairs) -> Tensor:
        return self.norm(logits)


class PositionInTheBatch(Rescored):
    def change(self, logits: Tensor, pairs: Pairs) -> Tensor:
        return logits + 0.01 * torch.arange(len(logits)).unsqueeze(1)


class TopOfTheScored(Rescored):
    def change(self, logits: Tensor, pairs: Pairs) -> Tensor:
        return logits / (1.0 + logits.abs().amax()) if len(logits) else logits


class RoundedToHalf(Rescored):
    def change(self, logits: Tensor, pairs: Pairs) -> Tensor:
        return logits.to(torch.bfloat16).to(logits.dtype) if self.is_float32() else logits

    def is_float32(self) -> bool:
        return self.encode.tables.weight.dtype == torch.float32


class CentredOverRequest(Rescored):
    """Not broken when it says that it scores sets."""

    scope = "set"

    def change(self, logits: Tensor, pairs: Pairs) -> Tensor:
        num_requests = pairs.context.num_rows
        return logits - 0.5 * segment_mean(logits, pairs.request_of, num_requests)[pairs.request_of]


class SetOfTheWholeBatch(CentredOverBatch):
    scope = "set"


class CandidateScopeOverRequest(CentredOverRequest):
    scope = "candidate"


class LongestHistoryNormaliser(Restated):
    def change(self, vectors: Tensor, inputs: Inputs) -> Tensor:
        lengths = torch.cat([h.item_of.lengths for h in inputs.history.values()])
        return vectors / lengths.max().clamp(min=1) if lengths.numel() else vectors


class ContextInTheRequestState(Restated):
    def change(self, vectors: Tensor, inputs: Inputs) -> Tensor:
        return vectors + inputs.context.dense.sum(1).view(-1, 1, 1)


class CandidateItemsInTheRequestState(Restated):
    def change(self, vectors: Tensor, inputs: Inputs) -> Tensor:
        prices = inputs.items.dense[:, :1][inputs.item_of]
        mean = segment_mean(prices, inputs.request_of, inputs.num_requests)
        return vectors + mean.unsqueeze(1)


class DividedByHistoryLength(Restated):
    def change(self, vectors: Tensor, inputs: Inputs) -> Tensor:
        lengths = next(iter(inputs.history.values())).item_of.lengths
        return vectors / lengths.view(-1, 1, 1)


class OneRowAtLeast(TwoTower):
    def forward(self, inputs: Inputs) -> Scores:
        logits = super().forward(inputs).logits
        return Scores(logits if len(logits) else logits.new_zeros(1, self.num_tasks))


class ItemsCentred(TwoTower):
    def _item(self, items_UE: Tensor) -> ItemState:
        state = super()._item(items_UE)
        return dataclasses.replace(state, vector=state.vector - state.vector.mean(0))


class ForwardApart(TwoTower):
    def forward(self, inputs: Inputs) -> Scores:
        return Scores(super().forward(inputs).logits + 1e-6)


class TalksInEval(TwoTower):
    def score(self, request_state: RequestState, item_state: ItemState, pairs: Pairs) -> Scores:
        scores = super().score(request_state, item_state, pairs)
        return Scores(scores.logits, {"members": scores.logits})


class DeadWeight(TwoTower):
    def __init__(self, schema: Schema, config: Any) -> None:
        super().__init__(schema, config)
        self.unused = nn.Parameter(torch.zeros(3))


class DeadVocabulary(TwoTower):
    def __init__(self, schema: Schema, config: Any) -> None:
        super().__init__(schema, config)
        sizes = {name: schema.size(name) for name in (*self.encode.tables.vocabularies, "ghost")}
        self.encode.tables = config.tables.build(sizes)


class ForgetsABuffer(Rescored):
    def __init__(self, schema: Schema, config: Any) -> None:
        super().__init__(schema, config)
        self.register_buffer("shift", torch.randn(1), persistent=False)

    def change(self, logits: Tensor, pairs: Pairs) -> Tensor:
        return logits + self.shift


BROKEN: list[tuple[type[TwoTower], tuple[str, ...]]] = [
    (CentredOverBatch, ("isolation", "batch_mates", "microbatches")),
    (BatchNormOverCandidates, ("isolation",)),
    (PositionInTheBatch, ("candidate_order", "batch_mates", "microbatches")),
    (TopOfTheScored, ("batch_mates", "microbatches")),
    (RoundedToHalf, ("precision",)),
    (SetOfTheWholeBatch, ("isolation", "batch_mates")),
    (CandidateScopeOverRequest, ("isolation",)),
    (LongestHistoryNormaliser, ("history_length", "batch_mates", "split_states")),
    (ContextInTheRequestState, ("request_state_inputs",)),
    (CandidateItemsInTheRequestState, ("request_state_inputs",)),
    (DividedByHistoryLength, ("empty_requests",)),
    (OneRowAtLeast, ("empty_requests",)),
    (ItemsCentred, ("split_states", "batch_mates")),
    (ForwardApart, ("composition",)),
    (TalksInEval, ("composition",)),
    (DeadWeight, ("gradients",)),
    (DeadVocabulary, ("gradients",)),
]


@pytest.fixture
def schema(schemas: dict[str, Schema]) -> Schema:
    return schemas["rich"]


@pytest.fixture
def batch(schema: Schema, make_batch: Any) -> RequestBatch:
    return make_batch(schema)


def build(kind: type[TwoTower], schema: Schema, checks: ModuleType, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return checks.prepared(kind(schema, TwoTower.Config()), seed)


@pytest.mark.parametrize(
    ("kind", "check"), [(kind, check) for kind, failing in BROKEN for check in failing]
)
def test_broken_model_fails(
    kind: type[TwoTower], check: str, schema: Schema, batch: RequestBatch, checks: ModuleType
) -> None:
    with pytest.raises(AssertionError):
        getattr(checks, check)(build(kind, schema, checks), batch)


def test_forgotten_buffer_fails(
    schema: Schema, batch: RequestBatch, checks: ModuleType, tmp_path: Path
) -> None:
    pair = (build(ForgetsABuffer, schema, checks, seed) for seed in (0, 1))
    with pytest.raises(AssertionError):
        checks.saving(*pair, batch, tmp_path)


def test_set_model_passes_what_its_scope_promises(
    schema: Schema, batch: RequestBatch, checks: ModuleType
) -> None:
    for check in checks.ON_BATCH:
        check(build(CentredOverRequest, schema, checks), batch)


def test_controls_fail_only_for_what_they_break(
    schema: Schema, batch: RequestBatch, checks: ModuleType
) -> None:
    """The untouched base passes everything, so each failure above is the break's."""
    for check in checks.ON_BATCH:
        check(build(TwoTower, schema, checks), batch)
