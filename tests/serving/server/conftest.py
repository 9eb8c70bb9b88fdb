"""Servers with an engine that has no models: in the test's own loop, or as processes."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx
import pytest

from prerank.serving.server import ServerConfig, make_app
from prerank.serving.server.listener import Listener, bind
from prerank.serving.server.metrics import make_board, make_meter
from prerank.serving.server.protocol import ReloadAnswer
from prerank.serving.server.service import Service

FAKES = Path(__file__).with_name("fakes")
PATIENCE_S = 60.0


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FAKES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def fake() -> ModuleType:
    return _load("fake_engine")


@pytest.fixture(scope="session", autouse=True)
def no_fsync() -> None:
    """Nothing here waits for a disk."""


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Path]:
    """``make_bundle("a", ms=2.0)``: a bundle of the fake engine."""

    def make(name: str = "one", **facts: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "fake.json").write_text(json.dumps({"version": name, **facts}))
        return folder

    return make


class NoControl:
    """Stands for the supervisor of a single worker."""

    def __init__(self) -> None:
        self.refreshed = 0
        self.names: list[str | None] = []

    async def reload(self, name: str | None) -> ReloadAnswer:
        self.names.append(name)
        return ReloadAnswer("two", 2, 1)

    async def refresh(self) -> None:
        self.refreshed += 1


@pytest.fixture
def serving(fake: ModuleType, make_bundle: Callable[..., Path]) -> Callable[..., Any]:
    """``async with serving(token=..., facts=..., **config) as server``: in this process.

    ``server.client`` calls the application itself, ``server.connect()`` opens a connection to it
    over a real socket.
    """

    @contextlib.asynccontextmanager
    async def start(
        *, token: str = "", facts: dict[str, Any] | None = None, hook: Any = None, **values: Any
    ) -> AsyncIterator[Any]:
        config = ServerConfig(access_log="", **values)
        engine = fake.open_fake(make_bundle(**(facts or {})), config)
        control = NoControl()
        meter = make_meter(make_board(1), 0)
        service = Service(engine, config, control, meter, answered=hook)
        app = make_app(service, token)
        listening = bind("127.0.0.1", 0)
        port = listening.getsockname()[1]
        listener = Listener(app, config, listening)
        task = asyncio.create_task(listener.serve())

        async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            return await asyncio.open_connection("127.0.0.1", port)

        client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://server", timeout=PATIENCE_S
        )
        try:
            async with client:
                yield SimpleNamespace(
                    app=app,
                    client=client,
                    connect=connect,
                    control=control,
                    engine=engine,
                    listener=listener,
                    port=port,
                    service=service,
                )
        finally:
            listener.should_exit = True
            await task
            service.close()

    return start


class Process:
    """A server in processes of its own."""

    def __init__(self, popen: subprocess.Popen[str], log: Path) -> None:
        self.popen, self.log = popen, log
        self.url = ""

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=PATIENCE_S, **options)

    def workers(self) -> list[int]:
        """Process ids of the workers: children of the process that forks them."""
        return [
            pid
            for child in children(self.popen.pid)
            for pid in children(child)
            if b"forkserver" in _command(pid)
        ]

    def stop(self) -> int:
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(PATIENCE_S)

    def events(self) -> list[dict[str, Any]]:
        lines = self.log.read_text().splitlines()
        found = [json.loads(line) for line in lines if line.startswith("{")]
        return [line for line in found if "event" in line]

    def wait(self, found: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
        until = time.monotonic() + patience_s
        while not (value := found()):
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.02)
        return value


def children(pid: int) -> list[int]:
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for task in Path(f"/proc/{pid}/task").iterdir():
            if task.name != str(pid):
                found += (task / "children").read_text().split()
    except OSError:
        return []
    return [int(child) for child in found]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """``start_server(bundle, workers=2, ...)``: once all workers answer; stopped at the end."""
    started: list[Process] = []

    def start(bundle: Path, *, wait: bool = True, **values: Any) -> Process:
        log = tmp_path / f"server-{len(started)}.log"
        values = {"port": 0, "access_log": "", **values}
        paths = [str(FAKES), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        with log.open("w") as file:
            popen = subprocess.Popen(
                [sys.executable, str(FAKES / "run_fake.py"), str(bundle), json.dumps(values)],
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env=environment,
            )
        process = Process(popen, log)
        started.append(process)
        if wait:
            line = popen.stdout.readline()
            assert line, log.read_text()
            process.url = json.loads(line)["url"]
        return process

    yield start
    for process in started:
        try:
            process.stop()
        finally:
            process.popen.kill()
            process.popen.wait()
            process.popen.stdout.close()
