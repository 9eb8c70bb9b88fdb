"""The training benchmark: its planted labels, its fairness, its numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prerank.bench.planted import planted_impressions
from prerank.bench.train import OURS, WAYS, _contender, bench_train


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return bench_train(fields=4, rows=[50], dim=8, batch_size=256, num_steps=60)


def test_labels_follow_the_planted_probabilities() -> None:
    drawn = planted_impressions(40_000, fields=5, rows=30, seed=1)
    assert abs(float(drawn.label.mean() - drawn.probability.mean())) < 0.01
    high = drawn.probability > 0.5
    assert float(drawn.label[high].mean()) > float(drawn.label[~high].mean()) + 0.3
    counts = torch.bincount(drawn.ids[:, 0], minlength=30).double()
    expected = torch.arange(1, 31, dtype=torch.float64) ** -1.1
    assert torch.allclose(counts / counts.sum(), expected / expected.sum(), atol=0.01)


def test_every_way_learns_as_well_as_the_others(result: dict[str, Any]) -> None:
    assert [row["way"] for row in result["rows"]] == list(WAYS)
    losses = {row["way"]: row["valid_loss"] for row in result["rows"]}
    best = result["best_loss"]["4x50"]
    assert best < min(losses.values()), "nothing beats the planted probabilities"
    assert max(losses.values()) < 0.67, "a constant has 0.69"
    assert max(losses.values()) - min(losses.values()) < 0.03


def test_memory_is_what_the_formulas_say(result: dict[str, Any]) -> None:
    rows = {row["way"]: row for row in result["rows"]}
    weights = 4 * 50 * 8 * 4 / 1e6
    assert rows[OURS]["table_mb"] == pytest.approx(weights)
    assert rows[OURS]["state_mb"] == pytest.approx(weights / 8)
    assert rows["fused/rowwise_adagrad/bf16"]["table_mb"] == pytest.approx(weights / 2)
    for way in ("fused/lazy_adam", "embeddings/sparse_adam", "embeddings/dense_adam"):
        assert rows[way]["state_mb"] == pytest.approx(2 * weights, rel=0.1)


def test_ratios_and_pieces(result: dict[str, Any]) -> None:
    rows = {row["way"]: row for row in result["rows"]}
    speed = rows["embeddings/dense_adam"]["cpu_ms"] / rows[OURS]["cpu_ms"]
    assert result["ratios"]["train/4x50/dense_adam"] == pytest.approx(speed)
    assert "train/4x50/dense_adam/to_loss" in result["ratios"]
    pieces = result["steps"]["4x50"]
    assert sum(piece["share"] for piece in pieces) == pytest.approx(1)
    assert {p["piece"] for p in pieces if "of_peak" in p} == {
        "gather",
        "forward",
        "backward",
        "coalesce",
        "table optimiser",
    }


def test_ways_begin_as_the_same_kind_of_network() -> None:
    networks = [_contender(way, fields=3, rows=20, dim=4).network for way in WAYS]
    ids = torch.randint(0, 20, (50, 3))
    for network in networks:
        assert sum(p.numel() for p in network.tables.parameters()) == 3 * 20 * 4
        assert network(ids).shape == (50,)
        assert float(network(ids).detach().std()) < 0.2
