"""Metrics of a run as JSON lines: one object per line, appended as training goes."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from prerank.errors import PrerankError

__all__ = ["MetricsLog", "read_metrics"]


class MetricsLog:
    """Appends to ``metrics.jsonl``; a resumed run first cuts what its checkpoint has not seen.

    Parameters
    ----------
    path : Path or None
        The file; None keeps nothing.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
    >>> log = MetricsLog(path)
    >>> for step in (10, 20, 30):
    ...     log.append(step, kind="train", loss=1 / step)
    >>> log.cut_after(20)
    >>> [line["step"] for line in read_metrics(path)]
    [10, 20]
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def append(self, step: int, **values: Any) -> None:
        """Write one line of JSON values; NaN and infinity become null.

        Raises
        ------
        PrerankError
            The disk is full or the file cannot be written.
        """
        if self.path is None:
            return
        line = msgspec.json.encode({"step": step, **values}) + b"\n"
        with _writing(self.path), self.path.open("ab") as file:
            file.write(line)

    def sync(self) -> None:
        """Force the lines to disk; called before a checkpoint that vouches for them."""
        if self.path is None or not self.path.exists():
            return
        with _writing(self.path), self.path.open("rb+") as file:
            os.fsync(file.fileno())

    def cut_after(self, step: int) -> None:
        """Drop lines of later steps, and a last line that was never finished."""
        if self.path is None or not self.path.exists():
            return
        kept = [line for line in _whole_lines(self.path) if _step(line) <= step]
        temporary = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex[:8]}")
        try:
            with _writing(self.path):
                temporary.write_bytes(b"".join(line + b"\n" for line in kept))
                temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read all whole lines of a ``metrics.jsonl``."""
    return [msgspec.json.decode(line) for line in _whole_lines(path)]


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PrerankError(f"{path}: cannot be written: {error.strerror or error}") from None


def _whole_lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1]


def _step(line: bytes) -> float:
    try:
        return float(msgspec.json.decode(line)["step"])
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError):
        return float("inf")  # not a line of ours
