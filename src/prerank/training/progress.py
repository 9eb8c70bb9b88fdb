"""Progress of a run on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["ProgressReport"]

_LINE_EVERY_S = 30.0


class ProgressReport:
    """Shows steps, samples per second, time left and the last evaluation.

    Parameters
    ----------
    total_steps : int
        Updates of the whole run.
    start : int
        Updates done before (a resumed run).
    show : bool
        False shows nothing at all.
    stream : text file, optional
        Default: stderr as it is when the report opens.

    Examples
    --------
    >>> with ProgressReport(10, show=False) as report:
    ...     report.update(1, num_samples=256, epoch=0.1)
    """

    def __init__(
        self, total_steps: int, *, start: int = 0, show: bool = True, stream: TextIO | None = None
    ) -> None:
        self.total_steps = total_steps
        self._show = show
        self._stream = stream or sys.stderr
        self._bar: Progress | None = None
        self._start = start
        self._samples = 0
        self._began = self._last_line = time.monotonic()
        self._evaluated = ""

    def __enter__(self) -> Self:
        console = Console(file=self._stream)
        if self._show and console.is_terminal:
            self._bar = Progress(
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[evaluated]}"),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task(
                "train",
                total=self.total_steps,
                completed=self._start,
                epoch="0.00",
                speed="",
                evaluated="",
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, *, num_samples: int, epoch: float) -> None:
        """Count one update of ``num_samples`` candidates; ``epoch`` counts those done."""
        if not self._show:
            return
        self._samples += num_samples
        now = time.monotonic()
        if self._bar is not None:
            speed = f"{self._samples / max(now - self._began, 1e-9):,.0f} samples/s"
            self._bar.update(
                self._task,
                completed=step,
                epoch=f"{epoch:.2f}",
                speed=speed,
                evaluated=self._evaluated,
            )
        elif now - self._last_line >= _LINE_EVERY_S:
            self._last_line = now
            elapsed = now - self._began
            left = elapsed / max(step - self._start, 1) * (self.total_steps - step)
            self.note(
                f"step {step}/{self.total_steps}, epoch {epoch:.2f}, "
                f"{self._samples / elapsed:,.0f} samples/s, {left:,.0f} s left {self._evaluated}"
            )

    def evaluated(self, text: str) -> None:
        """Show the result of an evaluation from here on."""
        self._evaluated = text

    def note(self, text: str) -> None:
        """Write one line."""
        if not self._show:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            self._stream.write(f"{text.rstrip()}\n")
            self._stream.flush()
