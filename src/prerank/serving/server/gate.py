"""What every request passes: who may come in, what is written down, and no error gets out."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prerank.serving.messages import Id
from prerank.serving.server.auth import Guard
from prerank.serving.server.body import ClientGone, discard
from prerank.serving.server.protocol import Failure, Refusal, refusal_of
from prerank.serving.server.wire import CONTENT_TYPES, Kind, answer_kind, encode

__all__ = ["Facts", "Gate", "facts_of", "respond"]

_LEFT = 499


class Facts(msgspec.Struct):
    """What becomes known of a request on its way; for access log and metrics."""

    started: float
    route: str = "other"
    status: int = 0
    code: str = ""
    request_id: Id | None = None
    candidates: int | None = None
    degraded: bool | None = None
    model: str = ""
    requests: int | None = None


def facts_of(request: Request) -> Facts:
    """Return what is known of a request."""
    found: Facts = request.scope["prerank.facts"]
    return found


def respond(value: Any, kind: Kind, status: int = 200, **headers: str) -> Response:
    """Return a response with an encoded message."""
    return Response(encode(value, kind), status, headers, media_type=CONTENT_TYPES[kind])


class Gate:
    """ASGI application around the routes.

    Parameters
    ----------
    app : ASGI application
        Raises :class:`Refusal` or answers.
    guard : Guard
        Asks for the token.
    done : callable
        Called with :class:`Facts` when a response has been sent.
    on_error : callable
        Called with every error that no request should cause.
    limit : int
        Bytes of a body, beyond which nothing is read to the end.
    """

    def __init__(
        self,
        app: ASGIApp,
        guard: Guard,
        done: Callable[[Facts], None],
        on_error: Callable[[Exception], None],
        limit: int,
    ) -> None:
        self._app, self._guard, self._done, self._on_error = app, guard, done, on_error
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        facts = scope["prerank.facts"] = Facts(time.perf_counter())
        is_read = False

        async def receive_on() -> Message:
            nonlocal is_read
            message = await receive()
            is_read = is_read or not message.get("more_body", False)
            return message

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                facts.status = message["status"]
            await send(message)

        try:
            self._admit(Request(scope))
            await self._app(scope, receive_on, send_on)
        except ClientGone:
            facts.status = _LEFT
        except Exception as error:
            refusal = self._refusal(error)
            facts.code = refusal.code
            if not facts.status:
                await self._refuse(refusal, Request(scope), receive_on, send_on, is_read=is_read)
        finally:
            self._done(facts)

    def _admit(self, request: Request) -> None:
        if not self._guard.admits(request.headers.get("authorization", "")):
            raise Refusal(
                401,
                "unauthorized",
                "authorization: expected 'Bearer TOKEN' with this server's token",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if self._guard.is_open and "origin" in request.headers:
            # Without a token, a page that a browser on this machine shows could call.
            raise Refusal(403, "browser", "origin: calls from web pages are not answered here")

    def _refusal(self, error: Exception) -> Refusal:
        if isinstance(error, HTTPException):
            code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "other")
            text = {404: "no such path; see /openapi.json", 405: "no such method for this path"}
            message = text.get(error.status_code, "refused")
            headers = dict(error.headers or {})
            return Refusal(error.status_code, code, message, headers=headers)
        refusal = refusal_of(error)
        if refusal.code == "internal":
            self._on_error(error)
        return refusal

    async def _refuse(
        self, refusal: Refusal, request: Request, receive: Receive, send: Send, *, is_read: bool
    ) -> None:
        kind = answer_kind(request.headers.get("accept", ""), _kind_of(request))
        body = b"" if request.method == "HEAD" else encode(Failure(refusal.error()), kind)
        headers = {**refusal.headers, "content-length": str(len(body))}
        has_body = request.method == "POST" or "content-length" in request.headers
        is_left = has_body and not is_read
        if is_left:
            headers["connection"] = "close"
        response = Response(b"", refusal.status, headers, media_type=CONTENT_TYPES[kind])
        await send(
            {
                "type": "http.response.start",
                "status": refusal.status,
                "headers": response.raw_headers,
            }
        )
        await send({"type": "http.response.body", "body": body, "more_body": is_left})
        if is_left:
            await discard(receive, self._limit)
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _kind_of(request: Request) -> Kind:
    return "msgpack" if "msgpack" in request.headers.get("content-type", "") else "json"
