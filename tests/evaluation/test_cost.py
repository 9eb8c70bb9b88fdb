"""Parameters and FLOPs by hand; times that grow with the work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from prerank.batch import Features, Inputs, RequestBatch
from prerank.evaluation.cost import _Matrices, _Memory, count_parameters, measure_cost
from prerank.models import MLPPreranker, TwoTower
from prerank.nn import MLP, FusedTables, HistoryPooling
from prerank.schema import Schema

D, E, H = 8, 4, 6
SMALL: dict[str, Any] = {
    "width": D,
    "tables": FusedTables.Config(dim=E),
    "tower": MLP.Config(hidden=(H,)),
}


def inputs_of(schema: Schema, make_batch: Callable[..., RequestBatch]) -> Inputs:
    return make_batch(schema, num_requests=9, dtype=torch.float32).inputs


def test_parameters_by_hand(schemas: dict[str, Schema]) -> None:
    """Items with a category, a history of items, one task; an empty history is learned."""
    schema = schemas["history"]
    model = TwoTower.Config(**SMALL).build(schema)
    item = 2 * E  # item and category
    user_tower = item * H + H + H * D + D
    item_tower = item * H + H + H * D + D
    item_bias = item + 1
    assert count_parameters(model) == (
        user_tower + item_tower + item_bias + item,
        (schema.size("item") + schema.size("category")) * E,
    )


def test_flops_of_a_dot_product_by_hand(
    schemas: dict[str, Schema], make_batch: Callable[..., RequestBatch]
) -> None:
    schema = schemas["history"]
    model = TwoTower.Config(**SMALL).build(schema).eval()
    cost = measure_cost(model, inputs_of(schema, make_batch))
    assert cost.flops_per_candidate == 2 * D + 1  # a product, a sum, an added bias


def test_flops_with_context_and_candidate_features_by_hand(
    schemas: dict[str, Schema], make_batch: Callable[..., RequestBatch]
) -> None:
    """Matrix products per request (context) and per candidate, besides the dot product."""
    schema, num_tasks = schemas["rich"], 2
    model = TwoTower.Config(**SMALL).build(schema).eval()
    inputs = inputs_of(schema, make_batch)
    context, candidate = 2 * E + 2, E + 2  # device, hour, load; channel, ctr
    per_request = 2 * context * num_tasks * (D + 1) + num_tasks * D
    per_candidate = num_tasks * (2 * D + 2 * candidate + 3)
    total = per_request * inputs.num_requests + per_candidate * inputs.num_candidates
    cost = measure_cost(model, inputs)
    assert cost.flops_per_candidate == pytest.approx(total / inputs.num_candidates)


def test_flops_grow_with_the_head_as_its_matrices(
    schemas: dict[str, Schema], make_batch: Callable[..., RequestBatch]
) -> None:
    schema = schemas["history"]
    inputs = inputs_of(schema, make_batch)
    flops = {}
    for width in (32, 64):
        head = MLP.Config(hidden=(16, width))
        model = MLPPreranker.Config(**SMALL, head=head).build(schema).eval()
        flops[width] = measure_cost(model, inputs).flops_per_candidate
    # Each hidden unit more: 16 multiply-adds in, one out.
    assert flops[64] - flops[32] == 32 * 2 * 17


def test_products_are_counted_as_torch_counts_them() -> None:
    layer, x = torch.nn.Linear(8, 3), torch.randn(2, 3, 5, 8)
    calls: list[Callable[[], object]] = [
        lambda: layer(x),
        lambda: x @ x.mT,
        lambda: torch.einsum("abcd,ebcd->aeb", x, x),
    ]
    for call in calls:
        with torch.inference_mode():
            with FlopCounterMode(display=False) as expected:
                call()
            with _Matrices() as found:
                call()
        assert found.flops == expected.get_total_flops() > 0


class Watched(TwoTower):
    """Notes the items of the requests it is asked for."""

    items: list[Features]

    def request_state(self, inputs: Inputs) -> Any:
        self.items.append(inputs.items)
        assert inputs.num_candidates == 0
        return super().request_state(inputs)


@pytest.mark.parametrize("name", ["bare", "history", "rich"])
def test_requests_pay_for_the_items_of_their_histories_only(
    name: str, schemas: dict[str, Schema], make_batch: Callable[..., RequestBatch]
) -> None:
    schema = schemas[name]
    inputs = inputs_of(schema, make_batch)
    model = Watched(schema, TwoTower.Config(**SMALL, history=HistoryPooling.Config()))
    model.eval()
    model.items = []
    measure_cost(model, inputs)
    events = [h.item_of.values for h in inputs.history.values()]
    distinct = torch.cat([*events, torch.zeros(0, dtype=torch.int64)]).unique()
    assert {items.num_rows for items in model.items} == {distinct.numel()}
    expected = inputs.items.select(distinct)
    assert torch.equal(model.items[0].categorical, expected.categorical)


def test_times_are_per_row_and_grow_with_the_work(
    schemas: dict[str, Schema], make_batch: Callable[..., RequestBatch]
) -> None:
    schema = schemas["history"]
    inputs = make_batch(
        schema, num_requests=64, num_items=30, max_candidates=200, dtype=torch.float32
    ).inputs
    small, large = (
        measure_cost(TwoTower.Config(width=width).build(schema).eval(), inputs)
        for width in (4, 1024)
    )
    for name in ("us_per_request", "us_per_item", "us_per_candidate"):
        assert 0 < getattr(small, name) < 10_000
    assert large.us_per_candidate > 3 * small.us_per_candidate
    assert large.flops_per_candidate == 2 * 1024 + 1


def test_peak_memory_counts_what_lives_at_once() -> None:
    """Two matrices of 1 MiB at most; what is freed or given does not count."""
    given = torch.ones(512, 512)
    with _Memory() as memory:
        first = given + 1
        second = first * 2
        del first
        third = second - 1
        del second
        third.view(-1)
    assert memory.peak == 2 * 2**20
    with _Memory() as memory:
        given.add_(1)
    assert memory.peak == 0


def test_where_and_at_which_size_it_was_measured(
    schemas: dict[str, Schema], make_batch: Callable[..., RequestBatch]
) -> None:
    inputs = inputs_of(schemas["history"], make_batch)
    cost = measure_cost(TwoTower.Config(**SMALL).build(schemas["history"]).eval(), inputs)
    assert (cost.num_requests, cost.num_candidates) == (9, inputs.num_candidates)
    assert cost.device
    assert cost.threads == torch.get_num_threads()
    assert cost.peak_mb * 2**20 >= 4 * D * inputs.items.num_rows  # item states at least
