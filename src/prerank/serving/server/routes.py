"""What each path does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from prerank.serving.messages import RankRequest
from prerank.serving.server import metrics
from prerank.serving.server.body import ClientGone, disconnected
from prerank.serving.server.gate import facts_of, respond
from prerank.serving.server.openapi import document
from prerank.serving.server.protocol import (
    Answer,
    BatchAnswer,
    BatchEntry,
    BatchRequest,
    ItemsAnswer,
    ItemsRequest,
    Refusal,
    ReloadRequest,
    State,
    refusal_of,
)
from prerank.serving.server.queue import Ticket
from prerank.serving.server.service import Service
from prerank.serving.server.wire import Kind, answer_kind, body_kind, check, decode

__all__ = ["Routes"]

Endpoint = Callable[[Request], Awaitable[Response]]


class Routes:
    """Endpoints of one worker.

    Parameters
    ----------
    service : Service
        What they share.
    needs_token : bool
        Whether the OpenAPI document says so.
    """

    def __init__(self, service: Service, *, needs_token: bool) -> None:
        self.service = service
        self._document = msgspec.json.encode(document(needs_token=needs_token))

    async def rank(self, request: Request) -> Response:
        """``POST /v1/rank``."""
        facts = facts_of(request)
        facts.route = "rank"
        kind, back = _kinds(request)
        service = self.service
        async with service.intake.body(request) as body:
            asked = decode(body, kind, RankRequest)
            facts.request_id, facts.candidates = asked.request_id, _num_candidates(asked)
            check(asked, service.config)
            [ticket] = service.queue.submit([asked], facts.started)
            await self._wait([ticket], request)
        answer = ticket.future.result()
        facts.degraded, facts.model = answer.degraded, answer.model
        service.served(asked, answer, ticket.taken - ticket.started)
        return respond(Answer.of(answer, packed=_is_packed(asked)), back)

    async def batch(self, request: Request) -> Response:
        """``POST /v1/rank:batch``."""
        facts = facts_of(request)
        facts.route = "batch"
        kind, back = _kinds(request)
        service = self.service
        async with service.intake.body(request) as body:
            asked = decode(body, kind, BatchRequest).requests
            facts.requests, facts.candidates = len(asked), sum(map(_num_candidates, asked))
            if len(asked) > service.config.max_batch:
                limit = service.config.max_batch
                raise Refusal(413, "too_large", f"requests: {len(asked)}, at most {limit} at once")
            for k, one in enumerate(asked):
                check(one, service.config, f"requests[{k}].")
            tickets = service.queue.submit(asked, facts.started)
            await self._wait(tickets, request)
        entries = [self._entry(ticket) for ticket in tickets]
        answers = [entry.answer for entry in entries if entry.answer is not None]
        facts.degraded = any(answer.degraded for answer in answers)
        facts.model = answers[0].model if answers else ""
        return respond(BatchAnswer(entries), back)

    async def items(self, request: Request) -> Response:
        """``POST /v1/items``."""
        facts = facts_of(request)
        facts.route = "items"
        kind, back = _kinds(request)
        service = self.service
        async with service.intake.body(request) as body:
            asked = decode(body, kind, ItemsRequest)
            limit = service.config.max_candidates
            num = max(len(asked.items), len(asked.removed), len(asked.stats))
            if num > limit:
                raise Refusal(413, "too_large", f"items: {num} in one call, at most {limit}")
            # States of new items are computed beside the engine's thread: requests go on.
            async with service.changing:
                version = await asyncio.to_thread(
                    service.engine.add_items,
                    [(item.id, item.features) for item in asked.items],
                    removed=asked.removed,
                    stats=[(row.id, row.valid_from_ms, row.values) for row in asked.stats],
                )
            await service.control.refresh()
        facts.model = version
        nums = len(asked.items), len(asked.removed), len(asked.stats)
        return respond(ItemsAnswer(version, *nums), back)

    async def reload(self, request: Request) -> Response:
        """``POST /v1/reload``."""
        facts_of(request).route = "reload"
        kind, back = _kinds(request)
        async with self.service.intake.body(request) as body:
            asked = decode(body, kind, ReloadRequest) if body else ReloadRequest()
            answer = await self.service.control.reload(asked.bundle)
        facts_of(request).model = answer.model
        return respond(answer, back)

    async def healthz(self, request: Request) -> Response:
        """``GET /healthz``."""
        facts_of(request).route = "healthz"
        is_alive = self.service.queue.is_alive
        state = State(is_alive, reason="" if is_alive else "the engine's thread has ended")
        return respond(state, "json", 200 if is_alive else 503)

    async def readyz(self, request: Request) -> Response:
        """``GET /readyz``."""
        facts_of(request).route = "readyz"
        service = self.service
        state = State(service.is_ready, service.engine.version, service.reason)
        return respond(state, "json", 200 if state.ok else 503)

    async def model(self, request: Request) -> Response:
        """``GET /v1/model``."""
        facts = facts_of(request)
        facts.route = "model"
        service = self.service
        facts.model = service.engine.version
        found = {**service.engine.describe(), "stats": service.engine.stats()}
        limits = ("max_body", "max_candidates", "max_events", "max_batch")
        found["server"] = {name: getattr(service.config, name) for name in limits}
        return respond(found, "json")

    async def metrics(self, request: Request) -> Response:
        """``GET /metrics``."""
        facts_of(request).route = "metrics"
        service = self.service
        service.count()
        text, kind = metrics.render(service.meter.board, service.engine.version)
        return Response(text, media_type=kind)

    async def openapi(self, request: Request) -> Response:
        """``GET /openapi.json``."""
        facts_of(request).route = "openapi"
        return Response(self._document, media_type="application/json")

    async def _wait(self, tickets: Sequence[Ticket], request: Request) -> None:
        """Wait for all answers; drop the requests if the client leaves before."""
        futures = [ticket.future for ticket in tickets]
        if not futures:
            return
        gone = asyncio.ensure_future(disconnected(request.receive))
        try:
            done = asyncio.gather(*futures, return_exceptions=True)
            both: list[asyncio.Future[Any]] = [done, gone]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not done.done():
                raise ClientGone
        finally:
            gone.cancel()
            for ticket in tickets:
                if not ticket.future.done():
                    ticket.drop()

    def _entry(self, ticket: Ticket) -> BatchEntry:
        error = ticket.future.exception()
        if error is None:
            answer = ticket.future.result()
            self.service.served(ticket.request, answer, ticket.taken - ticket.started)
            return BatchEntry(answer=Answer.of(answer, packed=_is_packed(ticket.request)))
        assert isinstance(error, Exception)
        refusal = refusal_of(error)
        if refusal.code == "internal":
            self.service.note(error)
        return BatchEntry(error=refusal.error())


def _kinds(request: Request) -> tuple[Kind, Kind]:
    """Return how the body is encoded and how to answer."""
    headers = request.headers
    kind = body_kind(headers.get("content-type", ""), headers.get("content-encoding", ""))
    return kind, answer_kind(headers.get("accept", ""), kind)


def _is_packed(request: RankRequest) -> bool:
    return isinstance(request.candidates.ids, bytes)


def _num_candidates(request: RankRequest) -> int:
    ids = request.candidates.ids
    return len(ids) // 8 if isinstance(ids, bytes) else len(ids)
