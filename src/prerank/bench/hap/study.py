"""Work through the HAP study's list of trainings: tune, choose, train; resumable, several workers.

Every training is a folder of its own under ``OUT/SET/jobs``; the same call again skips what is
done. A killed training goes on from its last checkpoint.

A set may take the rates that another one chose: then nothing is tuned on it, and the other one has
to be in the same ``OUT``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from prerank.bench.hap.execute import RESULT, execute, is_done, read_result, read_scores
from prerank.bench.hap.facts import Facts
from prerank.bench.hap.grid import Job, Line, final_jobs, lines_of, tuning_jobs
from prerank.bench.hap.sets import StudySet
from prerank.bench.hap.workers import in_processes
from prerank.errors import InputError, PrerankError
from prerank.log.format.files import write_json
from prerank.training.interrupt import InterruptedRunError

__all__ = ["Study", "Tick", "is_diagnosed"]

Tick = Callable[[str], None]
_DECIDES = "auc/macro"
_MACRO = "valid_macro.txt"
_DIAGNOSED = ("mixed_bce", "mixed_nce", "mixed_both", "grouped_nce", "ghcl", "weighted_nce")
_DIAGNOSE_EVERY = 25


def is_diagnosed(line: Line, seed: int) -> bool:
    """Whether the sources' gradients are diagnosed in a training, which takes time.

    Examples
    --------
    >>> [is_diagnosed(lines_of("world")[0], seed) for seed in range(5)]
    [False, True, True, True, False]
    """
    return (line.name in _DIAGNOSED or line.size == "heavy") and 1 <= seed <= 3


@dataclass(frozen=True, slots=True)
class Study:
    """The study on one data set.

    Parameters
    ----------
    chosen : StudySet
        Which.
    log : Path
        Its request log.
    out : Path
        Where results go; the set's own folder is made below it.
    only : tuple of str
        Lines to restrict it to, with those they depend on; empty: all of the set.
    max_seeds : int, optional
        Fewer seeds than the lines ask for.
    """

    chosen: StudySet
    log: Path
    out: Path
    only: tuple[str, ...] = ()
    max_seeds: int | None = None

    @property
    def lines(self) -> tuple[Line, ...]:
        """The lines, with those whose rate or trunk they take."""
        lines = lines_of(self.chosen.name, self.chosen.lines)
        if not self.only:
            return lines
        known = {line.name: line for line in lines}
        for name in self.only:
            if name not in known:
                raise InputError(f"bench hap: no line '{name}'; known: {', '.join(known)}")
        needed = {*self.only}
        for name in self.only:
            line = known[name]
            needed |= {line.rate_of or name} | ({"ghcl"} if line.shared else set())
        return tuple(line for line in lines if line.name in needed)

    @property
    def is_whole(self) -> bool:
        """Whether it has all lines and seeds of its set."""
        return not self.only and self.seeds == self.chosen.max_seeds

    @property
    def seeds(self) -> int:
        """At most so many seeds of any line."""
        return min(self.chosen.max_seeds, self.max_seeds or self.chosen.max_seeds)

    def folder(self, job: Job) -> Path:
        """Folder of a job's results."""
        return self.out / job.data / "jobs" / job.key

    def facts(self, names: tuple[str, ...] = ("valid",)) -> dict[str, Facts]:
        """Return what happened on parts."""
        parts, folder = self.chosen.open(self.log), self.out / self.chosen.name
        return {name: Facts.of(parts[name], folder) for name in names}

    def run(self, *, workers: int = 1, say: Tick, until: float | None = None) -> bool:
        """Train whatever is missing; return whether all of it is done.

        Parameters
        ----------
        workers : int
            Trainings at once, one thread each.
        say : callable
            Told one line now and then.
        until : float, optional
            Time (seconds since the epoch) after which no training is begun.
        """
        if self.chosen.rates_of is None:
            tuning = list(tuning_jobs(self.chosen.name, self.lines))
            if not self._work(tuning, workers, say, until, "choosing rates"):
                return False
        rates = self.rates()
        self._check()
        jobs = list(final_jobs(self.chosen.name, self.lines, rates, self.seeds))
        alone = [job for job in jobs if not job.line.shared]
        over = [job for job in jobs if job.line.shared]
        done = self._work(alone, workers, say, until, "training")
        return done and self._work(over, workers, say, until, "training over shared trunks")

    def rates(self) -> dict[str, float]:
        """Return the learning rate of each tuned line: best macro source AUC on valid, seed 0."""
        return {name: max(tried, key=lambda lr: tried[lr]) for name, tried in self.tried().items()}

    def tried(self) -> dict[str, dict[float, float]]:
        """Return, by tuned line, the macro source AUC on valid of each finished rate.

        Those of the set whose rates it takes, as far as they were judged there.
        """
        facts: Facts | None = None
        found: dict[str, dict[float, float]] = {}
        origin = self.chosen.rates_of or self.chosen.name
        for job in tuning_jobs(origin, self.lines):
            folder = self.folder(job)
            if not is_done(folder) or "failed" in read_result(folder):
                continue
            path = folder / _MACRO
            if not path.is_file():
                if origin != self.chosen.name:
                    continue
                facts = facts or self.facts()["valid"]
                values = facts.values(read_scores(folder, "valid"))[_DECIDES]
                path.write_text(repr(float(np.nanmean(values))), encoding="utf-8")
            value = float(path.read_text(encoding="utf-8"))
            found.setdefault(job.line.name, {})[job.lr] = value
        return found

    def _check(self) -> None:
        """Refuse to train at rates that another set has not chosen yet."""
        origin = self.chosen.rates_of
        if origin is None:
            return
        tried = self.tried()
        missing = {line.rate_of or line.name for line in self.lines} - set(tried)
        for job in tuning_jobs(origin, self.lines):
            folder = self.folder(job)
            if not is_done(folder) or not (
                "failed" in read_result(folder) or (folder / _MACRO).is_file()
            ):
                missing.add(job.line.name)
        if missing:
            raise InputError(
                f"bench hap {self.chosen.name}: takes the learning rates that '{origin}' chose, "
                f"and {self.out / origin} has none for {', '.join(sorted(missing))}; run bench hap "
                f"{origin} into the same --out first"
            )

    def finished(self) -> dict[str, dict[int, Path]]:
        """Return the folders of finished final trainings by line and seed."""
        rates = self.rates()
        lines = tuple(line for line in self.lines if (line.rate_of or line.name) in rates)
        found: dict[str, dict[int, Path]] = {}
        for job in final_jobs(self.chosen.name, lines, rates, self.seeds):
            folder = self.folder(job)
            if is_done(folder) and "failed" not in read_result(folder):
                found.setdefault(job.line.name, {})[job.seed] = folder
        return found

    def _work(
        self, jobs: Sequence[Job], workers: int, say: Tick, until: float | None, what: str
    ) -> bool:
        unique = {job.key: job for job in jobs}
        missing = [job for job in unique.values() if not is_done(self.folder(job))]
        if not missing:
            return True
        say(f"{self.chosen.name}: {what}: {len(unique) - len(missing)} of {len(unique)} are done")
        began, done = time.monotonic(), 0
        spent = [
            read_result(self.folder(j))["train_s"] for j in unique.values() if j not in missing
        ]
        for job, seconds in self._results(missing, workers, until):
            done += 1
            spent.append(seconds)
            left = (len(missing) - done) * float(np.mean(spent)) / workers
            so_far = time.monotonic() - began
            say(
                f"{self.chosen.name}: {what} {done}/{len(missing)}: {job.key}: {seconds:.0f} s; "
                f"{so_far:.0f} s so far, about {left:.0f} s left"
            )
        return done == len(missing)

    def _results(
        self, jobs: Iterable[Job], workers: int, until: float | None
    ) -> Iterator[tuple[Job, float]]:
        tasks = [(self, job, until) for job in jobs]
        results = map(_do, tasks) if workers == 1 else in_processes(_do, tasks, workers)
        yield from (result for result in results if result is not None)

    def do(self, job: Job) -> float:
        """Do one job in this process, one thread; return the seconds of its training."""
        torch.set_num_threads(1)
        light = None
        if job.line.shared:
            rates = self.rates()
            line = next(line for line in self.lines if line.name == "ghcl")
            light = self.folder(Job(data=job.data, line=line, lr=rates["ghcl"], seed=job.seed))
        began = time.monotonic()
        try:
            result = execute(
                job,
                self.chosen,
                self.chosen.open(self.log),
                self.folder(job),
                light=light,
                diagnose_every=_DIAGNOSE_EVERY if is_diagnosed(job.line, job.seed) else None,
            )
        except (InputError, InterruptedRunError):
            raise
        except PrerankError as error:  # a rate at which it diverges is an answer, too
            result = {"failed": str(error), "train_s": time.monotonic() - began}
            write_json(result, self.folder(job) / RESULT)
        seconds: float = result["train_s"]
        return seconds


def _do(task: tuple[Study, Job, float | None]) -> tuple[Job, float] | None:
    study, job, until = task
    if until is not None and time.time() > until:
        return None
    return job, study.do(job)
