"""Both sides once: what belongs to a request or an item is computed once per request or item."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from prerank import models
from prerank.batch import Inputs, RequestBatch
from prerank.log import as_impressions, dedup_impressions
from prerank.models import Model
from prerank.nn import FeatureEncoder
from prerank.schema import Schema

R, K = 5, 4


@pytest.fixture(scope="module")
def even(make_batch: Callable[..., RequestBatch], schemas: dict[str, Schema]) -> RequestBatch:
    """Five requests of four candidates each, with histories."""
    batch = make_batch(schemas["rich"], num_requests=60, max_candidates=K, seed=8)
    length = batch.inputs.offsets.diff()
    events = batch.inputs.history["views"].item_of.lengths
    even = batch.select(((length == K) & (events > 0)).nonzero().squeeze(1)[:R])
    assert even.num_requests == R
    return even


def flops(function: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function()
    return int(counter.get_total_flops())


def built(name: str, schema: Schema) -> Model:
    return models.get(name).Config().build(schema).double().eval()


@pytest.mark.parametrize("name", sorted(models.TABLE))
def test_encoders_see_each_request_and_item_once(
    name: str, even: RequestBatch, schemas: dict[str, Schema]
) -> None:
    model = built(name, schemas["rich"])
    num_items = even.inputs.items.num_rows
    wanted = {"user": R, "context": R, "item": num_items, "candidate": R * K}
    flat = as_impressions(even)
    seen = encoded_rows(model, even.inputs)
    # One call each, of so many rows; a model may leave an owner out.
    assert seen == {owner: [wanted[owner]] for owner in seen}
    assert {"user", "item"} <= set(seen)
    assert encoded_rows(model, dedup_impressions(flat).inputs) == seen
    tiled = encoded_rows(model, flat.inputs)
    assert tiled["user"] == [R * K]
    assert tiled["item"] == [num_items]


def encoded_rows(model: Model, inputs: Inputs) -> dict[str, list[int]]:
    """Rows of each call of an encoder, by the block of the batch that it was given."""
    owners = {id(getattr(inputs, name)): name for name in ("user", "context", "items", "candidate")}
    seen: dict[str, list[int]] = {}

    def note(_: Any, args: tuple[Any, ...]) -> None:
        if id(args[0]) in owners:  # events of a history are a block made on the way
            owner = owners[id(args[0])].replace("items", "item")
            seen.setdefault(owner, []).append(args[0].num_rows)

    encoders = [m for m in model.modules() if isinstance(m, FeatureEncoder)]
    handles = [encoder.register_forward_pre_hook(note) for encoder in encoders]
    with torch.no_grad():
        model(inputs)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", sorted(models.TABLE))
def test_flops_of_the_request_side_fall_exactly_by_the_impressions(
    name: str, even: RequestBatch, schemas: dict[str, Schema]
) -> None:
    """Encoding items is a lookup and counts nothing, so the request state is all user side."""
    model = built(name, schemas["rich"])
    flat = as_impressions(even)
    once = flops(lambda: model.request_state(even.inputs))
    assert once > 0
    assert flops(lambda: model.request_state(flat.inputs)) == K * once
    assert flops(lambda: model.request_state(dedup_impressions(flat).inputs)) == once


@pytest.mark.parametrize("name", sorted(models.TABLE))
def test_flops_of_a_step_are_requests_plus_items_plus_candidates(
    name: str, even: RequestBatch, schemas: dict[str, Schema]
) -> None:
    model = built(name, schemas["rich"])
    inputs = even.inputs
    request, item = model.request_state(inputs), model.item_state(inputs.items)
    num_items = inputs.items.num_rows
    per_item = flops(lambda: model.item_state(inputs.items)) // num_items
    rest = flops(lambda: model(inputs)) - flops(lambda: model.request_state(inputs))
    rest -= flops(lambda: model.score(request, item, inputs.pairs))
    num_scored = inputs.item_of.unique().numel()
    assert num_scored < R * K < num_items
    # Items of the history alone may go without: fewer rows than there are items, never more.
    assert rest in {rows * per_item for rows in (num_scored, R * K, num_items)}
