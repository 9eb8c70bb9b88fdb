"""Every model of the table, on every small schema, passes every check.

A new model joins by its line in ``models.TABLE``; options worth checking beside the defaults go
into ``VARIANTS``.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from prerank import models
from prerank.batch import RequestBatch
from prerank.config import from_values, to_values
from prerank.models import Model
from prerank.schema import Schema

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "two_tower": [
        {"cosine": True, "history": {"kind": "attention"}, "tower": {"layer_norm": True}},
        {"history": {"kind": "recency", "empty": "zero"}, "tower": {"hidden": [], "dropout": 0.2}},
    ],
    "mlp": [
        {"history": {"kind": "attention"}, "head": {"hidden": [8], "activation": "silu"}},
        {"tower": {"hidden": [8, 8], "dropout": 0.2}, "head": {"hidden": [9], "layer_norm": True}},
    ],
    "hap_light": [
        {"join": "sum", "skip": False, "history": {"kind": "attention"}},
        {"join": "sum", "tower": {"hidden": [8], "dropout": 0.2}, "head": {"hidden": [9]}},
    ],
    "hap_expressive": [
        {"attention": "history", "num_events": 4, "attention_width": 9, "num_heads": 3},
        {"attention": "none", "join": "sum", "skip": False},
        {"attention_width": 4, "num_heads": 4, "head": {"hidden": [9], "dropout": 0.2}},
        {"trunk": {"width": 6, "tower": {"hidden": [7], "dropout": 0.2}}, "skip": False},
        {"trunk": {"width": 6}, "attention": "history", "num_heads": 1},
    ],
    "hstu": [
        {"stack": {"weights": "softmax", "context_sees": "context", "window": 3, "num_heads": 1}},
        {
            "stack": {"form": "paper", "num_context": 0, "normaliser": "visible"},
            "head": {"hidden": [9], "dropout": 0.2},
        },
        {"stack": {"num_layers": 1, "num_context": 3, "dropout": 0.2, "chunk": 2, "cells": 8}},
        {"stack": {"norm": "head", "position_buckets": 0, "time_buckets": 0, "query_width": 5}},
    ],
    "din": [
        {"weights": "plain", "width": 5, "head": {"hidden": [9], "dropout": 0.2}},
    ],
}
CASES = {
    f"{name}-{k or 'default'}": (name, values)
    for name in models.TABLE
    for k, values in enumerate(({}, *VARIANTS.get(name, [])))
}
CHECKS = (
    "isolation",
    "candidate_order",
    "batch_mates",
    "history_length",
    "composition",
    "split_states",
    "microbatches",
    "request_state_inputs",
    "evidence_is_unseen",
    "gradients",
    "empty_requests",
    "precision",
    "bfloat16",
)


def build(name: str, values: dict[str, Any], schema: Schema, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return from_values(models.get(name).Config, values, where=name).build(schema)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return CASES[request.param]


@pytest.fixture
def batch(any_schema: Schema, make_batch: Any) -> RequestBatch:
    return make_batch(any_schema)


@pytest.mark.parametrize("check", CHECKS)
def test_model_passes(
    check: str, case: Any, any_schema: Schema, batch: RequestBatch, checks: ModuleType
) -> None:
    model = checks.prepared(build(*case, any_schema))
    getattr(checks, check)(model, batch)


def test_saved_weights_give_the_same_bits(
    case: Any, any_schema: Schema, batch: RequestBatch, checks: ModuleType, tmp_path: Path
) -> None:
    model = checks.prepared(build(*case, any_schema))
    other = checks.prepared(build(*case, any_schema, seed=9), seed=10)
    checks.saving(model, other, batch, tmp_path)


def test_config_survives_plain_values(case: Any, schemas: dict[str, Schema]) -> None:
    name, _ = case
    config = build(*case, schemas["rich"]).config
    assert from_values(type(config), to_values(config), where=name) == config


def test_every_check_is_listed(checks: ModuleType) -> None:
    assert [check.__name__ for check in checks.ON_BATCH] == list(CHECKS)
