"""DIN against its formula, one candidate and one event at a time."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from prerank.batch import RequestBatch
from prerank.jagged import Jagged
from prerank.models.din import DIN, TargetAttention
from prerank.nn import MLP
from prerank.schema import Schema


@pytest.fixture
def schema(schemas: dict[str, Schema]) -> Schema:
    return schemas["rich"]


@pytest.fixture
def batch(schema: Schema, make_batch: Any) -> RequestBatch:
    return make_batch(schema)


def attended_by_hand(attention: TargetAttention, events: torch.Tensor, key: torch.Tensor) -> Any:
    """Pool events ``[S, D]`` for one key, as the paper writes it."""
    logits = []
    for event in events:
        hidden = (
            attention.of_key(key) + attention.of_event(event) + attention.of_product(key * event)
        )
        logits.append(attention.out(torch.relu(hidden))[0])
    if not logits:
        return torch.zeros_like(key)
    weights = torch.stack(logits)
    if attention.weights == "softmax":
        weights = torch.softmax(weights, dim=0)
    return weights @ events


@pytest.mark.parametrize("weights", ["softmax", "plain"])
def test_equals_its_formula(schema: Schema, batch: RequestBatch, checks: Any, weights: Any) -> None:
    torch.manual_seed(0)
    config = DIN.Config(width=5, weights=weights, head=MLP.Config(hidden=(8, 6)))
    model, inputs = checks.prepared(config.build(schema)), batch.inputs
    with torch.no_grad():
        actual = model(inputs).logits
        items = model.item(inputs.items, model.tables)
        users = model.user_layer(model.user(inputs.user, model.tables))
        contexts = model.context(inputs.context, model.tables)
        candidates = model.candidate(inputs.candidate, model.tables)
        events = model.request_state(inputs).events
        for i in range(inputs.num_candidates):
            r, u = inputs.request_of[i], inputs.item_of[i]
            key, user = model.key_layer(items[u]), users[r]
            pooled = [
                attended_by_hand(a, e.select(r.view(1)).values, key)
                for a, e in zip(model.attentions, events, strict=True)
            ]
            crosses = [key * x for x in (user, *pooled)]
            x = torch.cat([user, contexts[r], key, *pooled, *crosses, candidates[i]])
            hidden = torch.relu(model.first.weight @ x + model.first.bias)
            torch.testing.assert_close(actual[i], model.rest(hidden), rtol=1e-11, atol=1e-11)


def test_plain_weights_keep_the_intensity_of_an_interest() -> None:
    """The paper's point: an event that stands there twice counts twice, unless weights sum to 1."""
    torch.manual_seed(0)
    event, key = torch.randn(1, 4), torch.randn(1, 4)
    one, two = Jagged(event, torch.tensor([0, 1])), Jagged(event.repeat(2, 1), torch.tensor([0, 2]))
    request_of = torch.tensor([0])
    for weights, factor in (("plain", 2.0), ("softmax", 1.0)):
        attention = TargetAttention(4, 3, weights)
        once, twice = attention(one, key, request_of), attention(two, key, request_of)
        torch.testing.assert_close(twice, factor * once)


def test_attention_depends_on_the_candidate(
    schema: Schema, batch: RequestBatch, checks: Any
) -> None:
    """Two items of one request pool the same history differently; a mean would not."""
    torch.manual_seed(0)
    model = checks.prepared(DIN.Config(width=5).build(schema))
    streams = zip(model.attentions, model.request_state(batch.inputs).events, strict=True)
    attention, events = next((a, e) for a, e in streams if e.lengths.max() > 1)
    r = int(events.lengths.argmax())
    keys = model.item_state(batch.inputs.items).key[:2]
    pooled = attention(events, keys, torch.tensor([r, r])).detach()
    assert float((pooled[0] - pooled[1]).abs().max()) > 1e-6


def test_more_candidates_cost_the_crossing_only(schema: Schema, batch: RequestBatch) -> None:
    """States do not change with the candidates, so they can be cached."""
    model = DIN.Config(width=5).build(schema).double().eval()
    inputs = batch.inputs
    states = model.request_state(inputs), model.item_state(inputs.items)
    few = inputs.pairs.select(torch.tensor([3, 1]))
    torch.testing.assert_close(
        model.score(*states, few).logits, model(inputs).logits[torch.tensor([3, 1])]
    )
    assert {f.name for f in dataclasses.fields(states[0])} == {"vector", "first", "events"}


@pytest.mark.parametrize("weights", ["softmax", "plain"])
def test_blocks_of_candidates_are_the_attention_key_by_key(weights: Any) -> None:
    """Values and gradients: requests of several blocks or none, candidates in any order."""
    torch.manual_seed(0)
    attention = TargetAttention(6, 3, weights).double()
    lengths = torch.tensor([3, 0, 9, 2])
    values = torch.randn(14, 6, dtype=torch.float64, requires_grad=True)
    key_ID = torch.randn(60, 6, dtype=torch.float64, requires_grad=True)
    request_of = torch.tensor([0, 1, 2])[torch.randint(3, (60,))]
    events = Jagged.from_lengths(values, lengths)
    expected = torch.stack(
        [
            attended_by_hand(attention, events.select(r.view(1)).values, key)
            for r, key in zip(request_of, key_ID, strict=True)
        ]
    )
    actual = attention(events, key_ID, request_of)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    inputs, signs = [values, key_ID, *attention.parameters()], torch.randn_like(actual)
    pairs = (torch.autograd.grad(x, inputs, signs) for x in (actual, expected))
    for got, wanted in zip(*pairs, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    assert attention(events, key_ID[:0], request_of[:0]).shape == (0, 6)
