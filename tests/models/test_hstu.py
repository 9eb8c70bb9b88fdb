"""The sequence pre-ranker: streams merged by time, and requests equal to impressions."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from prerank.batch import RequestBatch
from prerank.config import from_values
from prerank.errors import InputError
from prerank.jagged import lengths_to_offsets
from prerank.models.hstu import HSTU, Layers
from prerank.nn import encode_events
from prerank.objectives import BCE
from prerank.schema import Schema
from prerank.training import FitConfig
from prerank.training.optim import build_optimisers


@pytest.fixture
def schema(schemas: dict[str, Schema]) -> Schema:
    return schemas["rich"]


@pytest.fixture
def batch(schema: Schema, make_batch: Any) -> RequestBatch:
    return make_batch(schema)


def impressions(batch: RequestBatch) -> RequestBatch:
    """Return the same candidates, each with a request of its own."""
    inputs, evidence, of = batch.inputs, batch.evidence, batch.inputs.request_of
    rows = torch.arange(inputs.num_candidates)
    inputs = dataclasses.replace(
        inputs,
        user=inputs.user.select(of),
        context=inputs.context.select(of),
        history={name: h.select(of) for name, h in inputs.history.items()},
        offsets=lengths_to_offsets(torch.ones_like(of)),
        request_of=rows,
    )
    return RequestBatch(inputs, evidence.select(of, rows))


def test_streams_are_merged_by_time(schema: Schema, batch: RequestBatch, checks: Any) -> None:
    torch.manual_seed(0)
    model, inputs = checks.prepared(HSTU.Config().build(schema)), batch.inputs
    items = model.encode_items(inputs.items)
    merged, age = model._merged(inputs.history, items, inputs.num_requests)
    parts = []
    for k, stream in enumerate(schema.streams):
        events = inputs.history[stream]
        tokens = model.event_layers[k](encode_events(events, items, model.events[k], model.tables))
        parts.append((events.age_ms.row_of, events.age_ms.values, tokens))
    row, ages, tokens = (torch.cat(column) for column in zip(*parts, strict=True))
    expected = sorted(range(len(row)), key=lambda j: (int(row[j]), -int(ages[j]), j))
    assert torch.equal(merged.values, tokens[expected])
    assert torch.equal(age, ages[expected])
    assert torch.equal(merged.row_of, row[expected])


def test_one_stream_may_be_chosen(schema: Schema, batch: RequestBatch) -> None:
    config = from_values(HSTU.Config, {"streams": ["views"]}, where="test")
    model = config.build(schema).double().eval()
    inputs = batch.inputs
    other = {**inputs.history, "buys": inputs.history["buys"].select(torch.arange(7).flip(0))}
    changed = dataclasses.replace(inputs, history=other)
    assert torch.equal(model(changed).logits, model(inputs).logits)
    with pytest.raises(InputError, match=r"^hstu: streams has 'view', .*did you mean 'views'"):
        HSTU.Config(streams=("view",)).build(schema)


def test_requests_give_the_gradients_of_impressions(
    schema: Schema, batch: RequestBatch, checks: Any
) -> None:
    torch.manual_seed(0)
    model, objective = checks.prepared(HSTU.Config().build(schema)), BCE.Config().build(schema)
    found = []
    for rows in (batch, impressions(batch)):
        model.zero_grad()
        scores = model(rows.inputs)
        loss = sum(objective({"hstu": scores}, rows).values())
        loss.backward()
        grads = [p.grad.to_dense().clone() for p in model.parameters()]
        found.append([scores.logits.detach(), loss.detach(), *grads])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("table_optimizer", ["rowwise_adagrad", "adagrad", "lazy_adam"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_twenty_updates_end_at_the_weights_of_impressions(
    schema: Schema, make_batch: Any, optimizer: Any, table_optimizer: Any
) -> None:
    """The library's own optimisers and objective, in float64."""
    config = FitConfig(optimizer=optimizer, table_optimizer=table_optimizer, lr=0.01, table_lr=0.02)
    weights = []
    for unit in (lambda rows: rows, impressions):
        torch.manual_seed(0)
        model = HSTU.Config(stack=Layers(width=8)).build(schema).double()
        start = torch.cat([p.detach().flatten() for p in model.parameters()])
        objective, optimisers = BCE.Config().build(schema), build_optimisers(model, config)
        for seed in range(20):
            batch = make_batch(schema, num_requests=4, seed=seed)
            # A request without candidates would keep lazy Adam's momentum going; see its test.
            batch = unit(batch.select(torch.tensor([0, 2, 3])))
            for each in optimisers.values():
                each.zero_grad()
            sum(objective({"hstu": model(batch.inputs)}, batch).values()).backward()
            for each in optimisers.values():
                each.step()
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert float((weights[0] - start).abs().max()) > 0.05
    # Adam divides by the size of a gradient: where one is rounding alone, so is the update.
    assert float((weights[0] - weights[1]).abs().max()) < 1e-7
