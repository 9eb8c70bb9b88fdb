"""Connections that end: what uvicorn's HTTP/1.1 protocol leaves open gets a time.

uvicorn bounds the size of headers and the time between requests. Not bounded there, and bounded
here: the time that headers take to come (a client may send one byte a minute), and the time that a
client takes nothing of its answer. Bodies are bounded where they are read
(:mod:`prerank.serving.server.body`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from prerank.serving.server.config import ServerConfig

__all__ = ["Connection", "connection_class"]

_BODY = b'{"error":{"code":"timeout","message":"the headers did not come in time"}}'
_TOO_SLOW = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
)


class Connection(H11Protocol):
    """One connection; :func:`connection_class` gives it its times.

    Attributes
    ----------
    header_s, write_s : float
        Most seconds for headers to come, and for a client to take something.
    """

    header_s = 5.0
    write_s = 10.0
    _headers: asyncio.TimerHandle | None = None
    _writes: asyncio.TimerHandle | None = None
    _unsent = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for headers."""
        super().connection_made(transport)
        self._headers = self.loop.call_later(self.header_s, self._too_slow)

    def data_received(self, data: bytes) -> None:
        """Go on waiting for headers, or stop once they are there."""
        super().data_received(data)
        self._watch_reads()

    def on_response_complete(self) -> None:
        """Watch that the client takes what is left of its answer."""
        super().on_response_complete()
        self._watch_writes()
        if self._is_body_unwanted():
            self._watch_reads()

    def pause_writing(self) -> None:
        """Watch a client that is slower than we are."""
        super().pause_writing()
        self._watch_writes()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all clocks."""
        self._stop_headers()
        if self._writes is not None:
            self._writes.cancel()
            self._writes = None
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Close when idle, else after the present answer."""
        self._stop_headers()
        super().shutdown()

    def _is_body_unwanted(self) -> bool:
        """Whether a body is still coming in although the answer is out."""
        is_answered = self.cycle is not None and self.cycle.response_complete
        return is_answered and self.conn.their_state is h11.SEND_BODY

    def _watch_reads(self) -> None:
        if self.conn.their_state is not h11.IDLE and not self._is_body_unwanted():
            self._stop_headers()
        elif self._headers is None and not self.transport.is_closing():
            self._headers = self.loop.call_later(self.header_s, self._too_slow)

    def _stop_headers(self) -> None:
        if self._headers is not None:
            self._headers.cancel()
            self._headers = None

    def _too_slow(self) -> None:
        self._headers = None
        if self.transport.is_closing():
            return
        if self.conn.our_state is h11.IDLE:
            self.transport.write(_TOO_SLOW)
        self.transport.close()
        self._watch_writes()

    def _watch_writes(self) -> None:
        self._unsent = self.transport.get_write_buffer_size()
        if self._unsent and self._writes is None:
            self._writes = self.loop.call_later(self.write_s, self._look_at_writes)

    def _look_at_writes(self) -> None:
        self._writes = None
        left = self.transport.get_write_buffer_size()
        if left and left >= self._unsent:
            self.transport.abort()
            return
        self._watch_writes()


def connection_class(config: ServerConfig) -> Callable[..., Any]:
    """Return the class of connections with these times.

    Examples
    --------
    >>> connection_class(ServerConfig(header_s=1.5)).header_s
    1.5
    """
    times = {"header_s": config.header_s, "write_s": config.write_s}
    return type("Connection", (Connection,), times)
