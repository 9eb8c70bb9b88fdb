"""Clients that misbehave, over real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

import pytest

Serving = Callable[..., Any]
PATIENCE_S = 30.0


def message(body: bytes, *more: str, length: int | None = None) -> bytes:
    lines = ["POST /v1/rank HTTP/1.1", "host: x", "content-type: application/json", *more]
    lines.append(f"content-length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode() + body


BODY = b'{"candidates":{"ids":[1,2]}}'


async def rest(reader: asyncio.StreamReader) -> bytes:
    return await asyncio.wait_for(reader.read(), PATIENCE_S)


async def one(reader: asyncio.StreamReader) -> tuple[int, Any]:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
    length = int(head.lower().partition(b"content-length:")[2].split()[0])
    return int(head.split()[1]), json.loads(await reader.readexactly(length))


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /v1/rank HTTP/1.1\r\nhost: x\r\n",
        b"POST",
        message(BODY) + b"GET /healthz HTTP/1.1\r\nhos",
    ],
    ids=["nothing", "half headers", "half a line", "half a second request"],
)
def test_headers_that_do_not_come_end_the_connection(serving: Serving, sent: bytes) -> None:
    async def run() -> None:
        async with serving(header_s=0.2, idle_s=0.3) as server:
            reader, writer = await server.connect()
            writer.write(sent)
            found = await rest(reader)
            assert b" 408 " in found or found.count(b"HTTP/1.1") == 1
            writer.close()

    asyncio.run(run())


def test_dripping_headers_do_not_help(serving: Serving) -> None:
    async def run() -> None:
        async with serving(header_s=0.3, idle_s=0.3) as server:
            reader, writer = await server.connect()

            async def drip() -> None:
                writer.write(b"GET /healthz HTTP/1.1\r\nx: ")
                while not reader.at_eof():
                    writer.write(b"a")
                    await asyncio.sleep(0.02)

            task = asyncio.create_task(drip())
            assert b" 408 " in await rest(reader)
            task.cancel()
            writer.close()

    asyncio.run(run())


def test_a_body_that_does_not_come_is_a_408(serving: Serving) -> None:
    async def run() -> None:
        async with serving(body_s=0.2) as server:
            reader, writer = await server.connect()
            writer.write(message(BODY[:5], length=len(BODY)))
            status, error = await one(reader)
            assert (status, error["error"]["code"]) == (408, "timeout")
            assert await rest(reader) == b""
            writer.close()
            assert server.service.intake.held == 0

    asyncio.run(run())


def test_a_body_that_nobody_reads_is_no_way_to_stay(serving: Serving) -> None:
    async def run() -> None:
        async with serving(header_s=0.2, idle_s=0.2) as server:
            reader, writer = await server.connect()
            # GET /healthz is answered without its body being read.
            writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nx")
            status, _ = await one(reader)
            assert status == 200

            async def drip() -> None:
                while not reader.at_eof():
                    writer.write(b"x")
                    await asyncio.sleep(0.02)

            task = asyncio.create_task(drip())
            assert await rest(reader) == b""
            task.cancel()
            writer.close()

    asyncio.run(run())


def test_an_oversized_body_is_refused_before_it_is_read(serving: Serving) -> None:
    async def run() -> None:
        async with serving(max_body=1000) as server:
            reader, writer = await server.connect()
            writer.write(message(b"x" * 4000, length=1 << 30))
            status, error = await one(reader)
            assert (status, error["error"]["code"]) == (413, "too_large")
            writer.close()
            # The client that sends all of it reads the reason, and no reset.
            reader, writer = await server.connect()
            writer.write(message(b"x" * 4000))
            assert (await one(reader))[0] == 413
            assert await rest(reader) == b""
            writer.close()

    asyncio.run(run())


def test_a_client_that_waits_for_100_is_refused_without(serving: Serving) -> None:
    async def run() -> None:
        async with serving(max_body=1000) as server:
            reader, writer = await server.connect()
            writer.write(message(b"", "expect: 100-continue", length=1 << 20))
            assert (await one(reader))[0] == 413
            writer.close()
            reader, writer = await server.connect()
            writer.write(message(b"", "expect: 100-continue", length=len(BODY)))
            line = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
            assert b" 100 " in line
            writer.write(BODY)
            assert (await one(reader))[0] == 200
            writer.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /healthz HTTP/1.1\r\nx: " + b"a" * 40_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST /v1/rank HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/rank HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"POST /v1/rank HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, gzip\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused_and_closed(serving: Serving, sent: bytes) -> None:
    async def run() -> None:
        async with serving(max_header=16_384) as server:
            reader, writer = await server.connect()
            writer.write(sent)
            found = await rest(reader)
            assert found.startswith((b"HTTP/1.1 400", b"HTTP/1.1 501"))
            writer.close()

    asyncio.run(run())


def test_pipelined_requests_are_answered_in_order(serving: Serving) -> None:
    async def run() -> None:
        async with serving() as server:
            reader, writer = await server.connect()
            bodies = [json.dumps({"candidates": {"ids": [n]}}).encode() for n in range(5)]
            writer.write(b"".join(map(message, bodies)))
            for number in range(5):
                status, answer = await one(reader)
                assert (status, answer["ids"]) == (200, [number])
            writer.close()

    asyncio.run(run())


def test_requests_of_clients_that_left_are_not_ranked(serving: Serving) -> None:
    async def run() -> None:
        async with serving(facts={"ms": 150.0}, coalesce_requests=1) as server:
            first, first_writer = await server.connect()
            first_writer.write(message(BODY))
            writers = []
            for _ in range(5):
                _, writer = await server.connect()
                writer.write(message(BODY))
                writers.append(writer)
            while len(server.service.queue) < 5:
                await asyncio.sleep(0.01)
            for writer in writers:
                writer.close()
            assert (await one(first))[0] == 200
            while not server.service.queue.is_idle:
                await asyncio.sleep(0.01)
            # At most one had been handed over before its client left.
            assert server.engine.counted.requests <= 2
            assert server.service.intake.held == 0
            first_writer.close()

    asyncio.run(run())


def test_a_client_that_takes_nothing_is_cut(serving: Serving) -> None:
    async def run() -> None:
        async with serving(write_s=0.2, max_candidates=400_000, max_body=8 << 20) as server:
            # Accepted connections inherit it: the answer must not fit into the kernel.
            server.listener.listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
            _, writer = await server.connect()
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            writer.transport.pause_reading()
            ids = json.dumps({"candidates": {"ids": list(range(10**9, 10**9 + 300_000))}})
            writer.write(message(ids.encode()))
            while not server.listener.server_state.connections:
                await asyncio.sleep(0.01)
            async with asyncio.timeout(PATIENCE_S):
                while server.listener.server_state.connections:
                    await asyncio.sleep(0.02)
            writer.transport.abort()

    asyncio.run(run())


def test_more_connections_than_allowed_wait(serving: Serving) -> None:
    async def run() -> None:
        async with serving(max_connections=2, idle_s=30.0) as server:
            pairs = [await server.connect() for _ in range(3)]
            for _, writer in pairs:
                writer.write(message(BODY))
            assert (await one(pairs[0][0]))[0] == 200
            assert (await one(pairs[1][0]))[0] == 200
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(pairs[2][0].read(1), 0.15)
            pairs[0][1].close()
            assert (await one(pairs[2][0]))[0] == 200
            for _, writer in pairs[1:]:
                writer.close()

    asyncio.run(run())
