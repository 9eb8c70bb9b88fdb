"""One place for a worker: whoever dies there is replaced, the more slowly the more often."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

from prerank.serving.server.board import Board
from prerank.serving.server.logs import event
from prerank.serving.server.metrics import clear, make_meter
from prerank.serving.server.workers.channel import Channel, Message
from prerank.serving.server.workers.worker import Setup, work

__all__ = ["Slot"]

_STEADY_S = 10.0
_FIRST_S = 0.1
_LONGEST_S = 15.0


class Slot:
    """Keeps one worker running.

    Parameters
    ----------
    context
        Of :mod:`multiprocessing`; makes processes.
    setup : Setup
        What the worker needs.
    listening : socket.socket
        Where it accepts.
    board : Board
        Where it counts.
    on_ask : callable
        Called with this slot and every ``ask`` of the worker.

    Attributes
    ----------
    ready : asyncio.Event
        Set while the worker answers requests.
    version : str
    generation : int
        What it started with.
    failed : Message or None
        Why the last worker could not start.
    restarts : int
        Workers that took the place of another.
    """

    def __init__(
        self,
        context: ForkServerContext,
        setup: Setup,
        listening: socket.socket,
        board: Board,
        on_ask: Callable[[Slot, Message], Any],
    ) -> None:
        self._context, self._listening, self._board = context, listening, board
        self.setup, self._on_ask = setup, on_ask
        self._meter = make_meter(board, setup.row)
        self.process: ForkServerProcess | None = None
        self.channel: Channel | None = None
        self.ready = asyncio.Event()
        self.version, self.generation = "", 0
        self.failed: Message | None = None
        self.restarts = 0
        self.is_stopping = False
        self._awaited: dict[int, asyncio.Future[Message]] = {}

    async def keep(self) -> None:
        """Start a worker, and another one whenever it ends, until told to stop."""
        failures = 0
        while True:
            began = time.monotonic()
            await self._run()
            if self.is_stopping:
                return
            is_steady = time.monotonic() - began > _STEADY_S
            failures = 0 if is_steady else failures + 1
            wait = 0.0 if failures <= 1 else min(_LONGEST_S, _FIRST_S * 2.0**failures)
            event("worker_ended", worker=self.setup.row, again_in_s=round(wait, 1))
            self.restarts += 1
            await asyncio.sleep(wait)

    async def call(self, message: Message, timeout_s: float) -> Message:
        """Send a message and return what came of it."""
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._awaited[message.number] = future
        try:
            if self.channel is None or not self.channel.send(message):
                return _lost(message)
            return await asyncio.wait_for(future, timeout_s)
        except TimeoutError:
            return Message("done", message.number, ok=False, message="a worker took too long")
        finally:
            self._awaited.pop(message.number, None)

    def tell(self, message: Message) -> None:
        """Send a message that needs no answer."""
        if self.channel is not None:
            self.channel.send(message)

    def replace(self) -> None:
        """Let the worker end as soon as it has answered what it has; another one follows."""
        if self.process is not None and self.process.is_alive():
            self.tell(Message("drain"))

    def kill(self) -> None:
        """End the worker at once."""
        if self.process is not None and self.process.is_alive():
            self.process.kill()

    async def _run(self) -> None:
        mine, theirs = socket.socketpair()
        process = self._context.Process(
            target=work,
            args=(self.setup, self._listening, theirs, self._board),
            name=f"prerank-worker-{self.setup.row}",
        )
        try:
            # Waits for the process that others are forked from, which imports torch at first.
            await asyncio.to_thread(process.start)
        finally:
            theirs.close()
        self.process = process
        self.channel = await Channel.over(mine)
        if self.is_stopping:
            process.kill()
        try:
            while (message := await self.channel.receive()) is not None:
                self._take(message)
        finally:
            self.ready.clear()
            clear(self._meter)
            for future in self._awaited.values():
                if not future.done():
                    future.set_result(_lost(None))
            with contextlib.suppress(OSError):
                await self.channel.close()
            self.channel = None
        await self._join(process)

    def _take(self, message: Message) -> None:
        match message.op:
            case "ready":
                self.version, self.generation = message.version, message.generation
                self.failed = None
                self.ready.set()
            case "failed":
                self.failed = message
                self.ready.set()
            case "done":
                future = self._awaited.get(message.number)
                if future is not None and not future.done():
                    future.set_result(message)
            case "ask":
                self._on_ask(self, message)

    async def _join(self, process: ForkServerProcess) -> None:
        """Wait for the end of a process that has closed its channel; help if it hangs."""
        patience = self.setup.config.drain_s + 5.0
        await asyncio.to_thread(process.join, patience)
        if process.is_alive():
            process.kill()
            await asyncio.to_thread(process.join)
        if process.exitcode == -signal.SIGKILL and not self.is_stopping:
            event("worker_killed", worker=self.setup.row)
        process.close()
        self.process = None


def _lost(message: Message | None) -> Message:
    number = message.number if message is not None else 0
    return Message("done", number, ok=False, message="a worker ended meanwhile")
