"""Every objective of the table passes every check; broken ones fail the check of their break.

A new objective joins by its line in ``objectives.TABLE``; options worth checking beside the
defaults go into ``VARIANTS``.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prerank import objectives
from prerank.batch import RequestBatch
from prerank.config import from_values, to_values
from prerank.jagged import segment_mean
from prerank.objectives.base import Objective, local_weight
from prerank.schema import Schema

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "bce": [
        {"sources": [], "model": "model"},
        {"sources": ["rank", "random"], "source_weights": {"rank": 2.0, "positive": 0.5}},
    ],
    "ghcl": [
        {"sources": ["exposed", "rank"], "bce": 0.0, "temperature": {"rank": 0.5}},
        {"grouping": "mixed", "denominator_weights": {"random": 5.0, "rank": 0.8}},
        {"grouping": "mixed", "bce": 0.0, "focal": 0.5, "log_q": True, "model": "model"},
        {"grouping": "mixed", "bce_grouping": "grouped", "scope": {"random": "batch"}},
        {"nce": 0.0, "bce_sources": ["exposed"], "source_weights": {"exposed": 2.0}},
        {"density": 8, "scope": "batch"},
        {"grouping": "mixed", "density": 8, "density_momentum": 0.0},
    ],
}
CASES = {
    f"{name}-{k or 'default'}": (name, values)
    for name in objectives.TABLE
    for k, values in enumerate(({}, *VARIANTS.get(name, [])))
}
CHECKS = (
    "named_scalars",
    "extreme_logits",
    "request_order",
    "split_requests",
    "empty_batch",
    "unknown_candidates",
    "weights",
    "processes",
)


@pytest.fixture(params=["bare", "rich"])
def schema(request: pytest.FixtureRequest, schemas: dict[str, Schema]) -> Schema:
    return schemas[request.param]


@pytest.fixture
def batch(schema: Schema, make_batch: Any) -> RequestBatch:
    return make_batch(schema, num_requests=9, seed=3)


@pytest.fixture(params=CASES)
def objective(request: pytest.FixtureRequest, schema: Schema) -> Objective:
    name, values = CASES[request.param]
    return from_values(objectives.get(name).Config, values, where=name).build(schema)


@pytest.mark.parametrize("check", CHECKS)
def test_objective_passes(
    check: str, objective: Objective, batch: RequestBatch, checks: ModuleType
) -> None:
    getattr(checks, check)(objective, batch)


def test_config_survives_plain_values(objective: Any) -> None:
    config = objective.config
    assert from_values(type(config), to_values(config), where="objective") == config


def test_every_check_is_listed(checks: ModuleType) -> None:
    assert [check.__name__ for check in checks.ALL] == list(CHECKS)


def broken(batch: RequestBatch, logits: Tensor) -> dict[str, dict[str, Tensor]]:
    """Return the parts of each broken objective, by the check it must fail."""
    evidence = batch.evidence
    target, known = evidence.targets.nan_to_num(0.0).double(), ~evidence.targets.isnan()
    weight = evidence.weight.unsqueeze(1) * known
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none") * weight
    of, num_requests = batch.inputs.request_of, batch.num_requests
    sums = weight.sum().clamp(min=1e-30)
    place = torch.arange(len(logits), dtype=logits.dtype).unsqueeze(1)
    naive = -(target * logits.sigmoid().log() + (1 - target) * (1 - logits.sigmoid()).log())
    return {
        "named_scalars": {"bce": loss.sum() / sums},
        "extreme_logits": {"bce/naive": (naive * weight).sum() / sums},
        "request_order": {"bce/placed": (loss * place).sum() / sums},
        "split_requests": {"bce/mean_of_means": segment_mean(loss, of, num_requests).mean()},
        "empty_batch": {"bce/mean": loss.sum() / weight.sum()},
        "unknown_candidates": {"bce/all": (loss + logits**2).sum() / sums},
        "weights": {"bce/sum": loss.sum()},
        "processes": {"bce/local": loss.sum() / sums},
    }


class Broken:
    """An objective that fails one check."""

    per_impression = True
    normaliser = staticmethod(local_weight)

    def __init__(self, check: str) -> None:
        self.check = check

    def __call__(self, scores: Any, batch: RequestBatch) -> dict[str, Tensor]:
        return broken(batch, scores["model"].logits)[self.check]


@pytest.mark.parametrize("check", CHECKS)
def test_broken_objective_fails(check: str, batch: RequestBatch, checks: ModuleType) -> None:
    with pytest.raises(AssertionError):
        getattr(checks, check)(Broken(check), batch)
