"""A worker process: one event loop, one engine thread, one channel to the supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prerank.errors import PrerankError
from prerank.plugins import load
from prerank.serving.server.app import make_app
from prerank.serving.server.board import Board
from prerank.serving.server.config import ServerConfig, Target
from prerank.serving.server.listener import Listener
from prerank.serving.server.logs import AccessLog, event, place_of
from prerank.serving.server.metrics import make_meter
from prerank.serving.server.protocol import Refusal, ReloadAnswer
from prerank.serving.server.service import Service
from prerank.serving.server.workers.channel import Channel, Message
from prerank.serving.server.workers.engines import Engines, collect
from prerank.serving.server.workers.generation import read_generation

__all__ = ["Setup", "work"]

# A thread that computes in Python gives way to the event loop after so long.
_SWITCH_S = 0.0005
_COUNT_S = 0.5


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker needs to start.

    Parameters
    ----------
    config : ServerConfig
    row : int
        Which worker it is.
    generation : Path
        File that names the active bundle.
    token : str
        Bearer token; empty: none.
    opener : str
        What opens a bundle.
    answered : str
        What makes the hook for answered requests: called with the number of the worker and
        ``options``; empty: none.
    options : dict
        For ``answered``.
    """

    config: ServerConfig
    row: int
    generation: Path
    token: str
    opener: Target
    answered: Target = ""
    options: dict[str, Any] = field(default_factory=dict)


def work(setup: Setup, listening: socket.socket, end: socket.socket, board: Board) -> None:
    """Run a worker until it is told to end, or its supervisor is gone."""
    # Ctrl-C reaches every process of a terminal; the supervisor decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.setswitchinterval(_SWITCH_S)
    _quiet_logging()
    status = asyncio.run(_Worker(setup, listening, board).run(end))
    sys.stderr.flush()
    # Threads that hang must not keep the process; everything has been written by now.
    os._exit(status)


class _Worker:
    def __init__(self, setup: Setup, listening: socket.socket, board: Board) -> None:
        self.setup, self.config = setup, setup.config
        self.listening, self.board = listening, board
        self.stopping = asyncio.Event()
        self._asked: dict[int, asyncio.Future[Message]] = {}
        self._number = self._generation = 0

    async def run(self, end: socket.socket) -> int:
        self.channel = await Channel.over(end)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.stopping.set)
        try:
            # Libraries stay for good: collections need not look at them again and again.
            gc.freeze()
            self.engines = Engines(self.config, self.setup.opener)
            active = read_generation(self.setup.generation)
            self._generation = active.number
            engine = self.engines.open(active.bundle)
            self.service = self._service(engine)
        except Exception as error:
            is_known = isinstance(error, PrerankError)
            line = str(error) if is_known else f"cannot start: {place_of(error)}"
            is_input = is_known and getattr(error, "exit_code", 1) == 2
            self.channel.send(Message("failed", message=line, is_input=is_input))
            await self.channel.close()
            return 1
        del engine
        await self._serve()
        return 0

    def _service(self, engine: Any) -> Service:
        config, setup = self.config, self.setup
        answered = load(setup.answered)(setup.row, setup.options) if setup.answered else None
        return Service(
            engine,
            config,
            self,
            make_meter(self.board, setup.row),
            answered=answered,
            access=AccessLog(config.access_log, config.request_ids, setup.row),
        )

    async def _serve(self) -> None:
        service, config = self.service, self.config
        self.listener = Listener(make_app(service, self.setup.token), config, self.listening)
        tasks = [asyncio.create_task(part()) for part in (self._listen, self._count, self._look)]
        serving = asyncio.create_task(self.listener.serve())
        service.meter.set("workers_ready", value=1)
        self.channel.send(
            Message("ready", version=service.engine.version, generation=self._generation)
        )
        await self.stopping.wait()
        # Whoever spreads requests over machines hears first that this one is leaving.
        service.is_ready, service.reason = False, "stopping"
        service.meter.set("workers_ready", value=0)
        await asyncio.sleep(config.notice_s)
        self.listener.should_exit = True
        await serving
        for task in tasks:
            task.cancel()
        service.count()
        await asyncio.to_thread(service.close)
        await self.channel.close()

    async def _listen(self) -> None:
        """Do what the supervisor says; without one, end."""
        running: set[asyncio.Task[None]] = set()
        while (message := await self.channel.receive()) is not None:
            if message.op == "drain":
                self.stopping.set()
            elif message.op == "reply":
                future = self._asked.pop(message.number, None)
                if future is not None and not future.done():
                    future.set_result(message)
            else:
                task = asyncio.create_task(self._do(message))
                running.add(task)
                task.add_done_callback(running.discard)
        self.stopping.set()

    async def _do(self, message: Message) -> None:
        number, ok, is_input, version, line = message.number, True, False, "", ""
        try:
            match message.op:
                case "prepare":
                    assert message.path is not None
                    version = await self.engines.prepare(number, message.path)
                case "commit":
                    engine = self.engines.commit(number)
                    version = engine.version
                    self.service.switch(engine)
                    del engine
                    # The batch that is being ranked ends with the engine before.
                    asyncio.get_running_loop().call_later(1.0, collect)
                case "abort":
                    self.engines.abort(number)
                case "refresh":
                    async with self.service.changing:
                        await asyncio.to_thread(self.service.engine.refresh)
                    version = self.service.engine.version
        except PrerankError as error:
            ok, is_input, line = False, True, " ".join(str(error).split())
        except Exception as error:
            self.service.note(error)
            ok, line = False, f"unexpected {place_of(error)}"
        facts: dict[str, Any] = {"ok": ok, "is_input": is_input}
        facts |= {"version": version, "message": line}
        self.channel.send(Message("done", number, **facts))

    async def _count(self) -> None:
        """Keep this worker's numbers fresh for whoever is asked for metrics."""
        while True:
            self.service.meter.set("connections", value=self.listener.num_connections)
            self.service.count()
            await asyncio.sleep(_COUNT_S)

    async def _look(self) -> None:
        """Take up items that no worker of this server has added."""
        while self.config.refresh_s:
            await asyncio.sleep(self.config.refresh_s)
            try:
                async with self.service.changing:
                    await asyncio.to_thread(self.service.engine.refresh)
            except Exception as error:
                self.service.note(error)

    async def reload(self, name: str | None) -> ReloadAnswer:
        reply = await self._ask("reload", name)
        return ReloadAnswer(reply.version, reply.generation, reply.workers)

    async def refresh(self) -> None:
        await self._ask("refresh", None)

    async def _ask(self, what: Any, name: str | None) -> Message:
        self._number += 1
        number = self._number
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._asked[number] = future
        if not self.channel.send(Message("ask", number, what=what, path=name)):
            raise Refusal(503, "overloaded", "the server is stopping", retry_after_s=1.0)
        with contextlib.suppress(TimeoutError):
            reply = await asyncio.wait_for(future, 2 * self.config.load_s)
            if reply.ok:
                return reply
            if reply.is_input:
                raise Refusal(422, "bundle_refused", reply.message)
            raise Refusal(503, "overloaded", reply.message, retry_after_s=1.0)
        self._asked.pop(number, None)
        raise Refusal(503, "overloaded", "other workers did not answer", retry_after_s=5.0)


class _Lines(logging.Handler):
    """Tells that a library had something to say, without what: it may be a user's."""

    def emit(self, record: logging.LogRecord) -> None:
        event("log", logger=record.name, level=record.levelname, at=f"{record.module}")


def _quiet_logging() -> None:
    logging.getLogger("uvicorn").disabled = True
    logging.getLogger("uvicorn.error").disabled = True
    root = logging.getLogger()
    root.handlers[:] = [_Lines(logging.WARNING)]
