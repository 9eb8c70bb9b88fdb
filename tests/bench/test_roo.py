"""The request benchmark: operations counted and formulas that predict them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prerank.bench.roo import WAYS, Net, _flops, _kept_mib, bench_roo, make_step
from prerank.nn import HSTUStack

D, HEADS, LAYERS = 12, 3, 2
CONFIG = HSTUStack.Config(width=D, num_heads=HEADS, num_layers=LAYERS, chunk=10_000)


def uniform(num: int, events: int, impressions: int) -> Any:
    return make_step(torch.full((num,), events), torch.full((num,), impressions))


def attention(queries: int, keys: int) -> int:
    """Operations of one layer: two products forward, five backward (scores are made again)."""
    return 7 * 2 * queries * keys * D


def linear(rows: int, inputs: int, outputs: int) -> int:
    """Operations of a linear layer, forward and backward."""
    return 3 * 2 * rows * inputs * outputs


def layer(tokens: int) -> int:
    return linear(tokens, D, 4 * D) + linear(tokens, 3 * D, D)


@pytest.mark.parametrize(("num", "N", "K"), [(2, 7, 1), (3, 5, 4), (1, 30, 16)])
def test_counted_operations_are_those_of_the_formula(num: int, N: int, K: int) -> None:
    net, step = Net(CONFIG), uniform(num, N, K)
    candidates = num * K
    head = linear(candidates, D, 1)
    history = (LAYERS - 1) * (num * attention(N, N) + layer(num * N)) + linear(num * N, D, 2 * D)
    crossing = LAYERS * (num * attention(K, N) + layer(candidates))
    assert _flops(net, step, "two_pass") == history + crossing + head
    row = LAYERS * (attention(N + 1, N + 1) + layer(N + 1))
    assert _flops(net, step, "tiled") == candidates * row + head
    sequence = LAYERS * (attention(N + K, N + K) + layer(N + K))
    assert _flops(net, step, "masked") == num * sequence + head
    alone = K * history + crossing + head
    assert _flops(net, step, "two_pass/impressions") == alone, "K times the history, no more"


def test_chunks_of_a_causal_history_skip_what_is_never_seen() -> None:
    step = uniform(1, 64, 1)
    halves = HSTUStack.Config(width=D, num_heads=HEADS, chunk=32)
    whole, chunked = (_flops(Net(c), step, "two_pass") for c in (CONFIG, halves))
    assert whole - chunked == attention(32, 32)  # one block of four, in the one layer that attends


def test_history_keeps_the_same_whatever_is_scored() -> None:
    net = Net(HSTUStack.Config(width=D, num_heads=HEADS))

    def kept(K: int, way: str) -> float:
        step = uniform(1, 200, K)

        def history() -> torch.Tensor:
            return net.stack.encode(net.past(step)).keys[-1].values.sum()

        return _kept_mib(net, history if way == "history" else lambda: net.loss(step, way))

    assert kept(1, "history") == kept(64, "history")
    assert kept(64, "tiled") > 50 * kept(1, "tiled")
    assert kept(64, "two_pass") < 3 * kept(1, "two_pass")


def test_result_has_the_ratios_and_their_predictions() -> None:
    result = bench_roo(
        lengths=(9,), impressions=(1, 4), num_candidates=8, large=0, repeats=1, config=CONFIG
    )
    assert set(result) == {"machine", "rows", "ratios", "equal", "costs", "memory"}
    shapes = [(row["impressions"], row["way"]) for row in result["rows"]]
    assert shapes == [(k, way) for k in ("1", "4") for way in WAYS]
    ratios, cost = result["ratios"], result["costs"][0]
    parts = ("", "/masked", "/impressions", "/tokens", "/model")
    assert list(ratios) == [f"roo/n9/k{k}{part}" for k in (1, 4) for part in parts]
    ms = {(row["impressions"], row["way"]): row["ms"] for row in result["rows"]}
    assert ratios["roo/n9/k4"] == pytest.approx(ms["4", "tiled"] / ms["4", "two_pass"])
    assert ratios["roo/n9/k4/tokens"] == pytest.approx(4 * 10 / (9 + 4))
    assert ratios["roo/n9/k1/model"] == pytest.approx(1.0)
    u, c = cost["history_ms"], cost["candidate_ms"]
    assert ratios["roo/n9/k4/model"] == pytest.approx(4 * (u + c) / (u + 4 * c))
    assert max(result["equal"].values()) < 1e-12
    memory = result["memory"]
    assert len({row["history_mib"] for row in memory}) == 1
