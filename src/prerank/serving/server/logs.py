"""What is written about requests, off the way of their answers: a thread and a bounded queue."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import msgspec

from prerank.errors import PrerankError
from prerank.serving.messages import Id

__all__ = ["AccessLog", "Background", "event", "place_of"]

T = TypeVar("T")


class Background(Generic[T]):
    """Calls a function with each value, in a thread; drops values rather than making anyone wait.

    Parameters
    ----------
    call : callable
        Takes a list of one or more values. Its errors are told once each kind and place.
    limit : int
        Values that may wait.

    Attributes
    ----------
    dropped : int
        Values that found the queue full, or that ``call`` failed on.

    Examples
    --------
    >>> seen = []
    >>> background = Background(seen.extend)
    >>> background.put(1), background.close(), seen
    (True, None, [1])
    """

    def __init__(self, call: Callable[[list[T]], Any], limit: int = 4096) -> None:
        self._call, self._limit = call, limit
        self._waiting: deque[T] = deque()
        self._wake = threading.Condition()
        self._stop = False
        self.dropped = 0
        self._told: set[str] = set()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def put(self, value: T) -> bool:
        """Hand a value over; say whether there was room."""
        with self._wake:
            if self._stop or len(self._waiting) >= self._limit:
                self.dropped += 1
                return False
            self._waiting.append(value)
            self._wake.notify()
        return True

    def close(self, timeout_s: float = 5.0) -> None:
        """Let the thread end once it has handed over what waits."""
        with self._wake:
            self._stop = True
            self._wake.notify()
        self._thread.join(timeout_s)

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._waiting and not self._stop:
                    self._wake.wait()
                values = list(self._waiting)
                self._waiting.clear()
            if not values:
                return
            try:
                self._call(values)
            except Exception as error:
                self.dropped += len(values)
                place = place_of(error)
                if place not in self._told:
                    self._told.add(place)
                    event("log_failed", error=type(error).__name__, at=place)


class AccessLog:
    """One JSON line per request; nothing in it that a user sent.

    Parameters
    ----------
    target : str
        A file, ``-`` for stderr, empty for none.
    request_ids : {"omit", "hash"}
        What is said of request ids.
    worker : int
        Which worker writes.

    Raises
    ------
    PrerankError
        The file cannot be opened.
    """

    def __init__(
        self, target: str, request_ids: Literal["omit", "hash"] = "omit", worker: int = 0
    ) -> None:
        self._hashes, self._worker = request_ids == "hash", worker
        self._background: Background[dict[str, Any]] | None = None
        if not target:
            return
        try:
            # One write per call in append mode: lines of several workers do not mix.
            self._file = (
                os.dup(sys.stderr.fileno())
                if target == "-"
                else os.open(Path(target), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
            )
        except OSError as error:
            raise PrerankError(f"{target}: cannot be written: {error.strerror}") from None
        self._background = Background(self._write)

    @property
    def dropped(self) -> int:
        """Lines that were not written."""
        return self._background.dropped if self._background else 0

    def put(self, line: dict[str, Any], request_id: Id | None = None) -> None:
        """Hand over what is known of a request."""
        if self._background is None:
            return
        if self._hashes and request_id not in (None, ""):
            digest = hashlib.sha256(str(request_id).encode("utf-8", "surrogatepass"))
            line["request"] = digest.hexdigest()[:16]
        self._background.put({"at": _now(), "worker": self._worker, **line})

    def close(self) -> None:
        """Write what waits."""
        if self._background is not None:
            self._background.close()
            os.close(self._file)
            self._background = None

    def _write(self, lines: list[dict[str, Any]]) -> None:
        data = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
        while data:
            data = data[os.write(self._file, data) :]


def event(what: str, **facts: Any) -> None:
    """Write a line about the server itself on stderr."""
    line = msgspec.json.encode({"at": _now(), "event": what, "pid": os.getpid(), **facts})
    try:
        sys.stderr.write(line.decode() + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        return  # nobody reads stderr


def place_of(error: BaseException) -> str:
    """Return where an error was raised, without what it says: that may be a user's.

    Examples
    --------
    >>> try:
    ...     {}["secret"]
    ... except KeyError as error:
    ...     "secret" in place_of(error)
    False
    """
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return type(error).__name__
    last = frames[-1]
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno} in {last.name}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
