from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from prerank.serving.messages import RankAnswer
from prerank.serving.server.protocol import Answer

Serving = Callable[..., Any]
PACKED = {"content-type": "application/msgpack"}


def ask(*ids: int, **more: Any) -> dict[str, Any]:
    return {"candidates": {"ids": list(ids)}, **more}


def test_a_request_is_ordered(serving: Serving) -> None:
    async def run() -> None:
        async with serving() as server:
            found = await server.client.post("/v1/rank", json=ask(3, 9, -1, k=2, request_id="r"))
            assert found.status_code == 200
            answer = found.json()
            assert (answer["ids"], answer["request_id"]) == ([9, 3], "r")
            assert (answer["unknown"], answer["model"]) == ([-1], "one")
            assert not answer["degraded"]

    asyncio.run(run())


def test_msgpack_with_packed_ids_is_answered_so(serving: Serving) -> None:
    async def run() -> None:
        async with serving() as server:
            ids = struct.pack("<3q", 3, 1 << 40, 9)
            body = msgspec.msgpack.encode({"candidates": {"ids": ids}})
            found = await server.client.post("/v1/rank", content=body, headers=PACKED)
            assert found.headers["content-type"] == "application/msgpack"
            answer = msgspec.msgpack.decode(found.content, type=Answer)
            assert isinstance(answer.ids, bytes)
            assert struct.unpack("<3q", answer.ids) == (1 << 40, 9, 3)
            plain = await server.client.post(
                "/v1/rank", json=ask(3, 9), headers={"accept": "application/msgpack"}
            )
            assert msgspec.msgpack.decode(plain.content)["ids"] == [9, 3]

    asyncio.run(run())


def test_what_is_sent_has_every_field_of_an_answer() -> None:
    assert Answer.__struct_fields__ == RankAnswer.__struct_fields__


def test_a_batch_answers_each_request_for_itself(serving: Serving) -> None:
    async def run() -> None:
        async with serving(max_batch=4) as server:
            bad = ask(1, user={"features": {"age": "old"}})
            broken = ask(1, user={"features": {"age": "bomb"}})
            body = {"requests": [ask(1, 2), bad, ask(5), broken]}
            found = await server.client.post("/v1/rank:batch", json=body)
            first, second, third, fourth = found.json()["answers"]
            assert (first["answer"]["ids"], third["answer"]["ids"]) == ([2, 1], [5])
            assert second["error"]["code"] == "bad_request"
            assert fourth["error"]["code"] == "internal"
            none = await server.client.post("/v1/rank:batch", json={"requests": []})
            assert none.json() == {"answers": []}
            many = await server.client.post("/v1/rank:batch", json={"requests": [ask(1)] * 5})
            assert many.status_code == 413

    asyncio.run(run())


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (ask(1, user={"features": {"unknown": 1}}), 422, "unknown_feature"),
        (ask(1, user={"features": {"age": "old"}}), 422, "bad_request"),
        (ask(1, history={"version": "v0"}), 409, "history_required"),
        (ask(*range(9)), 413, "too_large"),
        ({"candidates": 3}, 422, "bad_request"),
        (ask(1, user={"features": {"age": "bomb"}}), 503, "internal"),
    ],
)
def test_refusals(
    serving: Serving, capfd: Any, body: dict[str, Any], status: int, code: str
) -> None:
    async def run() -> None:
        async with serving(max_candidates=8) as server:
            found = await server.client.post("/v1/rank", json=body)
            error = found.json()["error"]
            assert (found.status_code, error["code"]) == (status, code)
            assert "\n" not in error["message"]
            assert ("retry-after" in found.headers) == (status == 503)
            # The engine's thread goes on after whatever happened.
            assert (await server.client.post("/v1/rank", json=ask(1))).status_code == 200

    asyncio.run(run())
    said = capfd.readouterr().err
    assert "secret" not in said
    assert "Traceback" not in said
    if code == "internal":
        assert "ZeroDivisionError" in said


def test_the_body_must_be_plain_and_small(serving: Serving) -> None:
    async def run() -> None:
        async with serving(max_body=1000) as server:
            post = server.client.post
            text = json.dumps(ask(1))
            kind = {"content-type": "application/json"}
            zipped = {**kind, "content-encoding": "gzip"}
            assert (await post("/v1/rank", content=text, headers=zipped)).status_code == 415
            plain = {"content-type": "text/plain"}
            assert (await post("/v1/rank", content=text, headers=plain)).status_code == 415
            large = await post("/v1/rank", content=text + " " * 1000, headers=kind)
            assert (large.status_code, large.json()["error"]["code"]) == (413, "too_large")

            async def chunks() -> Any:
                for _ in range(20):
                    yield b" " * 100

            chunked = await post("/v1/rank", content=chunks(), headers=kind)
            assert chunked.status_code == 413
            assert server.service.intake.held == 0

    asyncio.run(run())


def test_bodies_together_hold_no_more_than_they_may(serving: Serving) -> None:
    async def run() -> None:
        async with serving(max_body=1000, max_buffered=1500, facts={"ms": 200.0}) as server:
            text = json.dumps(ask(1)) + " " * 900
            kind = {"content-type": "application/json"}
            calls = [server.client.post("/v1/rank", content=text, headers=kind) for _ in range(3)]
            found = [answer.status_code for answer in await asyncio.gather(*calls)]
            assert sorted(found) == [200, 503, 503]
            again = await server.client.post("/v1/rank", content=text, headers=kind)
            assert again.status_code == 200

    asyncio.run(run())


def test_paths_and_methods(serving: Serving) -> None:
    async def run() -> None:
        async with serving() as server:
            client = server.client
            for path in ("/", "/v1/rank/", "/v1", "/v1/rank%00", "/docs"):
                found = await client.get(path)
                assert (found.status_code, found.json()["error"]["code"]) == (404, "not_found")
            found = await client.get("/v1/rank")
            assert (found.status_code, found.headers["allow"]) == (405, "POST")
            assert (await client.post("/metrics")).status_code == 405
            assert (await client.head("/healthz")).status_code == 200
            for path in ("/healthz", "/readyz", "/v1/model", "/metrics", "/openapi.json"):
                assert (await client.get(path)).status_code == 200

    asyncio.run(run())


def test_without_the_token_everything_is_401(serving: Serving) -> None:
    async def run() -> None:
        async with serving(token="0123456789abcdef") as server:
            wrong = ["", "Bearer", "Bearer 0123456789abcdeF", "Basic 0123456789abcdef", "Bearer é"]
            calls = [("GET", "/healthz"), ("GET", "/metrics"), ("GET", "/none")]
            calls += [("POST", "/v1/rank"), ("POST", "/v1/items"), ("POST", "/v1/reload")]
            for method, path in calls:
                for value in wrong:
                    headers = [(b"authorization", value.encode())] if value else []
                    found = await server.client.request(method, path, headers=headers)
                    assert found.status_code == 401
                    assert found.headers["www-authenticate"] == "Bearer"
            assert server.control.names == []
            right = {"authorization": "bearer 0123456789abcdef"}
            found = await server.client.post("/v1/rank", json=ask(1), headers=right)
            assert found.status_code == 200

    asyncio.run(run())


def test_web_pages_cannot_call_a_server_without_a_token(serving: Serving) -> None:
    async def run() -> None:
        async with serving() as server:
            page = {"origin": "http://elsewhere.example"}
            found = await server.client.post("/v1/rank", json=ask(1), headers=page)
            assert found.status_code == 403

    asyncio.run(run())


def test_items_are_added_here_and_everywhere(serving: Serving) -> None:
    async def run() -> None:
        async with serving() as server:
            post = server.client.post
            assert (await post("/v1/rank", json=ask(-7))).json()["unknown"] == [-7]
            body = {"items": [{"id": -7, "features": {"price": 1}}], "removed": [5]}
            found = await post("/v1/items", json=body)
            assert found.json() == {"model": "one+1", "items": 1, "removed": 1, "stats": 0}
            assert server.control.refreshed == 1
            assert (await post("/v1/rank", json=ask(-7))).json()["unknown"] == []
            wrong = {"items": [{"id": 1, "features": {"unknown": 1}}]}
            found = await post("/v1/items", json=wrong)
            assert (found.status_code, server.control.refreshed) == (422, 1)

    asyncio.run(run())


def test_reload_asks_the_supervisor(serving: Serving) -> None:
    async def run() -> None:
        async with serving() as server:
            kind = {"content-type": "application/json"}
            found = await server.client.post("/v1/reload", headers=kind)
            assert found.json() == {"model": "two", "generation": 2, "workers": 1}
            await server.client.post("/v1/reload", json={"bundle": "two"})
            assert server.control.names == [None, "two"]

    asyncio.run(run())


def test_answered_requests_reach_the_hook_and_cannot_be_held_up_by_it(serving: Serving) -> None:
    seen: list[Any] = []

    def hook(request: Any, answer: Any) -> None:
        seen.append((request.request_id, answer.ids))
        if len(seen) == 1:
            raise OSError("disk full")

    async def run() -> None:
        async with serving(hook=hook) as server:
            for number in range(3):
                body = ask(number, request_id=number)
                assert (await server.client.post("/v1/rank", json=body)).status_code == 200
            server.service.close()

    asyncio.run(run())
    assert [one[0] for one in seen][-1] == 2


def test_readiness_follows_the_worker(serving: Serving) -> None:
    async def run() -> None:
        async with serving() as server:
            server.service.is_ready, server.service.reason = False, "stopping"
            found = await server.client.get("/readyz")
            assert (found.status_code, found.json()["reason"]) == (503, "stopping")
            assert (await server.client.get("/healthz")).status_code == 200

    asyncio.run(run())
