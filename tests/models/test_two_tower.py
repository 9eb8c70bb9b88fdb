"""The two tower against its formula, one candidate at a time."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from prerank.batch import RequestBatch
from prerank.errors import InputError
from prerank.models import get
from prerank.models.two_tower import TwoTower
from prerank.schema import Schema


@pytest.fixture
def schema(schemas: dict[str, Schema]) -> Schema:
    return schemas["rich"]


@pytest.fixture
def batch(schema: Schema, make_batch: Any) -> RequestBatch:
    return make_batch(schema)


def made(schema: Schema, checks: Any, **options: Any) -> TwoTower:
    torch.manual_seed(0)
    return checks.prepared(TwoTower.Config(width=5, **options).build(schema))


@pytest.mark.parametrize("cosine", [False, True])
def test_equals_its_formula(schema: Schema, batch: RequestBatch, checks: Any, cosine: bool) -> None:
    model, inputs = made(schema, checks, cosine=cosine), batch.inputs
    with torch.no_grad():
        actual = model(inputs).logits
        items = model.encode.item(inputs.items)
        users = model.encode.user(inputs, items)
        contexts = model.encode.context(inputs.context)
        candidates = model.encode.candidate(inputs.candidate)
        for i in range(inputs.num_candidates):
            r, u = inputs.request_of[i], inputs.item_of[i]
            query = model.user_tower(users[r : r + 1])[0] + model.context_query(contexts[r])
            vector = model.item_tower(items[u : u + 1])[0]
            for t in range(2):
                q = query[5 * t : 5 * t + 5]
                dot = q @ vector
                if cosine:
                    dot = dot / q.norm() / vector.norm() * model.log_scale_T[t].exp()
                bias = model.item_bias(items[u])[t] + model.context_bias(contexts[r])[t]
                expected = dot + bias + model.candidate_linear(candidates[i])[t]
                torch.testing.assert_close(actual[i, t], expected, rtol=1e-11, atol=1e-11)


def test_initial_cosine_is_bounded_by_the_temperature(schema: Schema, batch: RequestBatch) -> None:
    torch.manual_seed(0)
    model = TwoTower.Config(cosine=True, temperature=0.25).build(schema).double()
    request, item = model.request_state(batch.inputs), model.item_state(batch.inputs.items)
    torch.testing.assert_close(item.vector.norm(dim=-1), torch.ones(25).double())
    no_bias = dataclasses.replace(item, bias=torch.zeros_like(item.bias))
    with torch.no_grad():
        for part in (model.context_bias.weight, model.context_bias.bias):
            part.zero_()
        model.candidate_linear.weight.zero_()
    logits = model.score(request, no_bias, batch.inputs.pairs).logits
    assert bool((logits.abs() <= 4.0 + 1e-9).all())


def test_context_reorders_candidates_without_a_new_request_state(
    schema: Schema, batch: RequestBatch, checks: Any
) -> None:
    """The context moves the query, so it can change the order, not only add a constant."""
    model, inputs = made(schema, checks), batch.inputs
    states = model.request_state(inputs), model.item_state(inputs.items)
    other = dataclasses.replace(
        inputs.pairs, context=dataclasses.replace(inputs.context, dense=inputs.context.dense + 3.0)
    )
    change = (model.score(*states, other).logits - model.score(*states, inputs.pairs).logits)[:, 0]
    of_first = change[inputs.request_of == 0]
    assert len(of_first) > 1
    assert float(of_first.detach().std()) > 1e-3


def test_tasks_share_one_item_vector(schema: Schema, batch: RequestBatch, checks: Any) -> None:
    model = made(schema, checks)
    assert model.item_state(batch.inputs.items).vector.shape == (25, 5)
    assert model.request_state(batch.inputs).vector.shape == (7, 2, 5)


def test_excluded_features_are_not_read(schema: Schema, batch: RequestBatch, checks: Any) -> None:
    model = made(schema, checks, exclude=("user.user", "ctr", "action"))
    assert "user" not in model.encode.tables.vocabularies
    inputs = batch.inputs
    other = dataclasses.replace(
        inputs,
        user=dataclasses.replace(inputs.user, categorical=inputs.user.categorical.flip(0)),
        candidate=dataclasses.replace(inputs.candidate, dense=inputs.candidate.dense + 1.0),
    )
    assert torch.equal(checks.logits(model, other), checks.logits(model, inputs))
    with pytest.raises(InputError, match="no feature 'usr'"):
        TwoTower.Config(exclude=("usr",)).build(schema)


def test_table_finds_it_and_names_the_nearest() -> None:
    assert get("two_tower") is TwoTower
    with pytest.raises(InputError, match="did you mean 'two_tower'"):
        get("twotower")
