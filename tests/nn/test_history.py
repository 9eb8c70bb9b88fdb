"""Pooling of histories against a loop over requests."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from prerank.batch import RequestBatch
from prerank.jagged import Jagged
from prerank.nn import (
    FeatureEncoder,
    FusedTables,
    Histories,
    HistoryPooling,
    encode_events,
    last_events,
)
from prerank.schema import Schema

KINDS = ("mean", "recency", "attention")
DAY = 86_400_000.0


@pytest.fixture
def schema(schemas: dict[str, Schema]) -> Schema:
    return schemas["rich"]


@pytest.fixture
def batch(schema: Schema, make_batch: Any) -> RequestBatch:
    return make_batch(schema)


@pytest.fixture
def tables(schema: Schema) -> FusedTables:
    torch.manual_seed(0)
    return FusedTables.Config(dim=4, init_std=1.0).build_for(schema, schema.features).double()


def made(schema: Schema, tables: FusedTables, **options: Any) -> HistoryPooling:
    torch.manual_seed(1)
    pooling = HistoryPooling(schema, "views", 6, tables, HistoryPooling.Config(**options)).double()
    if pooling.config.empty == "learned":
        torch.nn.init.normal_(pooling.empty)
    return pooling


def items_of(batch: RequestBatch) -> Tensor:
    torch.manual_seed(2)
    return torch.randn(batch.inputs.items.num_rows, 6, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("empty", ["learned", "zero"])
def test_equals_a_loop_over_requests(
    schema: Schema, batch: RequestBatch, tables: FusedTables, kind: str, empty: str
) -> None:
    pooling = made(schema, tables, kind=kind, empty=empty, half_life_days=3.0)
    views, items = batch.inputs.history["views"], items_of(batch)
    half_life = pooling.log_half_life.exp().item() if kind == "recency" else math.nan
    assert kind != "recency" or half_life == pytest.approx(3.0)
    out = pooling(views, items, tables).detach()
    # An event: its item, then its action's embedding, then watch time with its indicator.
    assert pooling.width == out.shape[1] == 6 + 4 + 2
    actions = tables.weight.detach()[tables.rows_of("action")]
    for r in range(batch.num_requests):
        at = slice(*views.item_of.offsets[r : r + 2].tolist())
        events = torch.cat(
            [
                items[views.item_of.values[at]],
                actions[views.categorical.values[at, 0]],
                views.dense.values[at],
            ],
            dim=1,
        )
        if not len(events):
            expected = pooling.empty.detach() if empty == "learned" else torch.zeros(12).double()
        elif kind == "mean":
            expected = events.mean(0)
        elif kind == "recency":
            weights = 0.5 ** (views.age_ms.values[at].double() / DAY / half_life)
            expected = (events * weights[:, None]).sum(0) / weights.sum()
        else:
            weights = torch.softmax(events @ pooling.query.detach() / math.sqrt(12), dim=0)
            expected = (events * weights[:, None]).sum(0)
        torch.testing.assert_close(out[r], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_very_old_and_very_large_events_stay_finite(
    schema: Schema, batch: RequestBatch, tables: FusedTables, kind: str
) -> None:
    pooling = made(schema, tables, kind=kind).float()
    views = batch.inputs.history["views"].to(torch.float32)
    old = Jagged(views.age_ms.values + 10**13, views.age_ms.offsets)
    views = dataclasses.replace(views, age_ms=old)
    out = pooling(views, 1000.0 * items_of(batch).float(), tables.float())
    assert bool(torch.isfinite(out).all())


def test_recency_ignores_a_common_delay(
    schema: Schema, batch: RequestBatch, tables: FusedTables
) -> None:
    """Only differences of age count, so a request a day later sees the same profile."""
    pooling = made(schema, tables, kind="recency")
    views, items = batch.inputs.history["views"], items_of(batch)
    later = dataclasses.replace(
        views, age_ms=Jagged(views.age_ms.values + int(DAY), views.age_ms.offsets)
    )
    torch.testing.assert_close(pooling(later, items, tables), pooling(views, items, tables))


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_reaches_items_and_parameters(
    schema: Schema, batch: RequestBatch, tables: FusedTables, kind: str
) -> None:
    pooling = made(schema, tables, kind=kind)
    items = items_of(batch).requires_grad_()
    out = pooling(batch.inputs.history["views"], items, tables)
    (out * torch.randn_like(out)).sum().backward()
    seen = torch.zeros(len(items), dtype=torch.bool)
    seen[batch.inputs.history["views"].item_of.values] = True
    assert torch.equal((items.grad != 0).any(1), seen)
    assert all(bool((p.grad != 0).any()) for p in pooling.parameters())


def test_all_streams_in_the_order_of_the_schema(
    schema: Schema, batch: RequestBatch, tables: FusedTables
) -> None:
    histories = Histories(schema, 6, tables, HistoryPooling.Config()).double()
    views, buys = histories(batch.inputs.history, items_of(batch), tables)
    assert (views.shape[1], buys.shape[1]) == (12, 6)
    assert histories.width == 18
    lengths = batch.inputs.history["buys"].item_of.lengths
    row = int(torch.argmax(lengths))
    events = batch.inputs.history["buys"].item_of.select(torch.tensor([row])).values
    torch.testing.assert_close(buys[row], items_of(batch)[events].mean(0))


def test_no_stream_gives_nothing(schemas: dict[str, Schema]) -> None:
    schema = schemas["bare"]
    tables = FusedTables.Config().build_for(schema, schema.features)
    histories = Histories(schema, 6, tables, HistoryPooling.Config())
    assert histories({}, torch.zeros(3, 6), tables) == []
    assert histories.width == 0


@pytest.mark.parametrize("limit", [1, 3, 50])
def test_last_events_are_the_most_recent(batch: RequestBatch, limit: int) -> None:
    views = batch.inputs.history["views"]
    last = last_events(views, limit)
    for field in dataclasses.fields(views):
        before, after = getattr(views, field.name), getattr(last, field.name)
        for r in range(batch.num_requests):
            row = torch.tensor([r])
            assert torch.equal(after.select(row).values, before.select(row).values[-limit:])


def test_an_encoded_event_is_item_features_and_age(
    schema: Schema, batch: RequestBatch, tables: FusedTables
) -> None:
    views, items = batch.inputs.history["views"], items_of(batch)
    encoder = FeatureEncoder(schema, "history", tables, stream="views")
    events = encode_events(views, items, encoder, tables)
    own = encoder.events(views, tables)
    for k, u in enumerate(views.item_of.values.tolist()):
        age = math.log1p(views.age_ms.values[k].item() / DAY)
        expected = torch.cat([items[u], own[k], torch.tensor([age], dtype=torch.float64)])
        torch.testing.assert_close(events[k], expected, rtol=1e-12, atol=1e-12)
