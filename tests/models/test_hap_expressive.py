"""HAP's expressive model: what its attention reads, and the trunk it may share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from prerank.batch import RequestBatch
from prerank.config import from_values
from prerank.log import open_log
from prerank.models import HAPExpressive, HAPLight, OverTrunk, TwoTower
from prerank.nn import MLP, FusedTables
from prerank.objectives import BCE
from prerank.recipes import load_recipe
from prerank.schema import Schema
from prerank.training import FitConfig, load_run
from prerank.training.fit import fit
from prerank.world import WorldConfig, write_world

SIZES: dict[str, Any] = {"attention_width": 6, "width": 5, "head": MLP.Config(hidden=(8, 6))}
LIGHT = HAPLight.Config(width=5, head=MLP.Config(hidden=(7,)))


@pytest.fixture
def schema(schemas: dict[str, Schema]) -> Schema:
    return schemas["rich"]


@pytest.fixture
def batch(schema: Schema, make_batch: Any) -> RequestBatch:
    return make_batch(schema)


def made(schema: Schema, checks: Any, **options: Any) -> HAPExpressive:
    torch.manual_seed(0)
    return checks.prepared(HAPExpressive.Config(**{**SIZES, **options}).build(schema))


def over(schema: Schema, checks: Any, **options: Any) -> tuple[HAPLight, HAPExpressive]:
    """Return a light model off its initial weights, and an expressive one over it."""
    torch.manual_seed(0)
    light = checks.prepared(LIGHT.build(schema)).float()
    config = HAPExpressive.Config(**{**SIZES, **options})
    model = HAPExpressive.over(light, config)
    return light.double(), model.double().eval()


def vectors(model: HAPExpressive, batch: RequestBatch) -> dict[str, Tensor]:
    """Return every token at ``I`` rows, by the model's own towers and encoders."""
    inputs, encode = batch.inputs, model.encode
    items = encode.item(inputs.items)
    users = encode.user(inputs, items)
    own = users.shape[1] - encode.histories.width
    u = model.user_tower(users)[inputs.request_of]
    v = model.item_tower(items)[inputs.item_of]
    return {
        "user": u,
        "user_fields": users[inputs.request_of, :own],
        "history": users[inputs.request_of, own:],
        "context": encode.context(inputs.context)[inputs.request_of],
        "item": v,
        "item_fields": items[inputs.item_of],
        "product": u * v,
        "candidate": encode.candidate(inputs.candidate),
    }


@torch.no_grad()
def test_tokens_equal_torch_attention(schema: Schema, batch: RequestBatch, checks: Any) -> None:
    """All tokens of a candidate through torch's own attention, then the unsplit network."""
    model = made(schema, checks)
    x = vectors(model, batch)
    qkv = torch.stack([model.tokens.projections[name](x[name]) for name in x], dim=1)
    q, k, v = qkv.unflatten(2, (2, 9)).transpose(1, 2).split(3, dim=3)
    attended = torch.nn.functional.scaled_dot_product_attention(q, k, v).flatten(1)
    joined = [x[name] for name in ("user", "context", "item", "product", "candidate")]
    joined = torch.cat(joined, dim=1)
    first = torch.cat([joined, attended], dim=1) @ model.first.weight.T + model.first.bias
    skip = joined @ model.skip.weight.T + model.skip.bias
    expected = skip + model.rest(torch.relu(first))
    torch.testing.assert_close(model(batch.inputs).logits, expected, rtol=1e-11, atol=1e-11)


@torch.no_grad()
def test_history_is_read_up_to_the_last_events(
    schema: Schema, batch: RequestBatch, checks: Any
) -> None:
    """Beyond ``num_events``, events reach a logit through the towers alone."""
    inputs = batch.inputs
    model = made(schema, checks, attention="history", num_events=2)
    state = model.request_state(inputs)
    for events, stream in zip(state.events, schema.streams, strict=True):
        lengths = inputs.history[stream].item_of.lengths
        assert torch.equal(events.lengths, lengths.clamp(max=2))
    all_of_them = made(schema, checks, attention="history", num_events=50)
    assert not torch.equal(all_of_them(inputs).logits, model(inputs).logits)


def test_attention_depends_on_the_candidate(
    schema: Schema, batch: RequestBatch, checks: Any
) -> None:
    """Two candidates of one request get different weights, with either reading."""
    inputs = batch.inputs
    for attention in ("tokens", "history"):
        model = made(schema, checks, attention=attention)
        seen: list[Tensor] = []
        model._more = lambda *args, _more=model._more, _seen=seen: (  # type: ignore[method-assign]
            _seen.append(_more(*args)["attended"]) or {"attended": _seen[-1]}
        )
        model(inputs)
        first = seen[0][inputs.request_of == inputs.request_of[0]]
        assert float((first - first[:1]).abs().max().detach()) > 1e-6


@torch.no_grad()
def test_without_attention_it_is_a_deeper_light_model(
    schema: Schema, batch: RequestBatch, checks: Any
) -> None:
    model = made(schema, checks, attention="none")
    light = HAPLight.Config(width=5, head=model.config.head).build(schema).double()
    light.load_state_dict(model.state_dict())
    assert torch.equal(light.eval()(batch.inputs).logits, model(batch.inputs).logits)


@pytest.mark.parametrize("attention", ["tokens", "history"])
def test_every_weight_learns_from_the_first_step(
    schema: Schema, batch: RequestBatch, attention: Any
) -> None:
    torch.manual_seed(0)
    model = HAPExpressive.Config(**SIZES, attention=attention).build(schema).double()
    torch.nn.functional.softplus(model(batch.inputs).logits).sum().backward()
    still = [
        n for n, p in model.named_parameters() if p.grad is None or not p.grad.to_dense().any()
    ]
    assert not still


@pytest.mark.parametrize(("preset", "expected"), [("study", 0.62e6), ("paper", 6.2e6)])
def test_presets_have_the_published_size(preset: Any, expected: float) -> None:
    schema = WorldConfig().build().schema
    model = HAPExpressive.Config.preset(preset).build(schema)
    tables = sum(m.weight.numel() for m in model.modules() if isinstance(m, FusedTables))
    dense = sum(p.numel() for p in model.parameters()) - tables
    assert dense == pytest.approx(expected, rel=0.05)
    depth = len(model.config.head.hidden)
    assert depth > len(HAPLight.Config.preset(preset).head.hidden), "N > M"


@pytest.mark.parametrize("attention", ["tokens", "history", "none"])
@torch.no_grad()
def test_states_of_the_trunk_give_the_same_logits(
    schema: Schema, batch: RequestBatch, checks: Any, attention: Any
) -> None:
    light, model = over(schema, checks, attention=attention)
    inputs = batch.inputs
    assert isinstance(model, OverTrunk)
    trunk = light.request_state(inputs), light.item_state(inputs.items)
    states = (
        model.request_state_from(trunk[0], inputs),
        model.item_state_from(trunk[1], inputs.items),
    )
    passed = model.score(*states, inputs.pairs).logits
    checks.close(passed, model(inputs).logits)
    checks.states_close(states[0].light, trunk[0])
    checks.states_close(states[1].light, trunk[1])
    # The states that are passed are what is used, not computed again.
    zeros = trunk[1].to(torch.float64)._rebuild(torch.zeros_like)
    other = model.item_state_from(zeros, inputs.items)
    assert not torch.equal(model.score(states[0], other, inputs.pairs).logits, passed)


def test_a_tower_is_not_computed_twice(schema: Schema, batch: RequestBatch, checks: Any) -> None:
    light, model = over(schema, checks)
    trunk = light.request_state(batch.inputs), light.item_state(batch.inputs.items)
    for part in (model.light.user_tower, model.light.item_tower):
        part.register_forward_hook(lambda *_: pytest.fail("a tower of the trunk ran again"))
    model.request_state_from(trunk[0], batch.inputs)
    model.item_state_from(trunk[1], batch.inputs.items)


def test_it_knows_its_trunk(schema: Schema, checks: Any) -> None:
    light, model = over(schema, checks)
    assert model.is_over(light)
    assert model.is_over(model.light)
    assert not model.is_over(TwoTower.Config().build(schema))
    assert not made(schema, checks).is_over(light)
    with torch.no_grad():
        light.item_tower.layers[0].bias[0] += 1e-6
    assert not model.is_over(light), "one changed weight is another model"


def trained(model: HAPExpressive, batch: RequestBatch) -> None:
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()
    for _ in range(3):
        optimiser.zero_grad()
        torch.nn.functional.softplus(model(batch.inputs).logits).sum().backward()
        optimiser.step()
    model.eval()


def test_a_frozen_trunk_stays_as_it_is(schema: Schema, batch: RequestBatch, checks: Any) -> None:
    light, model = over(schema, checks)
    before = model(batch.inputs).logits.detach()
    trained(model, batch)
    assert not torch.equal(model(batch.inputs).logits, before)
    assert model.is_over(light)
    assert torch.equal(model.light(batch.inputs).logits, light(batch.inputs).logits)


def test_a_joint_trunk_learns_but_its_head(
    schema: Schema, batch: RequestBatch, checks: Any
) -> None:
    """Negative control of the frozen one; the model it came from is left alone either way."""
    light, model = over(schema, checks, frozen=False)
    untouched = {name: value.clone() for name, value in light.state_dict().items()}
    trained(model, batch)
    assert not model.is_over(light)
    assert all(torch.equal(value, untouched[n]) for n, value in light.state_dict().items())
    moved = {
        name.split(".")[0]
        for name, value in model.light.state_dict().items()
        if not torch.equal(value, untouched[name])
    }
    assert moved == {"encode", "user_tower", "item_tower"}


def test_a_frozen_trunk_has_no_dropout(schema: Schema, batch: RequestBatch) -> None:
    """Its states must be those that the light tier computes."""
    trunk = HAPLight.Config(tower=MLP.Config(hidden=(8,), dropout=0.5), width=5)
    model = HAPExpressive.Config(**SIZES, trunk=trunk).build(schema).double().train()
    one, two = (model.item_state(batch.inputs.items).vector for _ in range(2))
    assert torch.equal(one, two)
    joint = HAPExpressive.Config(**SIZES, trunk=trunk, frozen=False).build(schema).double().train()
    one, two = (joint.item_state(batch.inputs.items).vector for _ in range(2))
    assert not torch.equal(one, two)


def test_over_starts_from_the_trunk(schema: Schema, batch: RequestBatch, checks: Any) -> None:
    """Its linear part is the light model's; the configuration alone builds the same layout."""
    light, model = over(schema, checks)
    assert torch.equal(model.skip.weight, light.skip.weight)
    config = msgspec.structs.replace(HAPExpressive.Config(**SIZES), trunk=light.config)
    assert model.config == config
    other = config.build(schema).double().eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(batch.inputs).logits, model.eval()(batch.inputs).logits)


def test_a_run_over_a_light_run_is_saved_and_loaded(tmp_path: Path) -> None:
    """The ordinary way: light run, expressive run over it, both loaded from their folders."""
    world = WorldConfig(
        num_users=30, num_items=300, num_requests=24, num_days=3, num_retrieved=40, num_preranked=20
    )
    write_world(tmp_path / "log", world)
    part = open_log(tmp_path / "log").all()
    schema, config = part.log.schema, FitConfig(batch_size=8)
    objective = BCE.Config().build(schema)

    def run(model: Any, name: str) -> Any:
        fit(model, part, objective, config=config, out=tmp_path / name, progress=False)
        return load_run(tmp_path / name)

    light = run(LIGHT.build(schema), "light")
    model = run(HAPExpressive.over(light, HAPExpressive.Config(**SIZES)), "expressive")
    assert model.is_over(light)
    inputs = next(iter(part.batches(model.transforms, 24))).inputs
    again = next(iter(part.batches(light.transforms, 24))).inputs
    assert torch.equal(inputs.items.categorical, again.items.categorical)
    states = (
        model.request_state_from(light.request_state(again), inputs),
        model.item_state_from(light.item_state(again.items), inputs.items),
    )
    with torch.no_grad():
        passed = model.score(*states, inputs.pairs).logits
        torch.testing.assert_close(passed, model(inputs).logits)


def test_the_recipe_is_the_study_preset() -> None:
    values = load_recipe("hap_expressive").model
    assert values.pop("name") == "hap_expressive"
    config = from_values(HAPExpressive.Config, values, where="recipe")
    assert config == HAPExpressive.Config.preset("study")
