"""What a day in production brings, in short."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

Start = Callable[..., Any]
MakeBundle = Callable[..., Path]
ASK = {"candidates": {"ids": [1, 3, 2]}}


async def keep_asking(
    client: httpx.AsyncClient, stop: asyncio.Event, found: Counter[Any], **more: Any
) -> None:
    while not stop.is_set():
        try:
            answer = await client.post("/v1/rank", json={**ASK, **more})
        except httpx.TransportError as error:
            found[type(error).__name__] += 1
            continue
        found[answer.status_code] += 1
        if answer.status_code == 200:
            assert answer.json()["ids"] == [3, 2, 1]
        else:
            assert "retry-after" in answer.headers
            found[answer.json()["error"]["message"]] += 1


def under_load(url: str, test: Any, num_clients: int = 3, **more: Any) -> Counter[Any]:
    """Run a coroutine function while clients ask without a pause; return what they got."""
    found: Counter[Any] = Counter()

    async def run() -> None:
        stop = asyncio.Event()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
            asking = [keep_asking(client, stop, found, **more) for _ in range(num_clients)]
            tasks = [asyncio.create_task(one) for one in asking]
            try:
                await test(client)
            finally:
                stop.set()
                await asyncio.gather(*tasks)

    asyncio.run(run())
    return found


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_a_hundred_reloads_under_load(start_server: Start, make_bundle: MakeBundle) -> None:
    ballast = 32 << 20
    for name in ("one", "two"):
        bundle = make_bundle(name, ms=0.5, ballast=ballast)
    # A machine with other work may keep a request waiting; that is not what is tested here.
    process = start_server(bundle, workers=2, max_wait_ms=60_000.0)
    sizes: list[int] = []

    async def reload(client: httpx.AsyncClient) -> None:
        for number in range(100):
            name = ("one", "two")[number % 2]
            found = await client.post("/v1/reload", json={"bundle": name})
            assert found.json() == {"model": name, "generation": number + 2, "workers": 2}
            sizes.append(sum(map(resident, process.workers())))

    found = under_load(process.url, reload)
    assert set(found) == {200}
    assert found[200] > 200
    assert len(process.workers()) == 2
    assert not [e for e in process.events() if e["event"] == "worker_ended"]
    # Two engines a worker at a time, and perhaps one that is about to be freed.
    assert max(sizes) - min(sizes[:10]) < 6 * ballast


@pytest.mark.slow
def test_kill_9_under_load_fails_what_was_in_flight_only(
    start_server: Start, make_bundle: MakeBundle
) -> None:
    process = start_server(make_bundle("one", ms=2.0), workers=2, max_wait_ms=60_000.0)
    took: list[float] = []

    async def kill(client: httpx.AsyncClient) -> None:
        for _ in range(5):
            victim = random.Random(7).choice(process.workers())
            began = time.monotonic()
            os.kill(victim, signal.SIGKILL)
            ready: list[str] = []
            while not (ready and victim not in process.workers()):
                await asyncio.sleep(0.05)
                text = (await client.get("/metrics")).text
                ready = [x for x in text.splitlines() if x == "prerank_workers_ready 2.0"]
            took.append(time.monotonic() - began)

    found = under_load(process.url, kill, num_clients=8)
    assert found[200] > 100
    # At most one request per connection to the killed worker, each time.
    assert sum(found[key] for key in found if key != 200) <= 5 * 8
    assert set(found) <= {200, "RemoteProtocolError", "ReadError", "WriteError"}
    assert sorted(took)[len(took) // 2] < 60


@pytest.mark.slow
def test_overload_is_refused_and_then_over(start_server: Start, make_bundle: MakeBundle) -> None:
    process = start_server(
        make_bundle("one", ms=10.0), max_queue=16, max_wait_ms=60_000.0, coalesce_requests=1
    )

    async def wait(client: httpx.AsyncClient) -> None:
        await asyncio.sleep(10.0)

    found = under_load(process.url, wait, num_clients=100)
    assert set(found) == {200, 503, "the queue is full"}
    # The engine is busy all the time, at its own pace.
    assert found[200] > 100
    with process.client() as client:
        assert client.post("/v1/rank", json={**ASK, "budget_ms": 60_000}).status_code == 200
        text = client.get("/metrics").text
        assert "prerank_queue_length 0.0" in text
        assert f'prerank_errors_total{{code="overloaded"}} {float(found[503])}' in text


@pytest.mark.slow
def test_thirty_thousand_requests_leave_no_memory_behind(
    start_server: Start, make_bundle: MakeBundle
) -> None:
    process = start_server(make_bundle("one"))
    (worker,) = process.workers()
    rng = random.Random(0)
    body = {"candidates": {"ids": list(range(200))}}

    async def ask(client: httpx.AsyncClient) -> None:
        async def some(num: int) -> None:
            for _ in range(num):
                await client.post("/v1/rank", json={**body, "user": {"id": rng.randrange(20_000)}})

        await asyncio.gather(*(some(1000) for _ in range(10)))
        before = resident(worker)
        await asyncio.gather(*(some(2000) for _ in range(10)))
        assert (resident(worker) - before) / 2 < 1 << 20

    async def run() -> None:
        async with httpx.AsyncClient(base_url=process.url, timeout=60) as client:
            await ask(client)

    asyncio.run(run())


@pytest.mark.slow
def test_the_server_gives_what_the_engine_gives(
    tmp_path: Path, bundle: Path, engine: Any, requests: list[Any]
) -> None:
    import json
    import subprocess
    import sys

    words = [sys.executable, "-m", "prerank", "serve", str(bundle), "--port", "0", "--json"]
    words += ["--access-log", "", "--set", "engine.dtype=fp32", "--workers", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            url = json.loads(process.stdout.readline())["url"]
            with httpx.Client(base_url=url, timeout=60) as client:
                for request in requests:
                    expected = engine.rank(request)
                    for kind in ("json", "msgpack"):
                        module = getattr(msgspec, kind)
                        body = module.encode(request)
                        headers = {"content-type": f"application/{kind}"}
                        found = client.post("/v1/rank", content=body, headers=headers)
                        answer = module.decode(found.content)
                        assert answer["ids"] == expected.ids
                        assert answer["tier"] == expected.tier
                        assert answer["model"] == expected.model
        finally:
            process.terminate()
            assert process.wait(60) == 0
