from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from prerank.serving.server.board import BOUNDS_S, Board, Meter, make_layout
from prerank.serving.server.metrics import Carry, make_board, make_meter, render

Serving = Callable[..., Any]


def read(text: bytes | str) -> dict[str, float]:
    text = text.decode() if isinstance(text, bytes) else text
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0, 20)), max_size=30))
def test_histograms_add_up_over_workers(observed: list[tuple[int, float]]) -> None:
    board = make_board(3)
    meters = [make_meter(board, row) for row in range(3)]
    for row, value in observed:
        meters[row].observe("queue_seconds", value=value)
    found = read(render(board, "m")[0])
    for bound in BOUNDS_S[:-1]:
        num = sum(value <= bound for _, value in observed)
        assert found.get(f"prerank_queue_seconds_bucket{{le={bound}}}", 0) == num
    assert found.get("prerank_queue_seconds_count", 0) == len(observed)
    total = sum(value for _, value in observed)
    assert abs(found.get("prerank_queue_seconds_sum", 0) - total) < 1e-9


def test_processes_write_one_board() -> None:
    layout = make_layout([("a",)], [])
    board = Board(3, len(layout))
    Meter(board, layout, 0).add("a")
    pid = os.fork()
    if pid == 0:
        Meter(Board(3, len(layout), board._fd), layout, 1).add("a", amount=2.0)
        os._exit(0)
    os.waitpid(pid, 0)
    # The process is gone; what it counted is not, and its successor goes on in its row.
    Meter(board, layout, 1).add("a", amount=4.0)
    assert board.total(0) == 7.0


def test_counters_of_engines_that_come_and_go_only_grow(fake: Any) -> None:
    board = make_board(1)
    carry = Carry(make_meter(board, 0))
    first = fake.FakeStats(requests=5, scored=[10, 3])
    carry.restart(first)  # a self-test does not count
    first.requests, first.scored = 9, [20, 7]
    carry.take(first)
    carry.take(first)
    second = fake.FakeStats(requests=1)
    carry.restart(second)
    second.requests = 2
    carry.take(second)
    found = read(render(board, "m")[0])
    assert found["prerank_ranked_total"] == 5
    assert found["prerank_scored_total{tier=1}"] == 4
    assert found["prerank_forwarded_share{tier=1}"] == 0.4


def test_what_was_served_is_counted(serving: Serving) -> None:
    async def run() -> None:
        async with serving() as server:
            client = server.client
            for body in ({"candidates": {"ids": [1, 2, -3]}}, {"candidates": {}}):
                await client.post("/v1/rank", json=body)
            await client.get("/nowhere")
            answer = await client.get("/metrics")
            assert answer.headers["content-type"].startswith("text/plain; version=")
            found = read(answer.text)
            assert found["prerank_requests_total{route=rank,status=200}"] == 1
            assert found["prerank_requests_total{route=rank,status=422}"] == 1
            assert found["prerank_requests_total{route=other,status=404}"] == 1
            assert found["prerank_errors_total{code=bad_request}"] == 1
            assert found["prerank_candidates_total"] == 3
            assert found["prerank_unknown_candidates_total"] == 1
            assert found["prerank_request_seconds_count{route=rank}"] == 1
            assert found["prerank_tier_seconds_count{tier=0}"] == 1
            assert found["prerank_queue_length"] == 0
            assert found["prerank_model_info{model=one}"] == 1
            assert found["prerank_worker_resident_bytes"] > 1e6

    asyncio.run(run())
