"""Several processes: what one change means for all of them, and what the death of one does not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

Start = Callable[..., Any]
MakeBundle = Callable[..., Path]
ASK = {"candidates": {"ids": [1, 3, 2]}}


class Load:
    """Clients that ask without a pause, and what came of it."""

    def __init__(self, url: str, num_clients: int = 2, **ask: Any) -> None:
        self.url, self.body = url, {**ASK, **ask}
        self.statuses: list[int] = []
        self.models: list[str] = []
        self.broken: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(num_clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self) -> None:
        client = httpx.Client(base_url=self.url, timeout=60)
        while not self._stop.is_set():
            try:
                found = client.post("/v1/rank", json=self.body)
            except httpx.TransportError as error:
                self.broken.append(type(error).__name__)
                continue
            self.statuses.append(found.status_code)
            if found.status_code == 200:
                answer = found.json()
                assert answer["ids"] == [3, 2, 1]
                self.models.append(answer["model"])
        client.close()


def models_of_all(process: Any) -> set[str]:
    """Models that answer on new connections, which spread over workers."""
    found = set()
    for _ in range(12):
        with process.client() as client:
            found.add(client.post("/v1/rank", json=ASK).json()["model"])
    return found


def test_one_change_is_one_change_for_all_workers(
    start_server: Start, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    make_bundle("bad", fails=True)
    make_bundle("broken", breaks=True)
    make_bundle("two")
    generation = tmp_path / "generation.json"
    hook = {"answered": "fake_engine:Hook", "options": {"file": str(tmp_path / "answered")}}
    process = start_server(
        make_bundle("one", ms=0.2),
        workers=2,
        max_wait_ms=60_000.0,
        generation=str(generation),
        options=hook,
    )
    assert len(process.workers()) == 2
    with process.client() as client, Load(process.url) as load:
        # Items: all workers have them when the call returns.
        added = client.post("/v1/items", json={"items": [{"id": -5}]})
        assert added.json() == {"model": "one+1", "items": 1, "removed": 0, "stats": 0}
        for _ in range(8):
            with process.client() as other:
                found = other.post("/v1/rank", json={"candidates": {"ids": [-5]}})
                assert found.json()["unknown"] == []
        # Reload: all or none.
        for name, says in (("bad", "self-test"), ("none", "no such"), ("../x", "no path")):
            found = client.post("/v1/reload", json={"bundle": name})
            assert (found.status_code, found.json()["error"]["code"]) == (422, "bundle_refused")
            assert says in found.json()["error"]["message"]
        found = client.post("/v1/reload", json={"bundle": "broken"})
        assert found.status_code == 503
        assert "secret" not in found.text
        assert json.loads(generation.read_text())["number"] == 1
        assert models_of_all(process) == {"one+1"}
        found = client.post("/v1/reload", json={"bundle": "two"})
        assert found.json() == {"model": "two", "generation": 2, "workers": 2}
        assert models_of_all(process) == {"two"}
        active = json.loads(generation.read_text())
        assert (active["number"], active["version"]) == (2, "two")
        # Who takes the place of a worker serves what is active.
        victim = process.workers()[0]
        os.kill(victim, signal.SIGKILL)
        process.wait(lambda: victim not in process.workers() and len(process.workers()) == 2)
        process.wait(
            lambda: (
                "prerank_workers_ready 2.0" in client.get("/metrics").text
                if client.get("/readyz").status_code == 200
                else False
            )
        )
        assert models_of_all(process) == {"two"}
    assert set(load.statuses) == {200}
    assert set(load.models) <= {"one", "one+1", "two"}
    # At most one request per connection of the killed worker.
    assert len(load.broken) <= 2
    with process.client() as client:
        text = client.get("/metrics").text
        line = 'prerank_requests_total{route="rank",status="200"} '
        counted = next(one for one in text.splitlines() if one.startswith(line))
        # What the killed worker counted is still there.
        assert float(counted.removeprefix(line)) >= len(load.statuses) - 2
        process.wait(lambda: "prerank_worker_restarts_total 1.0" in client.get("/metrics").text)
        assert 'prerank_reloads_total{result="rolled_back"}' in text
    assert process.stop() == 0
    answered = [json.loads(line) for line in (tmp_path / "answered").read_text().splitlines()]
    assert {worker for worker, _, _ in answered} == {0, 1}


def test_sigterm_answers_what_is_there(start_server: Start, make_bundle: MakeBundle) -> None:
    process = start_server(make_bundle("one", ms=500.0), notice_s=0.5)
    found: list[Any] = []

    def ask() -> None:
        with process.client() as client:
            found.append(client.post("/v1/rank", json=ASK).status_code)

    with process.client() as client:
        assert client.get("/readyz").status_code == 200
        thread = threading.Thread(target=ask)
        thread.start()
        process.wait(lambda: 'route="rank"' in client.get("/metrics").text or not sleep(0.05))
        process.popen.send_signal(signal.SIGTERM)
        # Readiness goes first, while requests are still taken.
        process.wait(lambda: client.get("/readyz").status_code == 503)
    thread.join(30)
    assert found == [200]
    assert process.stop() == 0
    assert not process.workers()


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def test_workers_end_with_their_supervisor(start_server: Start, make_bundle: MakeBundle) -> None:
    process = start_server(make_bundle("one"))
    workers = process.workers()
    assert workers
    process.popen.kill()
    process.popen.wait()
    until = time.monotonic() + 30
    while any(Path(f"/proc/{pid}/stat").exists() and not _is_dead(pid) for pid in workers):
        assert time.monotonic() < until
        time.sleep(0.02)


def _is_dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize(
    ("facts", "values", "says"),
    [
        ({"fails": True}, {}, "self-test failed"),
        ({"breaks": True}, {}, "cannot start: ZeroDivisionError at fake_engine.py"),
        ({}, {"host": "0.0.0.0"}, "--token-file"),
        ({}, {"host": "203.0.113.7", "options": {"waive_token": True}}, "--host 203.0.113.7"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(
    start_server: Start, make_bundle: MakeBundle, facts: Any, values: Any, says: str
) -> None:
    process = start_server(make_bundle("one", **facts), wait=False, **values)
    assert process.popen.wait(60) in (1, 2)
    lines = process.log.read_text().splitlines()
    assert says in lines[-1]
    assert "secret" not in "".join(lines)
    assert not any("Traceback" in line for line in lines)


def test_a_worker_that_cannot_come_back_leaves_the_others_alone(
    start_server: Start, make_bundle: MakeBundle
) -> None:
    bundle = make_bundle("one")
    process = start_server(bundle, workers=2)
    (bundle / "fake.json").write_text("damaged")
    os.kill(process.workers()[0], signal.SIGKILL)
    process.wait(lambda: len([e for e in process.events() if e["event"] == "worker_ended"]) >= 2)
    waits = [e["again_in_s"] for e in process.events() if e["event"] == "worker_ended"]
    assert waits[0] == 0.0
    assert waits[1] > 0
    with process.client() as client:
        assert client.post("/v1/rank", json=ASK).status_code == 200
        # Reload needs all that answer; the damaged bundle is refused.
        assert client.post("/v1/reload", json={}).status_code == 422
    shutil.rmtree(bundle)
    make_bundle("one")
    process.wait(lambda: _num_ready(process) == 2)


def _num_ready(process: Any) -> int:
    with process.client() as client:
        lines = client.get("/metrics").text.splitlines()
    return int(float(next(x for x in lines if x.startswith("prerank_workers_ready")).split()[1]))


def test_the_access_log_has_a_line_per_request_and_nothing_of_the_user(
    start_server: Start, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    log = tmp_path / "access.log"
    process = start_server(make_bundle("one"), workers=2, access_log=str(log), request_ids="hash")
    secrets = {"user": {"id": "alice"}, "context": {"place": "home"}, "request_id": "alice-1"}
    with process.client() as client:
        client.post("/v1/rank", json={**ASK, **secrets})
        client.post("/v1/rank", json={**ASK, "alice": 1})
        client.post("/v1/rank", content=b"alice", headers={"content-type": "application/json"})
        client.get("/alice?alice=1")
    assert process.stop() == 0
    text = log.read_text() + process.log.read_text()
    assert "alice" not in text
    assert "home" not in text
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["status"] for line in lines] == [200, 422, 400, 404]
    first = lines[0]
    assert (first["route"], first["candidates"], first["degraded"]) == ("rank", 3, False)
    assert (first["model"], len(first["request"])) == ("one", 16)
    assert first["ms"] > 0
