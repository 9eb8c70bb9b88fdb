"""The feature encoder against hand-made concatenations."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from prerank.batch import RequestBatch
from prerank.errors import InputError
from prerank.nn import FeatureEncoder, FusedTables, used_features
from prerank.schema import Schema


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


def rows(tables: FusedTables, vocabulary: str) -> torch.Tensor:
    return tables.weight.detach()[tables.rows_of(vocabulary)]


def test_every_kind_side_by_side(schema: Schema, batch: RequestBatch, tables: FusedTables) -> None:
    items = batch.inputs.items
    encoder = FeatureEncoder(schema, "item", tables)
    out = encoder(items, tables)
    # item, category; tags; price with indicator; image.
    assert encoder.width == 2 * 4 + 4 + 2 + 3
    tags = torch.stack(
        [
            rows(tables, "tag")[tags].mean(0) if len(tags) else torch.zeros(4).double()
            for tags in items.multi[0].values.split(items.multi[0].lengths.tolist())
        ]
    )
    expected = torch.cat(
        [
            rows(tables, "item")[items.categorical[:, 0]],
            rows(tables, "category")[items.categorical[:, 1]],
            tags,
            items.dense,
            items.vectors[0],
        ],
        dim=1,
    )
    torch.testing.assert_close(out.detach(), expected)


@pytest.mark.parametrize("exclude", ["category", "item.item", "tags", "item.price", "image"])
def test_excluded_feature_has_no_column(
    schema: Schema, batch: RequestBatch, tables: FusedTables, exclude: str
) -> None:
    features = used_features(schema, exclude=[exclude])
    full = FeatureEncoder(schema, "item", tables)
    less = FeatureEncoder(schema, "item", tables, features=features)
    out, small = (encoder(batch.inputs.items, tables) for encoder in (full, less))
    at = {
        "item.item": slice(0, 4),
        "category": slice(4, 8),
        "tags": slice(8, 12),
        "item.price": slice(12, 14),
        "image": slice(14, 17),
    }[exclude]
    kept = [k for k in range(17) if k not in range(*at.indices(17))]
    assert less.width == len(kept)
    assert torch.equal(small, out[:, kept])


def test_one_of_several_dense_features_keeps_its_own_indicator(make_batch: Any) -> None:
    from prerank.schema import Feature, Label

    names = ("a", "b", "c")
    schema = Schema(
        features=tuple(Feature(name=n, owner="user", kind="dense") for n in names),
        labels=(Label(name="click"),),
    )
    batch = make_batch(schema)
    tables = FusedTables.Config().build_for(schema, schema.features)
    encoder = FeatureEncoder(schema, "user", tables, features=used_features(schema, include=["b"]))
    out = encoder(batch.inputs.user, tables)
    assert torch.equal(out, batch.inputs.user.dense[:, [1, 4]])


def test_events_of_a_stream(schema: Schema, batch: RequestBatch, tables: FusedTables) -> None:
    views = batch.inputs.history["views"]
    encoder = FeatureEncoder(schema, "history", tables, stream="views")
    out = encoder.events(views, tables)
    expected = torch.cat(
        [rows(tables, "action")[views.categorical.values[:, 0]], views.dense.values], dim=1
    )
    assert torch.equal(out.detach(), expected)
    assert FeatureEncoder(schema, "history", tables, stream="buys").width == 0


def test_owner_without_features_has_width_zero(schemas: dict[str, Schema], make_batch: Any) -> None:
    schema = schemas["bare"]
    tables = FusedTables.Config().build_for(schema, schema.features)
    encoder = FeatureEncoder(schema, "user", tables)
    assert encoder(make_batch(schema).inputs.user, tables).shape == (7, 0)


def test_encoder_has_nothing_to_save(schema: Schema, tables: FusedTables) -> None:
    encoder = FeatureEncoder(schema, "item", tables)
    assert not encoder.state_dict()
    assert not list(encoder.parameters())


def test_include_by_owner_and_unknown_name(schema: Schema) -> None:
    assert [f.name for f in used_features(schema, include=["user.age", "item"])] == ["item", "age"]
    message = "model features: no feature 'categry' in the schema; did you mean 'category'?"
    with pytest.raises(InputError, match=re.escape(message)):
        used_features(schema, exclude=["categry"])
