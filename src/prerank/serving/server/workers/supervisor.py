"""The process that owns the listening socket and keeps the workers at it; it never computes."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from prerank.errors import CheckFailedError, InputError
from prerank.serving.server.auth import check_exposure
from prerank.serving.server.config import ServerConfig, Target
from prerank.serving.server.listener import bind
from prerank.serving.server.logs import event
from prerank.serving.server.metrics import make_board, make_meter
from prerank.serving.server.workers.channel import Message
from prerank.serving.server.workers.engines import OPENER
from prerank.serving.server.workers.generation import Generation, write_generation
from prerank.serving.server.workers.reload import Changes
from prerank.serving.server.workers.slot import Slot
from prerank.serving.server.workers.worker import Setup, work

__all__ = ["Started", "serve"]

# One thread per process: workers share the machine by being several.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_COUNT_S = 0.5


class Started(msgspec.Struct, frozen=True):
    """What is said once all workers answer.

    Parameters
    ----------
    url : str
        Where.
    model : str
        Version of the bundle.
    workers, pid : int
        Number of workers; the supervisor's process.
    """

    url: str
    model: str
    workers: int
    pid: int


def serve(
    bundle: str | Path,
    config: ServerConfig | None = None,
    *,
    token: str = "",
    waive_token: bool = False,
    on_started: Callable[[Started], None] = lambda started: None,
    opener: Target = OPENER,
    answered: Target = "",
    options: Mapping[str, Any] | None = None,
) -> None:
    """Serve a bundle until SIGTERM or Ctrl-C; then answer what is there, and return.

    Parameters
    ----------
    bundle : path
        Folder that ``export`` wrote.
    config : ServerConfig, optional
        Addresses, limits, times.
    token : str
        Bearer token that clients must present; empty: none.
    waive_token : bool
        Serve other machines without a token.
    on_started : callable
        Called once all workers answer.
    opener : str
        What opens a bundle in a worker.
    answered : str
        What makes a worker's hook for answered requests: called with the worker's number and
        ``options``, it returns a callable of request and answer (and perhaps ``close``).
    options : mapping, optional
        For ``answered``.

    Raises
    ------
    InputError
        Bundle, settings or address that cannot be served; an address for others without a token.
    CheckFailedError
        The self-test failed, or no worker could start.
    """
    config = config or ServerConfig()
    check_exposure(config.host, token, waived=waive_token)
    path = Path(bundle)
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; expected a bundle: prerank export RUN BUNDLE")
    try:
        listening = bind(config.host, config.port)
    except OSError as error:
        raise InputError(
            f"--host {config.host} --port {config.port}: {error.strerror or error}; name another"
        ) from None
    with listening, _generation_file(config) as file, _few_threads():
        # The parent is resolved, the name is not: a name that comes to lead elsewhere is followed
        # by the next reload.
        active = Generation(1, str(path.absolute().parent.resolve() / path.name), "")
        write_generation(file, active)
        setup = Setup(config, 0, file, token, opener, answered, dict(options or {}))
        supervisor = _Supervisor(setup, listening, active)
        asyncio.run(supervisor.run(on_started))


@contextlib.contextmanager
def _generation_file(config: ServerConfig) -> Iterator[Path]:
    if config.generation:
        yield Path(config.generation).absolute()
        return
    with tempfile.TemporaryDirectory(prefix="prerank-") as folder:
        yield Path(folder) / "generation.json"


@contextlib.contextmanager
def _few_threads() -> Iterator[None]:
    """Libraries read these when they are first imported, in the process that forks workers."""
    before = {name: os.environ.get(name) for name in _THREADS}
    for name in _THREADS:
        os.environ.setdefault(name, "1")
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


class _Supervisor:
    def __init__(self, setup: Setup, listening: socket.socket, active: Generation) -> None:
        self.config, self.setup, self.listening = setup.config, setup, listening
        # Workers are forked from a process that has imported everything and done nothing: a new
        # one is there as fast as a bundle opens, and shares the memory of the libraries.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([work.__module__, setup.opener.partition(":")[0]])
        self.board = make_board(setup.config.workers)
        self.meter = make_meter(self.board, setup.config.workers)
        self.slots = [
            Slot(
                context,
                replace(setup, row=row),
                listening,
                self.board,
                self._asked,
            )
            for row in range(setup.config.workers)
        ]
        self.changes = Changes(self.slots, self.config, setup.generation, active)
        self._running: set[asyncio.Task[None]] = set()
        self.stopping = asyncio.Event()

    async def run(self, on_started: Callable[[Started], None]) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        counting = loop.create_task(self._count())
        keepers: list[asyncio.Task[None]] = []
        try:
            # The first tells whether the bundle can be served at all.
            for slots in (self.slots[:1], self.slots[1:]):
                keepers += [loop.create_task(slot.keep()) for slot in slots]
                await asyncio.gather(*map(self._first, slots))
            if not self.stopping.is_set():
                on_started(self._started())
                event("serving", model=self.changes.active.version, workers=len(self.slots))
            await self.stopping.wait()
        finally:
            counting.cancel()
            await self._end(keepers)

    async def _first(self, slot: Slot) -> None:
        waits = [asyncio.ensure_future(event_.wait()) for event_ in (slot.ready, self.stopping)]
        try:
            await asyncio.wait(
                waits, timeout=self.config.load_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for wait in waits:
                wait.cancel()
        if self.stopping.is_set():
            return
        if slot.failed is not None:
            kind = InputError if slot.failed.is_input else CheckFailedError
            raise kind(slot.failed.message)
        if not slot.ready.is_set():
            raise CheckFailedError(
                f"no worker could start within {self.config.load_s:g} s; the lines above say more"
            )
        active = self.changes.active
        self.changes.active = msgspec.structs.replace(active, version=slot.version)
        write_generation(self.setup.generation, self.changes.active)

    def _started(self) -> Started:
        host, port = self.listening.getsockname()[:2]
        name = f"[{host}]" if ":" in host else host
        model = self.changes.active.version
        return Started(f"http://{name}:{port}", model, len(self.slots), os.getpid())

    def _asked(self, slot: Slot, ask: Message) -> None:
        task = asyncio.get_running_loop().create_task(self.changes.answer(slot, ask))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _count(self) -> None:
        while True:
            meter = self.meter
            meter.set("worker_restarts", value=sum(slot.restarts for slot in self.slots))
            meter.set("reloads", "done", value=self.changes.num_done)
            meter.set("reloads", "rolled_back", value=self.changes.num_rolled_back)
            meter.set("generation", value=self.changes.active.number)
            await asyncio.sleep(_COUNT_S)

    def _stop(self) -> None:
        if self.stopping.is_set():
            for slot in self.slots:
                slot.kill()
        self.stopping.set()

    async def _end(self, keepers: list[asyncio.Task[None]]) -> None:
        for slot in self.slots:
            slot.is_stopping = True
            slot.tell(Message("drain"))
        # New connections go to workers that still accept, and to nobody once those have stopped.
        self.listening.close()
        most = self.config.notice_s + self.config.drain_s + 10.0
        _, late = await asyncio.wait(keepers, timeout=most) if keepers else (set(), set())
        for slot in self.slots if late else ():
            slot.kill()
        if late:
            await asyncio.wait(late, timeout=5.0)
        for task in self._running:
            task.cancel()
