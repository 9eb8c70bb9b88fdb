"""Ctrl-C as a request to stop after the current update."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from prerank.errors import PrerankError

__all__ = ["InterruptedRunError", "Interruption", "interruptible"]


class InterruptedRunError(PrerankError):
    """The user stopped a run; what it did so far can be resumed if it has a folder."""

    exit_code = 130


class Interruption:
    """Whether the user asked to stop."""

    requested = False


@contextlib.contextmanager
def interruptible() -> Iterator[Interruption]:
    """Turn the first Ctrl-C into ``requested``; a second one interrupts at once.

    Outside the main thread signals cannot be caught, and nothing is changed.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if interruption.requested:
            raise KeyboardInterrupt
        interruption.requested = True

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGINT, previous)
