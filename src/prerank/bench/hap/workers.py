"""Trainings in several processes, none of which outlives the one that started them.

Ctrl-C and SIGTERM end the workers at once: a training that is cut off goes on from its last
checkpoint when the same command is given again. A worker also watches its parent, so that even a
parent that was killed outright leaves nothing running.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from types import FrameType
from typing import TypeVar

from prerank.errors import PrerankError

__all__ = ["in_processes"]

Task = TypeVar("Task")
Result = TypeVar("Result")
_TERMINATED = 128 + signal.SIGTERM


def in_processes(
    do: Callable[[Task], Result], tasks: Iterable[Task], workers: int
) -> Iterator[Result]:
    """Yield what a function returns for each task, as soon as it is done.

    Parameters
    ----------
    do : callable
        Of a module, as it is imported anew by every worker.
    tasks : iterable
        Its arguments, done in this order.
    workers : int
        Processes at once.

    Raises
    ------
    PrerankError
        A worker was ended from outside, by lack of memory for example.
    """
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    with _terminable():
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_follow_parent)
        try:
            for future in as_completed([pool.submit(do, task) for task in tasks]):
                yield future.result()
        except BrokenProcessPool:
            raise PrerankError(
                "a worker was ended from outside (out of memory?); give fewer --workers, the same "
                "command goes on"
            ) from None
        except BaseException:
            for child in set(multiprocessing.active_children()) - before:
                child.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM unwind the stack; outside the main thread nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(_TERMINATED)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _follow_parent() -> None:
    """In a worker: leave Ctrl-C to the parent, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
