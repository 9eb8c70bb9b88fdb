from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from prerank.serving.messages import RankAnswer, RankRequest, Timings
from prerank.serving.server.config import ServerConfig
from prerank.serving.server.protocol import Refusal
from prerank.serving.server.queue import EngineQueue, Ticket


class Gated:
    """An engine that ranks when told to, and remembers what it was handed."""

    version = "gated"

    def __init__(self, pause_s: float = 0.0) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.pause_s = pause_s
        self.batches: list[list[Any]] = []
        self.started: list[float] = []

    def rank(self, request: RankRequest, *, started: float | None = None) -> RankAnswer:
        (answer,) = self.rank_many([request], started=[started])
        if isinstance(answer, Exception):
            raise answer
        return answer

    def rank_many(self, requests: Sequence[RankRequest], *, started: Any = None) -> list[Any]:
        self.batches.append([r.request_id for r in requests])
        self.started += started
        assert self.gate.wait(30)
        time.sleep(self.pause_s * len(requests))
        if any(r.request_id == "poison" for r in requests):
            raise ZeroDivisionError
        return [self.answer(r) for r in requests]

    def answer(self, request: RankRequest) -> RankAnswer:
        timings = Timings(0.0, 0.0, 0.0, [])
        ids = request.candidates.ids
        return RankAnswer(
            model=self.version,
            request_id=request.request_id,
            ids=list(ids),
            tier=[0] * len(ids),
            degraded=False,
            unknown=[],
            timings=timings,
        )


def request(name: Any, num: int = 1, **more: Any) -> RankRequest:
    values = {"request_id": name, "candidates": {"ids": list(range(num))}, **more}
    return msgspec.convert(values, RankRequest)


async def until(found: Any) -> None:
    async with asyncio.timeout(30):
        while not found():
            await asyncio.sleep(0.002)


async def ends(tickets: Sequence[Ticket]) -> list[Any]:
    return await asyncio.gather(*(t.future for t in tickets), return_exceptions=True)


def run(test: Any, engine: Gated | None = None, **values: Any) -> None:
    async def inner() -> None:
        ranker = engine or Gated()
        queue = EngineQueue(ranker, ServerConfig(**values))
        try:
            await test(queue, ranker)
        finally:
            ranker.gate.set()
            queue.close()

    asyncio.run(inner())


def now() -> float:
    return time.perf_counter()


def test_small_requests_share_a_hand_over_and_large_ones_do_not() -> None:
    async def test(queue: EngineQueue, engine: Gated) -> None:
        engine.gate.clear()
        tickets = queue.submit([request("first")], now())
        await until(lambda: engine.batches)
        sizes = {"a": 4, "b": 5, "c": 2, "d": 20, "e": 1}
        for name, size in sizes.items():
            tickets += queue.submit([request(name, size)], now())
        engine.gate.set()
        found = await ends(tickets)
        assert [answer.request_id for answer in found] == ["first", *sizes]
        assert engine.batches == [["first"], ["a", "b"], ["c"], ["d"], ["e"]]

    run(test, coalesce=10)


def test_arrival_is_what_budgets_count_from() -> None:
    async def test(queue: EngineQueue, engine: Gated) -> None:
        await ends(queue.submit([request("a")], 123.25 + now()))
        assert engine.started[0] > 123.25 + now() - 60

    run(test)


def test_a_full_queue_refuses_with_the_pace_it_has() -> None:
    async def test(queue: EngineQueue, engine: Gated) -> None:
        await ends(queue.submit([request("pace")], now()))
        assert queue.pace_s >= 0.02
        engine.gate.clear()
        tickets = queue.submit([request(0)], now())
        await until(lambda: len(engine.batches) == 2)
        for number in range(3):
            tickets += queue.submit([request(number)], now())
        with pytest.raises(Refusal, match="full") as caught:
            queue.submit([request("more")], now())
        refusal = caught.value
        assert refusal.status == 503
        assert refusal.retry_after_s == pytest.approx(4 * queue.pace_s)
        assert int(refusal.headers["Retry-After"]) >= 1
        with pytest.raises(Refusal):
            queue.submit([request(1), request(2)], now())
        engine.gate.set()
        assert all(isinstance(found, RankAnswer) for found in await ends(tickets))
        assert queue.is_idle

    run(test, Gated(0.02), max_queue=3)


def test_who_cannot_wait_so_long_is_refused_at_once() -> None:
    async def test(queue: EngineQueue, engine: Gated) -> None:
        await ends(queue.submit([request("pace")], now()))
        engine.gate.clear()
        tickets = queue.submit([request(0)], now())
        await until(lambda: len(engine.batches) == 2)
        tickets += queue.submit([request(k, budget_ms=1e5) for k in range(4)], now())
        with pytest.raises(Refusal, match="longer than"):
            queue.submit([request("hurry", budget_ms=15.0)], now())
        tickets += queue.submit([request("calm", budget_ms=1e5)], now())
        engine.gate.set()
        assert all(isinstance(found, RankAnswer) for found in await ends(tickets))

    run(test, Gated(0.02), coalesce_requests=1, max_wait_ms=60_000.0)


def test_who_waited_too_long_is_not_ranked() -> None:
    async def test(queue: EngineQueue, engine: Gated) -> None:
        engine.gate.clear()
        first = queue.submit([request("first")], now())
        await until(lambda: engine.batches)
        late = queue.submit([request("late", budget_ms=10.0)], now())
        calm = queue.submit([request("calm")], now())
        await asyncio.sleep(0.06)
        engine.gate.set()
        found = await ends([*first, *late, *calm])
        assert isinstance(found[1], Refusal)
        assert (found[1].status, found[1].retry_after_s is not None) == (503, True)
        assert engine.batches == [["first"], ["calm"]]

    run(test, patience=2.0, max_wait_ms=60_000.0)


def test_a_budget_that_ran_out_in_the_queue_still_gets_an_answer() -> None:
    async def test(queue: EngineQueue, engine: Gated) -> None:
        engine.gate.clear()
        first = queue.submit([request("first")], now())
        await until(lambda: engine.batches)
        # Nobody is refused before min_wait_ms, however small the budget.
        tickets = queue.submit([request("none", budget_ms=0.0)], now())
        await asyncio.sleep(0.02)
        engine.gate.set()
        found = await ends([*first, *tickets])
        assert isinstance(found[1], RankAnswer)

    run(test, min_wait_ms=30_000.0, max_wait_ms=60_000.0)


def test_one_request_does_not_spoil_those_beside_it() -> None:
    async def test(queue: EngineQueue, engine: Gated) -> None:
        tickets = queue.submit([request("a"), request("poison"), request("b")], now())
        found = await ends(tickets)
        assert [type(one) for one in found] == [RankAnswer, ZeroDivisionError, RankAnswer]
        assert queue.is_alive

    run(test)


def test_dropped_requests_are_not_ranked() -> None:
    async def test(queue: EngineQueue, engine: Gated) -> None:
        engine.gate.clear()
        first = queue.submit([request("first")], now())
        await until(lambda: engine.batches)
        gone = queue.submit([request("gone")], now())
        gone[0].drop()
        engine.gate.set()
        await ends(first)
        await until(lambda: queue.is_idle)
        assert engine.batches == [["first"]]

    run(test)


def test_engines_switch_between_hand_overs_and_the_old_one_is_freed() -> None:
    import gc
    import weakref

    async def test(queue: EngineQueue, engine: Gated) -> None:
        before = Gated()
        seen = weakref.ref(before)
        queue.switch(before)
        before.gate.clear()
        tickets = queue.submit([request("a")], now())
        batches = before.batches
        await until(lambda: batches)
        after = Gated()
        after.version = "after"
        queue.switch(after)
        before.gate.set()
        tickets += queue.submit([request("b")], now())
        found = await ends(tickets)
        assert [answer.model for answer in found] == ["gated", "after"]
        del before
        gc.collect()
        assert seen() is None

    run(test)


def test_what_waits_when_the_server_stops_is_refused() -> None:
    async def test(queue: EngineQueue, engine: Gated) -> None:
        engine.gate.clear()
        first = queue.submit([request("first")], now())
        await until(lambda: engine.batches)
        waiting = queue.submit([request("waits")], now())
        closing = asyncio.create_task(asyncio.to_thread(queue.close))
        await asyncio.sleep(0.02)
        engine.gate.set()
        found = await ends([*first, *waiting])
        await closing
        assert isinstance(found[0], RankAnswer)
        assert isinstance(found[1], Refusal)

    run(test)
