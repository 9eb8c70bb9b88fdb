"""Runners of peers: their environments, their data, their turns.

A runner is one file in ``benchmarks/peers``, run by its own environment's python; what it hears and
says is in ``protocol.py`` beside it. Nothing of a peer is imported here.

Shapes: ``N`` impressions, ``F`` fields.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from prerank.bench.planted import Impressions
from prerank.errors import InputError, PrerankError
from prerank.log import write_log
from prerank.schema import Feature, Label, Schema

__all__ = ["Contest", "Runner", "check_runners", "make_environment", "write_data"]

_FIRST_MS = 1_700_000_000_000


@dataclass(frozen=True, slots=True)
class Contest:
    """Its size in words, where runners and data are, and what all runners are told."""

    size: str
    runners: Path
    environments: Path
    data: Path
    options: Mapping[str, Any]


def make_environment(
    peer: str, runners: Path, environments: Path, *, say: Callable[[str], None] = lambda _: None
) -> Path:
    """Make a peer's environment unless it is there; return its python.

    Parameters
    ----------
    peer : str
        ``PEER.txt`` in ``runners`` is a full freeze, installed with ``--no-deps``: what a peer
        declares of old versions of torch then changes nothing. Which index pip asks is pip's own
        configuration.

    Raises
    ------
    PrerankError
        An installation that failed, with pip's last line.
    """
    folder = environments / peer
    python = folder / "bin" / "python"
    requirements = runners / f"{peer}.txt"
    done = folder / ".ready"
    wanted = requirements.read_text(encoding="utf-8")
    if done.is_file() and done.read_text(encoding="utf-8") == wanted:
        return python
    say(f"{peer}: making its environment in {folder}")
    venv.create(folder, with_pip=True, clear=True)
    command = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "-r", str(requirements)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise PrerankError(f"bench peers: environment of {peer} cannot be made: {last}")
    done.write_text(wanted, encoding="utf-8")
    return python


def write_data(folder: Path, drawn: Impressions, *, num_valid: int, rows: int) -> None:
    """Write impressions once for everybody: ``data.npz``, and the training rows as a log.

    Parameters
    ----------
    folder : Path
        Gets ``data.npz`` (``ids [N, F]`` int32, ``label [N]``, ``num_valid``, ``rows``) and
        ``log``, one request of one candidate per training row, all fields candidate features.
    drawn : Impressions
        The first ``num_valid`` are for validation.
    rows : int
        Ids of a field.
    """
    ids_NF = drawn.ids.numpy().astype(np.int32)
    label_N = drawn.label.numpy()
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "data.npz", ids=ids_NF, label=label_N, num_valid=num_valid, rows=rows)
    names = [f"f{k:02d}" for k in range(ids_NF.shape[1])]
    schema = Schema(
        features=tuple(Feature(name=n, owner="candidate", kind="categorical") for n in names),
        labels=(Label(name="click"),),
    )

    def tables(size: int = 65_536) -> Any:
        for first in range(num_valid, len(label_N), size):
            ids, label = ids_NF[first : first + size], label_N[first : first + size]
            number = np.arange(first, first + len(label))
            columns = {
                "request_id": pa.array(number),
                "user": pa.array(number % 1000),
                "time": pa.array(_FIRST_MS + number),
                "candidates.item": _lists(np.zeros(len(label), np.int64)),
                "candidates.stage": _lists(np.full(len(label), "exposed")),
                "labels.click": _lists(label),
            }
            columns |= {f"candidates.{n}": _lists(ids[:, k]) for k, n in enumerate(names)}
            yield pa.table(columns)

    train = np.arange(len(label_N) - num_valid)
    write_log(folder / "log", schema, tables(), splits={"train": train}, splits_rule="all")


def _lists(values: np.ndarray[Any, Any]) -> pa.Array:
    """Return lists of one value each."""
    offsets = pa.array(np.arange(len(values) + 1, dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, pa.array(values))


@dataclass(slots=True)
class Runner:
    """A library at work in its own process, and what it has said so far."""

    name: str
    process: subprocess.Popen[str]
    complaints: IO[str]
    ready: dict[str, Any] = field(default_factory=dict)
    turns: list[dict[str, float]] = field(default_factory=list)
    end: dict[str, float] = field(default_factory=dict)

    @classmethod
    def start(
        cls, contest: Contest, name: str, file: str, peer: str | None, **options: Any
    ) -> Runner:
        """Start a runner; :meth:`wait` until its model is built.

        Parameters
        ----------
        name : str
            What to call it in errors.
        file : str
            The runner's file.
        peer : str or None
            Whose environment; None is our own.
        **options
            Added to those of the contest.
        """
        python = str(contest.environments / peer / "bin" / "python") if peer else sys.executable
        told = json.dumps({**contest.options, **options, "log": str(contest.data / "log")})
        threads = str({**contest.options, **options}["threads"])
        env = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        command = [python, str(contest.runners / file), str(contest.data / "data.npz"), told]
        # Not a pipe: nobody reads it while the runner works. Closed by `stop`.
        complaints = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=complaints, text=True, env=env
        )
        return cls(name, process, complaints)

    def wait(self) -> None:
        """Wait until its model is built."""
        self.ready = self._hear()

    def turn(self, steps: int, *, validate: bool) -> None:
        """Let it train, and validate if asked to; the others wait."""
        self._tell(steps=steps, validate=validate)
        self.turns.append(self._hear())

    def again(self, rate: float) -> None:
        """Let it begin anew at another learning rate."""
        self._tell(lr=rate)
        self.ready, self.turns = self._hear(), []

    def finish(self) -> None:
        """Let it say what memory it took, and go."""
        self._tell(steps=0)
        self.end = self._hear()
        self.process.wait()

    def stop(self) -> None:
        """End it whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.complaints):
            if file is not None:
                with contextlib.suppress(BrokenPipeError):
                    file.close()

    def _tell(self, **message: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def _hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        while line and not line.startswith("{"):  # what a library prints while it is imported
            line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.complaints.seek(0)
            last = (self.complaints.read().strip().splitlines() or ["no message"])[-1]
            self.stop()
            raise PrerankError(f"bench peers: {self.name} stopped: {last}")
        heard: dict[str, Any] = json.loads(line)
        return heard


def check_runners(runners: Path) -> None:
    """Refuse a folder that has no runners.

    Raises
    ------
    InputError
        ``protocol.py`` is not there.
    """
    if not (runners / "protocol.py").is_file():
        raise InputError(
            f"{runners}: no runners there (no protocol.py); run from a clone's root, or name "
            "the folder: --runners benchmarks/peers"
        )
