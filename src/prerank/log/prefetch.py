"""A background thread that stays a few items ahead of its consumer."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

__all__ = ["prefetch"]

T = TypeVar("T")
_END = object()


def prefetch(items: Iterable[T], depth: int) -> Iterator[T]:
    """Yield the same items in the same order, made ahead of time in a thread.

    Parameters
    ----------
    items : iterable
        What to run ahead in; its exceptions are raised here.
    depth : int
        How many items to hold ready; 0 runs without a thread.

    Examples
    --------
    >>> list(prefetch(range(5), depth=2))
    [0, 1, 2, 3, 4]
    """
    if depth <= 0:
        yield from items
        return
    ready: queue.Queue[object] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(value: object) -> bool:
        while not stopped.is_set():
            try:
                ready.put(value, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((item,)):
                    return
        except BaseException as error:
            put(error)
        else:
            put(_END)

    thread = threading.Thread(target=work, name="prerank-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            value = ready.get()
            if value is _END:
                return
            if isinstance(value, BaseException):
                raise value
            yield value[0]  # type: ignore[index]
    finally:
        stopped.set()
        thread.join()
