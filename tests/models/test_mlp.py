"""The MLP pre-ranker against its formula, its starting point and its cost."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from prerank.batch import RequestBatch
from prerank.models.mlp import MLPPreranker
from prerank.nn import MLP
from prerank.schema import Schema


@pytest.fixture
def schema(schemas: dict[str, Schema]) -> Schema:
    return schemas["rich"]


@pytest.fixture
def batch(schema: Schema, make_batch: Any) -> RequestBatch:
    return make_batch(schema)


CONFIG = MLPPreranker.Config(width=5, head=MLP.Config(hidden=(8, 6)))


def test_equals_the_concatenated_network(schema: Schema, batch: RequestBatch, checks: Any) -> None:
    torch.manual_seed(0)
    model, inputs = checks.prepared(CONFIG.build(schema)), batch.inputs
    with torch.no_grad():
        items = model.encode.item(inputs.items)
        users = model.encode.user(inputs, items)
        u = model.user_tower(users)[inputs.request_of]
        v = model.item_tower(items)[inputs.item_of]
        context = model.encode.context(inputs.context)[inputs.request_of]
        candidate = model.encode.candidate(inputs.candidate)
        x = torch.cat([u, context, v, u * v, candidate], dim=1)
        hidden = torch.relu(x @ model.first.weight.T + model.first.bias)
        skip = x @ model.skip.weight.T + model.skip.bias
        torch.testing.assert_close(
            model(inputs).logits, skip + model.rest(hidden), rtol=1e-11, atol=1e-11
        )


def test_starts_as_the_dot_product_plus_the_head(schema: Schema, batch: RequestBatch) -> None:
    torch.manual_seed(0)
    model, inputs = CONFIG.build(schema).double(), batch.inputs
    with torch.no_grad():
        for p in model.rest.parameters():
            p.zero_()
        u = model.request_state(inputs).vector[inputs.request_of]
        v = model.item_state(inputs.items).vector[inputs.item_of]
        dot = (u * v).sum(1, keepdim=True).expand(-1, 2)
        torch.testing.assert_close(model(inputs).logits, dot, rtol=1e-12, atol=1e-12)


def test_only_the_crossing_is_paid_per_candidate(schema: Schema, make_batch: Any) -> None:
    """Twice the candidates of the same requests and items: the extra cost is the formula's."""
    model = CONFIG.build(schema).double().eval()
    inputs = make_batch(schema).inputs
    states = model.request_state(inputs), model.item_state(inputs.items)

    def flops(repeats: int) -> int:
        every = torch.arange(inputs.num_candidates).repeat(repeats)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.score(*states, inputs.pairs.select(every))
        return counter.get_total_flops()

    extra = (flops(3) - flops(1)) / (2 * inputs.num_candidates)
    D, C, H, T = 5, model.encode.candidate_width, 8, 2
    assert extra == 2 * ((D + C) * (H + T) + 8 * 6 + 6 * T)


def test_names_are_found_without_importing_the_models() -> None:
    code = (
        "import sys, prerank.models, prerank.objectives; "
        "assert 'torch' not in sys.modules; "
        "prerank.models.TwoTower; "
        "assert 'prerank.models.mlp' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
