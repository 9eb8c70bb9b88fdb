"""HAP's light model against its formula, its starting point and its published size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from prerank.batch import RequestBatch
from prerank.config import from_values
from prerank.models import HAPLight, MLPPreranker
from prerank.nn import MLP, FusedTables
from prerank.recipes import load_recipe
from prerank.schema import Schema
from prerank.world import WorldConfig

SIZES: dict[str, Any] = {"width": 5, "head": MLP.Config(hidden=(8, 6))}


@pytest.fixture
def schema(schemas: dict[str, Schema]) -> Schema:
    return schemas["rich"]


@pytest.fixture
def batch(schema: Schema, make_batch: Any) -> RequestBatch:
    return make_batch(schema)


def num_dense(model: torch.nn.Module) -> int:
    tables = sum(m.weight.numel() for m in model.modules() if isinstance(m, FusedTables))
    return sum(p.numel() for p in model.parameters()) - tables


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("join", ["concat", "sum"])
def test_equals_its_formula(
    schema: Schema, batch: RequestBatch, checks: Any, join: Any, skip: bool
) -> None:
    torch.manual_seed(0)
    config = HAPLight.Config(join=join, skip=skip, **SIZES)
    model, inputs = checks.prepared(config.build(schema)), batch.inputs
    with torch.no_grad():
        items = model.encode.item(inputs.items)
        u = model.user_tower(model.encode.user(inputs, items))[inputs.request_of]
        v = model.item_tower(items)[inputs.item_of]
        context = model.encode.context(inputs.context)[inputs.request_of]
        candidate = model.encode.candidate(inputs.candidate)
        if join == "sum":
            W = model.first.weights
            first = (u + v + u * v) @ W["user"].T
            first = first + context @ W["context"].T + candidate @ W["candidate"].T
        else:
            first = torch.cat([u, context, v, u * v, candidate], dim=1) @ model.first.weight.T
        logits = model.rest(torch.relu(first + model.first.bias))
        if skip:
            x = torch.cat([u, context, v, u * v, candidate], dim=1)
            logits = logits + x @ model.skip.weight.T + model.skip.bias
        torch.testing.assert_close(model(inputs).logits, logits, rtol=1e-11, atol=1e-11)


def test_joined_by_concatenation_it_is_the_mlp_pre_ranker(
    schema: Schema, batch: RequestBatch
) -> None:
    """One code for both: the same seed gives the same bits."""
    models = []
    for kind in (HAPLight, MLPPreranker):
        torch.manual_seed(0)
        models.append(kind.Config(**SIZES).build(schema).double())
    light, mlp = models
    assert torch.equal(light(batch.inputs).logits, mlp(batch.inputs).logits)


def test_every_weight_learns_from_the_first_step(schema: Schema, batch: RequestBatch) -> None:
    """At its very initial values: the skip starts at 0 and 1, and must still move."""
    torch.manual_seed(0)
    model = HAPLight.Config(**SIZES).build(schema).double()
    loss = torch.nn.functional.softplus(model(batch.inputs).logits).sum()
    loss.backward()
    still = [
        n for n, p in model.named_parameters() if p.grad is None or not p.grad.to_dense().any()
    ]
    assert not still


def test_without_skip_the_dot_product_is_not_there_at_the_start(
    schema: Schema, batch: RequestBatch
) -> None:
    """Negative control of the skip: its correlation with the dot product tells which it is."""
    found = {}
    for skip in (True, False):
        torch.manual_seed(0)
        model = HAPLight.Config(skip=skip, **SIZES).build(schema).double()
        with torch.no_grad():
            for p in model.rest.parameters():
                p.zero_()
            logits = model(batch.inputs).logits[:, 0]
            u = model.request_state(batch.inputs).vector[batch.inputs.request_of]
            v = model.item_state(batch.inputs.items).vector[batch.inputs.item_of]
            found[skip] = torch.equal(logits, torch.zeros_like(logits)), (u * v).sum(1) - logits
    assert float(found[True][1].abs().max()) < 1e-12
    assert found[False][0]


@pytest.mark.parametrize(("preset", "expected"), [("study", 0.18e6), ("paper", 1.8e6)])
def test_presets_have_the_published_size(preset: Any, expected: float) -> None:
    schema = WorldConfig().build().schema
    model = HAPLight.Config.preset(preset).build(schema)
    assert num_dense(model) == pytest.approx(expected, rel=0.05)
    changed = HAPLight.Config.preset(preset, join="sum")
    assert (changed.join, changed.width) == ("sum", model.config.width)


def test_only_the_crossing_is_paid_per_candidate(schema: Schema, make_batch: Any) -> None:
    model = HAPLight.Config(join="sum", **SIZES).build(schema).double().eval()
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


def test_items_of_history_alone_pass_no_item_tower(schema: Schema, batch: RequestBatch) -> None:
    model, inputs = HAPLight.Config(**SIZES).build(schema).double().eval(), batch.inputs
    rows: list[int] = []
    model.item_tower.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    few = inputs.select(torch.tensor([0, 3]))
    logits = model(few).logits
    assert rows == [few.item_of.unique().numel()]
    assert rows[0] < few.items.num_rows
    states = model.request_state(few), model.item_state(few.items)
    torch.testing.assert_close(model.score(*states, few.pairs).logits, logits)


def test_the_recipe_is_the_study_preset() -> None:
    values = load_recipe("hap_light").model
    assert values.pop("name") == "hap_light"
    config = from_values(HAPLight.Config, values, where="recipe")
    assert config == HAPLight.Config.preset("study")
