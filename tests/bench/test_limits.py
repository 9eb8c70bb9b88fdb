"""What is counted of a step is what a hand counts; what is reported adds up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prerank.bench.limits import MODELS, _Count, bench_limits
from prerank.log import open_log
from prerank.world import WorldConfig, write_world


def test_products_and_other_bytes_are_counted_apart() -> None:
    rows, inputs, outputs = 64, 32, 16
    x = torch.randn(rows, inputs)
    weight = torch.randn(outputs, inputs, requires_grad=True)
    with _Count() as count:
        y = torch.relu(x @ weight.t())
        y.backward(torch.ones_like(y))
    assert count.flops == 2 * (2 * rows * inputs * outputs)  # x has no gradient
    # relu reads and writes once, its backward reads two and writes one; nothing else is as large.
    passes = count.other_bytes / (4 * rows * outputs)
    assert 5 <= passes <= 8


@pytest.mark.parametrize("name", ["two_tower", "hap_light"])
def test_a_step_adds_up(tmp_path: Path, name: str) -> None:
    world = WorldConfig(num_requests=300, num_users=50, num_items=400)
    write_world(tmp_path / "log", world)
    result = bench_limits(open_log(tmp_path / "log")["train"], names=(name,), num_steps=2)
    (row,) = result["rows"]
    assert row["objective"] == MODELS[name][0]
    assert sum(piece["share"] for piece in row["pieces"]) == pytest.approx(1.0)
    assert {"gather", "forward", "loss", "backward"} <= {p["piece"] for p in row["pieces"]}
    whole = row["limit_ms"] + sum(row["left"].values())
    assert whole == pytest.approx(row["step_ms"])
    assert result["ratios"] == {f"limits/{name}": row["of_limit"]}
    assert set(row["reader_ms"]) == {"decode", "sample", "assemble"}
