"""Cascades of the real models, on batches of every kind of feature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from prerank.batch import RequestBatch
from prerank.cascade import Cascade, Tier
from prerank.models import Model, get
from prerank.schema import Schema


def build(name: str, schema: Schema, seed: int) -> Model:
    torch.manual_seed(seed)
    kind: Any = get(name)
    model: Model = kind.Config().build(schema).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("forward", [2, 0.4])
def test_orders_equal_the_models_own_logits(
    any_schema: Schema,
    make_batch: Callable[..., RequestBatch],
    by_hand: Any,
    forward: float,
) -> None:
    """Every tier scores all candidates here; the cascade scored only the forwarded ones."""
    inputs = make_batch(any_schema, num_requests=9, max_candidates=9, seed=4).inputs
    models = [build("two_tower", any_schema, 0), build("mlp", any_schema, 1)]
    cascade = Cascade([Tier(models[0], forward=forward), Tier(models[1])])
    order = cascade.rank([inputs, inputs])
    lengths = inputs.offsets.diff().tolist()
    with torch.inference_mode():
        values = [model(inputs).logits[:, 0].tolist() for model in models]
    assert (order.position.tolist(), order.tier.tolist()) == by_hand(lengths, values, [forward])


def test_request_rows_stay_complete_for_later_tiers(
    schemas: dict[str, Schema], make_batch: Callable[..., RequestBatch]
) -> None:
    """Histories and contexts of all requests are there when few candidates are."""
    schema = schemas["rich"]
    inputs = make_batch(schema, num_requests=6, seed=1).inputs
    light, strong = build("two_tower", schema, 0), build("mlp", schema, 1)
    cascade = Cascade([Tier(light, forward=1), Tier(strong)])
    whole = cascade.rank([inputs, inputs])
    for r in range(inputs.num_requests):
        alone = inputs.select(torch.tensor([r]))
        order = cascade.rank([alone, alone])
        mine = inputs.request_of == r
        assert torch.equal(order.position, whole.position[mine])
        assert torch.equal(order.tier, whole.tier[mine])
