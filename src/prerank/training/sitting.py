"""One sitting of a run: the loop around the updates, from a checkpoint to the end or a stop."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Generator, Iterator
from time import perf_counter
from typing import Literal

import msgspec
import torch

from prerank.batch import RequestBatch
from prerank.errors import InputError
from prerank.log import Part
from prerank.sampling.base import Sampler
from prerank.training import distributed
from prerank.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_latest,
    prune_checkpoints,
    save_checkpoint,
)
from prerank.training.config import FitConfig
from prerank.training.diagnosis.hook import diagnose_if_due
from prerank.training.interrupt import Interruption, interruptible
from prerank.training.loop import Best, Trainer
from prerank.training.precision import bf16_support
from prerank.training.progress import ProgressReport
from prerank.training.run import RunFolder
from prerank.training.validate import validate

__all__ = ["FitReport", "Sitting"]

Stopped = Literal["epochs", "max_steps", "early_stopping"]


class FitReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a call of :func:`fit` did.

    Parameters
    ----------
    run : str or None
        The run's folder.
    steps, samples : int
        Updates and candidates trained on, earlier sittings of the run included.
    samples_per_s : float
        Candidates per second of training; evaluations and checkpoints do not count.
    best : Best or None
        The evaluation whose weights the model now has; None without a validation part.
    stopped : {"epochs", "max_steps", "early_stopping"}
        Why it ended.
    resumed_from : int or None
        Updates that were already done when this call began.
    skipped : tuple of str
        Checkpoints that were found damaged, and how.
    """

    run: str | None
    steps: int
    samples: int
    samples_per_s: float
    best: Best | None
    stopped: Stopped
    resumed_from: int | None = None
    skipped: tuple[str, ...] = ()


class Sitting:
    """One call of ``fit``.

    Parameters
    ----------
    trainer : Trainer
        Does the updates.
    train, valid : Part
        Training and validation requests.
    folder : RunFolder or None
        Where checkpoints go; None stores nothing.
    sampler : Sampler, optional
        Of the training part only.
    """

    def __init__(
        self,
        trainer: Trainer,
        train: Part,
        valid: Part | None,
        folder: RunFolder | None,
        sampler: Sampler | None = None,
    ) -> None:
        self.trainer = trainer
        self.train_part = train
        self.valid = valid
        self.folder = folder
        self.sampler = sampler
        self.saved_step: int | None = None
        self.best_weights: dict[str, torch.Tensor] | None = None

    def run(self, *, progress: bool) -> FitReport:
        """Train to the end, or until interrupted."""
        trainer = self.trainer
        with (
            _environment(trainer.config, trainer.device),
            distributed.global_normaliser(trainer.objective),
        ):
            resumed_from, skipped = self.resume()
            with (
                ProgressReport(trainer.total_steps, start=resumed_from or 0, show=progress) as bar,
                interruptible() as interruption,
            ):
                for line in skipped:
                    bar.note(f"skipped a damaged checkpoint: {line}")
                if resumed_from:
                    bar.note(f"going on from step {resumed_from}")
                if trainer.config.precision == "bf16":
                    bar.note(bf16_support(trainer.device))
                self.train(bar, interruption)
            return self.finish(resumed_from, tuple(skipped))

    def resume(self) -> tuple[int | None, list[str]]:
        """Go back to the newest whole checkpoint, or write the first one."""
        if self.folder is None:
            self.trainer.same_weights()
            return None, []
        folder = self.folder.checkpoints
        tensors: dict[str, torch.Tensor] = {}

        def load() -> tuple[Checkpoint | None, list[str]]:
            newest, skipped = load_latest(folder)
            if newest is None:
                return None, skipped
            tensors.update(newest.tensors)
            return dataclasses.replace(newest, tensors={}), skipped

        found, skipped = distributed.from_first(load)
        if found is None:
            self.trainer.same_weights()
            self.trainer.log.cut_after(-1)
            self.save()
            return None, skipped
        tensors = distributed.tensors_from_first(tensors)
        self.trainer.restore(dataclasses.replace(found, tensors=tensors))
        self.trainer.log.cut_after(found.step)
        self.saved_step = found.step
        return found.step, skipped

    def save(self) -> None:
        """Write a checkpoint, unless this step has one or there is no folder."""
        trainer, step = self.trainer, self.trainer.state.step
        trainer.flush()
        if self.folder is None or self.saved_step == step:
            return
        folder = self.folder.checkpoints

        def write() -> None:
            trainer.log.sync()
            save_checkpoint(folder, step, trainer.tensors(), trainer.plain_state())
            prune_checkpoints(folder, step, keep=trainer.config.keep_checkpoints)

        distributed.from_first(write)
        self.saved_step = step

    def train(self, bar: ProgressReport, interruption: Interruption) -> None:
        """Run epochs until something says stop."""
        trainer, config = self.trainer, self.trainer.config
        state = trainer.state
        if state.stopped:
            return
        while True:
            with contextlib.closing(self._batches()) as batches:
                began = perf_counter()
                for batch in batches:
                    began += diagnose_if_due(trainer, batch)
                    trainer.update(batch)
                    state.seconds += perf_counter() - began
                    if state.batch == trainer.steps_per_epoch:
                        state.epoch, state.batch = state.epoch + 1, 0
                    bar.update(state.step, num_samples=batch.num_candidates, epoch=trainer.epochs)
                    if self._after_update(bar):
                        return
                    if trainer.pending >= config.log_every:
                        trainer.flush()
                    if distributed.any_of(interruption.requested):
                        self.save()
                        raise KeyboardInterrupt
                    began = perf_counter()

    def _batches(self) -> Generator[RequestBatch]:
        config, state = self.trainer.config, self.trainer.state
        assert self.trainer.model.transforms is not None
        yield from self.train_part.batches(
            self.trainer.model.transforms,
            config.batch_size,
            seed=config.seed,
            epoch=state.epoch,
            shuffle=config.shuffle,
            start=state.batch,
            rank=distributed.rank(),
            world_size=distributed.size(),
            sampler=self.sampler,
            logged=self._logged(),
        )

    def _logged(self) -> frozenset[str] | None:
        """Return the logged ranks and scores that an update needs; None: nobody knows."""
        wanted: frozenset[str] = frozenset()
        for reader in (self.trainer.objective, self.sampler):
            names = getattr(reader, "logged", None)
            if reader is not None and names is None:
                return None
            wanted |= names or frozenset()
        return wanted

    def _after_update(self, bar: ProgressReport) -> bool:
        """Evaluate and store where it is due; return whether the run is over."""
        trainer, config, state = self.trainer, self.trainer.config, self.trainer.state
        epoch_ended, run_ended = state.batch == 0, state.step >= trainer.total_steps
        every = config.eval_every
        due = epoch_ended if every is None else state.step % every == 0
        if run_ended:
            whole = config.epochs * trainer.steps_per_epoch
            state.stopped = "epochs" if state.step >= whole else "max_steps"
        if self.valid is not None and (due or run_ended):
            self._evaluate(self.valid, bar)
        checkpoint_due = config.checkpoint_every and state.step % config.checkpoint_every == 0
        if due or epoch_ended or checkpoint_due or state.stopped:
            self.save()
        return bool(state.stopped)

    def _evaluate(self, valid: Part, bar: ProgressReport) -> None:
        trainer, config, state = self.trainer, self.trainer.config, self.trainer.state
        trainer.flush()
        metrics = validate(
            trainer.model,
            valid,
            trainer.objective,
            trainer.combine,
            batch_size=config.batch_size,
            device=trainer.device,
            precision=config.precision,
        )
        name = config.eval_metric
        value = metrics[name]
        if not math.isfinite(value):
            raise InputError(
                f"{valid.log.path}: part '{valid.name}' has no {name}: it needs exposed candidates "
                "with known targets of both kinds (gauc: within a user); choose another "
                "eval_metric or part"
            )
        improved = trainer.observe(metrics)
        trainer.log.append(
            state.step, kind="valid", epoch=trainer.epochs, **metrics, is_best=improved
        )
        bar.evaluated(f"{name} {value:.4f}")
        if improved and self.folder is None:
            weights = trainer.model.state_dict()
            self.best_weights = {k: v.detach().cpu().clone() for k, v in weights.items()}
        if config.early_stopping is not None and state.waited >= config.early_stopping:
            state.stopped = "early_stopping"

    def interrupted(self) -> str:
        """Return the one line that tells the user where the run stands."""
        step = self.trainer.state.step
        if self.folder is None:
            return f"interrupted at step {step}; nothing was stored, because no out was given"
        where = f"goes on from step {self.saved_step}"
        return f"interrupted at step {step}; the same call {where} ({self.folder.path})"

    def finish(self, resumed_from: int | None, skipped: tuple[str, ...]) -> FitReport:
        """Put the best weights into the model and write them down."""
        trainer, state = self.trainer, self.trainer.state
        if state.best is not None and state.best.step != state.step:
            if self.folder is not None:
                folder, step = self.folder.checkpoints, state.best.step
                distributed.from_first(lambda: trainer.load_weights(load_checkpoint(folder, step)))
                trainer.same_weights()
            elif self.best_weights is not None:
                trainer.model.load_state_dict(self.best_weights)
        trainer.model.eval()
        for parameter in trainer.parameters:
            parameter.grad = None
        report = FitReport(
            run=None,
            steps=state.step,
            samples=state.samples,
            samples_per_s=state.samples / state.seconds if state.seconds else 0.0,
            best=state.best,
            stopped=msgspec.convert(state.stopped, Stopped),
            resumed_from=resumed_from,
            skipped=skipped,
        )
        if self.folder is None:
            return report
        run = self.folder
        distributed.from_first(lambda: run.finish(trainer.model, msgspec.to_builtins(report)))
        return msgspec.structs.replace(report, run=str(run.path))


@contextlib.contextmanager
def _environment(config: FitConfig, device: torch.device) -> Iterator[None]:
    """Set threads for the run; leave them and torch's generators as they were."""
    threads = torch.get_num_threads()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        try:
            torch.set_num_threads(config.threads or threads)
            yield
        finally:
            torch.set_num_threads(threads)
