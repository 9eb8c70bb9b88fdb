"""Opening engines, and going over from one to another."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any

from prerank.errors import InputError
from prerank.plugins import load
from prerank.serving.server.config import ServerConfig, Target

__all__ = ["OPENER", "Engines", "collect"]

OPENER: Target = "prerank.serving.server.workers.opening:open_engine"


class Engines:
    """The engine that is active and the one that may be next.

    Parameters
    ----------
    config : ServerConfig
    opener : str
        What opens a bundle: called with a path and ``config``, it returns an engine that has passed
        its self-test.
    """

    def __init__(self, config: ServerConfig, opener: Target = OPENER) -> None:
        self.config = config
        self._open = load(opener)
        self._next: tuple[int, Any] | None = None

    def open(self, path: str) -> Any:
        """Open a bundle, which tests it.

        Raises
        ------
        InputError, CheckFailedError
            It cannot serve.
        """
        return self._open(Path(path), self.config)

    async def prepare(self, number: int, path: str) -> str:
        """Open a bundle beside the active one; return its version.

        Raises
        ------
        InputError, CheckFailedError
            It cannot serve; the active one goes on.
        """
        engine = await asyncio.to_thread(self.open, path)
        self._next = number, engine
        version: str = engine.version
        return version

    def commit(self, number: int) -> Any:
        """Return what was prepared under a number.

        Raises
        ------
        InputError
            Nothing was.
        """
        if self._next is None or self._next[0] != number:
            raise InputError("nothing was prepared; reload again")
        engine, self._next = self._next[1], None
        return engine

    def abort(self, number: int) -> None:
        """Forget what was prepared."""
        if self._next is not None and self._next[0] == number:
            self._next = None
            collect()


def collect() -> None:
    """Give back the memory of engines that nobody uses; models have reference cycles."""
    gc.collect()
    try:
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return  # another C library
