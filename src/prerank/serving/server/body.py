"""Reading a body within its limits of size, of time, and of what all bodies together may hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request
from starlette.types import Receive

from prerank.serving.server.config import ServerConfig
from prerank.serving.server.protocol import Refusal

__all__ = ["ClientGone", "Intake", "disconnected"]

_LINGER_S = 1.0
_LINGER_BYTES = 8


class ClientGone(Exception):  # noqa: N818 -- nothing went wrong here
    """The client has closed its connection; nobody waits for an answer."""


class Intake:
    """Takes bodies in.

    Parameters
    ----------
    config : ServerConfig
        Its limits.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.held = 0

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """Yield a request's body; its bytes count as held until the block is left.

        Raises
        ------
        Refusal
            408, 413, 400 (a length that is none), 503 (too much is held already).
        ClientGone
            The client left before the end.
        """
        stated = self._stated(request)
        held = 0
        try:
            # The stated length is set aside at once: a thousand slow uploads hold no more memory
            # than may be held.
            held = self._hold(stated)
            parts: list[bytes] = []
            size = 0
            try:
                async with asyncio.timeout(self.config.body_s):
                    more = True
                    while more:
                        message = await request.receive()
                        if message["type"] == "http.disconnect":
                            raise ClientGone
                        part, more = message.get("body", b""), message.get("more_body", False)
                        size += len(part)
                        if size > self.config.max_body:
                            raise self._too_large()
                        held += self._hold(size - held)
                        parts.append(part)
            except TimeoutError:
                raise Refusal(
                    408, "timeout", f"the body did not come within {self.config.body_s:g} s"
                ) from None
            yield parts[0] if len(parts) == 1 else b"".join(parts)
        finally:
            self.held -= held

    def _stated(self, request: Request) -> int:
        text = request.headers.get("content-length", "0")
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise Refusal(400, "malformed", "content-length: expected a number of bytes")
        if int(text) > self.config.max_body:
            raise self._too_large()
        return int(text)

    def _hold(self, more: int) -> int:
        if more <= 0:
            return 0
        if self.held + more > self.config.max_buffered:
            raise Refusal(
                503, "overloaded", "too many bytes of requests are waiting", retry_after_s=1.0
            )
        self.held += more
        return more

    def _too_large(self) -> Refusal:
        return Refusal(
            413, "too_large", f"the body has more than {self.config.max_body} bytes, the limit"
        )


async def disconnected(receive: Receive) -> None:
    """Return when the client has gone (or has its answer); call after the body has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def discard(receive: Receive, limit: int) -> None:
    """Read on for a moment what nobody wants.

    A connection that is closed with unread bytes is reset, and the reason that was just sent may
    never be read.
    """
    size = 0
    try:
        async with asyncio.timeout(_LINGER_S):
            while size < _LINGER_BYTES * limit:
                message = await receive()
                size += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return
