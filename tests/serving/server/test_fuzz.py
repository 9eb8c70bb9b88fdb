"""Bodies that nobody should send: answered or refused, never with a 5xx but 503."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prerank.serving.messages import RankRequest
from prerank.serving.server.protocol import Refusal
from prerank.serving.server.wire import body_kind, decode

Serving = Callable[..., Any]

SEEDS: list[dict[str, Any]] = [
    {"candidates": {"ids": [1, 2, 3]}, "user": {"id": 3, "features": {"age": 4}}, "k": 2},
    {
        "request_id": "r",
        "time": 1_700_000_000_000,
        "candidates": {
            "ids": ["a", "b"],
            "features": {"ctr": [0.5, None]},
            "new": [{"id": "a", "features": {"tags": ["x", "y"], "price": 1.5}}],
        },
        "context": {"device": "d1"},
        "history": {"views": [{"item": "a", "time": 5, "watch": 1.5}], "version": "v"},
        "budget_ms": 5,
        "explain": True,
    },
    {"candidates": {"ids": [1, 2]}, "history": {"views": {"item": [1, 2], "time": [1, 2]}}},
]
ODD: list[Any] = [
    *(None, True, -1, 0, 1 << 53, 1 << 63, -(1 << 63), 1 << 64, 10**30, 1e308, -0.0, 5e-324),
    *("", "\u0000", "a" * 5000, "\ud7ff", "\U0001f600", "NaN", "../../etc/passwd", "AAAAAAAA"),
    *([], {}, [[]], [{}], {"": None}, [None], list(range(50)), {"a": {"b": {"c": []}}}),
]
RAW = [
    b"NaN",
    b"Infinity",
    b"1e999",
    b'"\\ud800"',
    b'"\\u0000"',
    b"[" * 500,
    b'{"a":' * 500,
    b"\xff",
]
ROUTES = ["/v1/rank", "/v1/rank:batch", "/v1/items"]
TYPES = ["application/json", "application/msgpack", "application/x-msgpack; a=b", "text/plain"]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner: Any = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], to: Any) -> Any:
    if not path:
        return to
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(value[path[0]], path[1:], to)
    return copy


def fuzzed(rng: random.Random) -> tuple[str, str, bytes]:
    """Return a route, a content type and a body that was a request once."""
    value: Any = rng.choice(SEEDS)
    for _ in range(rng.randrange(4)):
        value = changed(value, rng.choice(places(value)), rng.choice(ODD))
    route = rng.choices(ROUTES, [8, 1, 1])[0]
    if route != "/v1/rank":
        value = {rng.choice(["requests", "items", "removed", "stats"]): [value]}
    kind = rng.choices(TYPES, [5, 5, 1, 1])[0]
    try:
        body = msgspec.msgpack.encode(value) if "msgpack" in kind else json.dumps(value).encode()
    except (OverflowError, msgspec.MsgspecError):
        body = json.dumps(value).encode()
    for _ in range(rng.choice([0, 0, 1, 3])):
        at, end = sorted(rng.randrange(len(body) + 1) for _ in range(2))
        match rng.randrange(5):
            case 0:
                body = body[:at] + body[end:]
            case 1:
                body = body[:at] + rng.randbytes(rng.randrange(4)) + body[at:]
            case 2:
                body = body[:at] + rng.choice(RAW) + body[at:]
            case 3:
                body = body[:at]
            case 4:
                body = body[:end] + body[at:]
    return route, kind, body


async def post(app: Any, route: str, headers: list[tuple[bytes, bytes]], body: bytes) -> Any:
    """Call an application as a server does; return status and body."""
    sent: list[Any] = []
    given = iter([{"type": "http.request", "body": body, "more_body": False}])
    ended = asyncio.Event()

    async def receive() -> Any:
        for message in given:
            return message
        await ended.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": route,
        "raw_path": route.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def run_fuzz(serving: Serving, num: int, seed: int, engine: Any = None) -> dict[int, int]:
    found: dict[int, int] = {}

    async def run() -> None:
        rng = random.Random(seed)
        async with serving(min_wait_ms=60_000.0, max_wait_ms=60_000.0) as server:
            if engine is not None:
                server.service.switch(engine)
            for _ in range(num):
                route, kind, body = fuzzed(rng)
                headers = [(b"content-type", kind.encode())]
                if rng.random() < 0.2:
                    headers.append((b"accept", rng.choice(TYPES).encode()))
                status, answer = await post(server.app, route, headers, body)
                found[status] = found.get(status, 0) + 1
                assert status < 500, (route, kind, body, answer)
                if status >= 400:
                    module: Any = msgspec.json if answer[:1] == b"{" else msgspec.msgpack
                    error = module.decode(answer)["error"]
                    assert "\n" not in error["message"]
                    assert "Traceback" not in error["message"]
            assert server.service.queue.is_alive
            assert server.service.intake.held == 0
            good = [(b"content-type", b"application/json")]
            body = b'{"candidates":{"ids":[]}}'
            assert (await post(server.app, "/v1/rank", good, body))[0] == 200

    asyncio.run(run())
    return found


def test_fuzzed_bodies(serving: Serving) -> None:
    found = run_fuzz(serving, 3000, seed=1)
    assert {200, 400, 413, 415, 422} - {413} <= set(found)


@pytest.mark.slow
def test_a_hundred_thousand_fuzzed_bodies(serving: Serving) -> None:
    found = run_fuzz(serving, 100_000, seed=2)
    assert sum(found.values()) == 100_000


def test_fuzzed_bodies_to_an_engine_with_models(serving: Serving, engine: Any) -> None:
    assert 422 in run_fuzz(serving, 400, seed=3, engine=engine)


@pytest.mark.slow
def test_many_fuzzed_bodies_to_an_engine_with_models(serving: Serving, engine: Any) -> None:
    run_fuzz(serving, 20_000, seed=4, engine=engine)


@settings(max_examples=60)
@given(st.binary(max_size=60), st.sampled_from(TYPES), st.sampled_from(ROUTES))
def test_bytes_of_any_kind(body: bytes, kind: str, route: str) -> None:
    try:
        decode(body, body_kind(kind), RankRequest)
    except Refusal as refusal:
        status = refusal.status
    else:
        status = 200
    assert status in (200, 400, 415, 422)
