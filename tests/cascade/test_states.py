"""A model over a trunk starts from the states of the trunk's tier, and says the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from prerank.batch import RequestBatch
from prerank.cascade import Cascade, Tier
from prerank.cascade.states import States
from prerank.models import get
from prerank.schema import Schema


@pytest.fixture
def pair(schemas: dict[str, Schema]) -> tuple[Any, Any]:
    """A light model and an expressive one over it, both with weights that matter."""
    schema = schemas["rich"]
    torch.manual_seed(0)
    light = get("hap_light").Config.preset("study").build(schema)  # type: ignore[attr-defined]
    kind: Any = get("hap_expressive")
    with torch.no_grad():
        for p in light.parameters():
            p.add_(0.1 * torch.randn_like(p))
    strong = kind.over(light, kind.Config.preset("study"))
    with torch.no_grad():
        for name, p in strong.named_parameters():
            if not name.startswith("light."):
                p.add_(0.1 * torch.randn_like(p))
    return light.double().eval(), strong.double().eval()


class Counted:
    """Counts the rows that a module is run on."""

    def __init__(self, module: Any) -> None:
        self.rows: list[int] = []
        module.register_forward_hook(lambda _, args, __: self.rows.append(args[0].shape[0]))


def test_the_trunk_runs_once_and_logits_stay(
    pair: tuple[Any, Any], schemas: dict[str, Schema], make_batch: Callable[..., RequestBatch]
) -> None:
    light, strong = pair
    inputs = make_batch(schemas["rich"], num_requests=7, max_candidates=9, seed=2).inputs
    twin = inputs.select(torch.arange(inputs.num_requests))  # equal, but another object
    cascade = Cascade([Tier(light, forward=0.5), Tier(strong)])
    below, above = Counted(light.item_tower), Counted(strong.light.item_tower)
    shared = cascade.rank([inputs, inputs])
    assert (len(below.rows), len(above.rows)) == (1, 0)
    apart = cascade.rank([inputs, twin])
    assert (len(below.rows), len(above.rows)) == (2, 1)
    assert torch.equal(shared.position, apart.position)
    assert torch.equal(shared.tier, apart.tier)
    chosen = (shared.tier == 1).nonzero().squeeze(1)
    with torch.inference_mode():
        states = States(cascade.models, [inputs, inputs])
        states.score(0, torch.arange(inputs.num_candidates))
        torch.testing.assert_close(
            states.score(1, chosen).logits, strong(inputs).logits[chosen], rtol=1e-12, atol=1e-12
        )


def test_a_trunk_that_was_trained_on_is_no_trunk_any_more(
    pair: tuple[Any, Any], schemas: dict[str, Schema], make_batch: Callable[..., RequestBatch]
) -> None:
    light, strong = pair
    inputs = make_batch(schemas["rich"], num_requests=5, seed=3).inputs
    cascade = Cascade([Tier(light, forward=0.5), Tier(strong)])
    cascade.rank([inputs, inputs])
    above = Counted(strong.light.item_tower)
    with torch.no_grad():
        next(light.item_tower.parameters()).add_(0.5)
    order = cascade.rank([inputs, inputs])
    assert len(above.rows) == 1
    twin = inputs.select(torch.arange(inputs.num_requests))
    assert torch.equal(order.position, cascade.rank([inputs, twin]).position)


def test_tiers_between_do_not_matter(
    pair: tuple[Any, Any], schemas: dict[str, Schema], make_batch: Callable[..., RequestBatch]
) -> None:
    light, strong = pair
    schema = schemas["rich"]
    inputs = make_batch(schema, num_requests=6, max_candidates=9, seed=4).inputs
    kind: Any = get("two_tower")
    middle = kind.Config().build(schema).double().eval()
    tiers = [Tier(light, forward=0.8), Tier(middle, forward=0.5), Tier(strong)]
    below, above = Counted(light.item_tower), Counted(strong.light.item_tower)
    shared = Cascade(tiers).rank([inputs, inputs, inputs])
    assert (len(below.rows), len(above.rows)) == (1, 0)
    twin = inputs.select(torch.arange(inputs.num_requests))
    assert torch.equal(shared.position, Cascade(tiers).rank([inputs, inputs, twin]).position)
