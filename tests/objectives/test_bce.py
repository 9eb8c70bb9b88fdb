"""Cross-entropy against scikit-learn and against a loop written from the definition."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from torch import Tensor

from prerank.batch import POSITIVE, UNKNOWN, RequestBatch, Scores
from prerank.errors import InputError
from prerank.objectives import get
from prerank.objectives.bce import BCE
from prerank.schema import Label, Schema, Task

CLOSE = {"rtol": 1e-6, "atol": 1e-9}


@pytest.fixture
def schema(schemas: dict[str, Schema]) -> Schema:
    return schemas["rich"]


@pytest.fixture
def batch(schema: Schema, make_batch: Any) -> RequestBatch:
    return make_batch(schema, num_requests=30, seed=8)


def drawn(batch: RequestBatch) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(batch.evidence.targets.shape, generator=generator, dtype=torch.float64)


def test_labelled_only_equals_scikit_learn(schema: Schema, batch: RequestBatch) -> None:
    logits = drawn(batch)
    parts = BCE.Config(sources=()).build(schema)({"m": Scores(logits)}, batch)
    for t, task in enumerate(schema.task_names):
        target = batch.evidence.targets[:, t].numpy()
        known = ~np.isnan(target)
        expected = log_loss(
            target[known],
            torch.sigmoid(logits[:, t]).numpy()[known],
            sample_weight=batch.evidence.weight.double().numpy()[known],
            labels=[0, 1],
        )
        torch.testing.assert_close(parts[f"bce/{task}"].item(), expected, **CLOSE)


def by_loop(
    schema: Schema,
    batch: RequestBatch,
    logits: Tensor,
    sources: tuple[str, ...],
    weights: dict[str, float],
) -> list[float]:
    """Follow the definition word by word, one candidate after another."""
    results = []
    evidence = batch.evidence
    for t in range(logits.shape[1]):
        total = divisor = 0.0
        for i in range(logits.shape[0]):
            target, code = evidence.targets[i, t].item(), int(evidence.source[i])
            name = {POSITIVE: "positive", UNKNOWN: "?"}.get(code) or schema.source_names[code]
            if math.isnan(target):
                if name not in sources or name == "exposed":
                    continue
                target = 0.0
            weight = evidence.weight[i].item() * weights.get(name, 1.0)
            p = 1.0 / (1.0 + math.exp(-logits[i, t].item()))
            total -= weight * (target * math.log(p) + (1.0 - target) * math.log(1.0 - p))
            divisor += weight
        results.append(total / divisor)
    return results


@pytest.mark.parametrize("sources", [None, (), ("rank",), ("exposed", "prerank"), ("random",)])
@pytest.mark.parametrize("weights", [{}, {"rank": 3.0, "exposed": 0.0, "positive": 0.5}])
def test_equals_the_definition(
    schema: Schema, batch: RequestBatch, sources: Any, weights: dict[str, float]
) -> None:
    logits = drawn(batch)
    config = BCE.Config(sources=sources, source_weights=weights, task_weights={"buy": 0.25})
    parts = config.build(schema)({"m": Scores(logits)}, batch)
    chosen = schema.source_names if sources is None else sources
    click, buy = by_loop(schema, batch, logits, chosen, weights)
    assert list(parts) == ["bce/click", "bce/buy"]
    torch.testing.assert_close(parts["bce/click"].item(), click, **CLOSE)
    torch.testing.assert_close(parts["bce/buy"].item(), 0.25 * buy, **CLOSE)


def test_gradient_is_probability_minus_target(schema: Schema, batch: RequestBatch) -> None:
    logits = drawn(batch).requires_grad_()
    parts = BCE.Config(sources=()).build(schema)({"m": Scores(logits)}, batch)
    grad = torch.autograd.grad(parts["bce/click"], logits)[0]
    known = ~batch.evidence.targets[:, 0].isnan()
    weight = batch.evidence.weight.double() * known
    target = batch.evidence.targets[:, 0].nan_to_num(0.0)
    expected = weight * (torch.sigmoid(logits[:, 0].detach()) - target) / weight.sum()
    torch.testing.assert_close(grad[:, 0], expected, **CLOSE)
    assert bool((grad[:, 1] == 0).all()), "one task's part reaches another task's logits"


def test_weight_two_equals_two_copies(schema: Schema, batch: RequestBatch) -> None:
    logits = drawn(batch)
    evidence = batch.evidence
    counts = torch.arange(logits.shape[0]) % 3
    copies = torch.arange(logits.shape[0]).repeat_interleave(counts)
    requests = torch.arange(batch.num_requests)
    ones = torch.ones_like(evidence.weight)
    weighted = RequestBatch(batch.inputs, dataclasses.replace(evidence, weight=counts.float()))
    plain = dataclasses.replace(evidence, weight=ones).select(requests, copies)
    objective = BCE.Config().build(schema)
    a = objective({"m": Scores(logits)}, weighted)
    b = objective({"m": Scores(logits[copies])}, RequestBatch(batch.inputs, plain))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-12, atol=1e-12)


def test_several_models_need_a_name(schema: Schema, batch: RequestBatch) -> None:
    scores = {"light": Scores(drawn(batch)), "strong": Scores(drawn(batch) + 1.0)}
    with pytest.raises(InputError, match=r"2 models .*light, strong.*'model'"):
        BCE.Config().build(schema)(scores, batch)
    named = BCE.Config(model="strong").build(schema)(scores, batch)
    alone = BCE.Config().build(schema)({"x": scores["strong"]}, batch)
    assert named == alone
    with pytest.raises(InputError, match="no model 'heavy'"):
        BCE.Config(model="heavy").build(schema)(scores, batch)


def test_last_stage_counts_where_sources_are_renamed(make_batch: Any) -> None:
    """A shown candidate without a label is unknown under any name of its source."""
    schema = Schema(
        stages=("coarse", "shown"),
        sources={"easy": ("coarse",), "seen": ("shown",)},
        labels=(Label(name="click"),),
        tasks=(Task(name="t", positive="click"),),
    )
    batch = make_batch(schema)
    nothing = torch.full_like(batch.evidence.targets, torch.nan)
    source = torch.arange(batch.num_candidates) % 2
    evidence = dataclasses.replace(batch.evidence, targets=nothing, source=source)
    logits = drawn(batch).requires_grad_()
    parts = BCE.Config().build(schema)({"m": Scores(logits)}, RequestBatch(batch.inputs, evidence))
    grad = torch.autograd.grad(parts["bce/t"], logits)[0].squeeze(1)
    assert torch.equal(grad != 0, source == 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": ("rnk",)}, "sources: 'rnk' is not known; did you mean 'rank'"),
        ({"source_weights": {"expose": 1.0}}, "did you mean 'exposed'"),
        ({"task_weights": {"clik": 1.0}}, "did you mean 'click'"),
        ({"source_weights": {"rank": -1.0}}, "'rank' is -1.0; expected 0 or more"),
        ({"task_weights": {"buy": math.nan}}, "'buy' is nan"),
    ],
)
def test_bad_options_are_named(schema: Schema, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BCE.Config(**options).build(schema)


def test_table_finds_it_lazily() -> None:
    assert get("bce") is BCE
