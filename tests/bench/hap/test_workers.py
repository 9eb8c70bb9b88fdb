from __future__ import annotations

import operator
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prerank.bench.hap.workers import in_processes
from prerank.errors import PrerankError

_ENDLESS = """
import time
from prerank.bench.hap.workers import in_processes
for done in in_processes(time.sleep, [0.0, 0.0, 600.0, 600.0, 600.0], 2):
    print("done", flush=True)
"""

only_linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


def _children(parent: int) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="ascii").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == parent and fields[0] != "Z":
            yield int(path.parent.name)


def _is_there(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state.rpartition(")")[2].split()[0] != "Z"


@only_linux
def test_every_task_is_done_and_no_worker_stays() -> None:
    before = set(_children(os.getpid()))
    assert sorted(in_processes(operator.neg, [1, 2, 3], 2)) == [-3, -2, -1]
    new = set(_children(os.getpid())) - before
    # The tracker of shared resources stays: it is Python's own, and ends with this process.
    commands = [Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8") for pid in new]
    assert not [command for command in commands if "spawn_main" in command]


def test_what_a_task_raises_comes_out() -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_processes(_divide, [0], 1))


def _divide(by: int) -> float:
    return 1 / by


def test_a_worker_that_was_killed_is_no_endless_wait() -> None:
    with pytest.raises(PrerankError, match="ended from outside"):
        list(in_processes(os._exit, [1], 1))


@only_linux
@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_the_one_that_started_it(sent: signal.Signals) -> None:
    command = [sys.executable, "-c", _ENDLESS]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["done\n"] * 2
        workers = set(_children(process.pid))
        assert len(workers) >= 2
        process.send_signal(sent)
        process.communicate(timeout=30)
    assert process.returncode == {signal.SIGTERM: 143}.get(sent, -sent)
    until = time.monotonic() + 10
    while any(_is_there(pid) for pid in workers) and time.monotonic() < until:
        time.sleep(0.05)
    assert not [pid for pid in workers if _is_there(pid)]
