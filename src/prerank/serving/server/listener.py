"""uvicorn's server on a listening socket that several processes share.

Each process accepts one connection per turn of its loop, and none while it has as many as it may
have: connections spread over workers, and what finds no room anywhere waits in the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import uvicorn
from uvicorn.lifespan.off import LifespanOff

from prerank.serving.server.config import ServerConfig
from prerank.serving.server.connection import connection_class

__all__ = ["Listener", "bind"]

_RETRY_S = 0.05
_BACKLOG = 1024


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; a port of 0 becomes a free one.

    Raises
    ------
    OSError
        The address is taken, or not this machine's.
    """
    family, kind, proto, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listening = socket.socket(family, kind, proto)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except OSError:
        listening.close()
        raise
    listening.setblocking(False)
    return listening


class Listener(uvicorn.Server):
    """Serves an application on connections of a shared socket.

    Parameters
    ----------
    app : ASGI application
    config : ServerConfig
        Its limits.
    listening : socket.socket
        From :func:`bind`.
    """

    def __init__(self, app: Any, config: ServerConfig, listening: socket.socket) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=connection_class(config),  # type: ignore[arg-type]
                ws="none",
                lifespan="off",
                loop="asyncio",
                interface="asgi3",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=config.idle_s,  # type: ignore[arg-type]
                timeout_graceful_shutdown=config.drain_s,  # type: ignore[arg-type]
                h11_max_incomplete_event_size=config.max_header,
            )
        )
        self.limits, self.listening = config, listening
        self.servers = []
        self._pending: set[asyncio.Task[Any]] = set()
        self._resume: asyncio.TimerHandle | None = None
        self._accepts = False

    @property
    def num_connections(self) -> int:
        """Open connections."""
        return len(self.server_state.connections) + len(self._pending)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept."""
        self.lifespan = LifespanOff(self.config)
        self.started = True
        self._accepts = True
        self._listen()

    def stop_accepting(self) -> None:
        """Leave further connections to other workers."""
        self._accepts = False
        asyncio.get_running_loop().remove_reader(self.listening)
        if self._resume is not None:
            self._resume.cancel()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close idle connections, wait for the others' answers, then cut."""
        self.stop_accepting()
        self.listening.close()
        await super().shutdown()
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the worker's."""
        yield

    def _listen(self) -> None:
        self._resume = None
        if self._accepts:
            asyncio.get_running_loop().add_reader(self.listening, self._accept)

    def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        if self.num_connections >= self.limits.max_connections:
            self._wait(loop)
            return
        try:
            sock, _ = self.listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another worker was first, or the client left
        except OSError:
            self._wait(loop)  # no file handles left: some will be closed
            return
        sock.setblocking(False)
        task = loop.create_task(self._connect(loop, sock))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def _connect(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        kind: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        shared = {"config": self.config, "server_state": self.server_state, "app_state": {}}
        try:
            await loop.connect_accepted_socket(partial(kind, **shared, _loop=loop), sock)
        except OSError:
            sock.close()

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.remove_reader(self.listening)
        self._resume = loop.call_later(_RETRY_S, self._listen)
