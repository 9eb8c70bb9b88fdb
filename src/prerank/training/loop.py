"""The training loop's state and one update: what a checkpoint must hold to go on exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from prerank.batch import RequestBatch
from prerank.errors import PrerankError
from prerank.models.base import Model
from prerank.objectives.base import Objective
from prerank.rng import hash64, stream
from prerank.training import distributed
from prerank.training.checkpoint import (
    Checkpoint,
    Stateful,
    named_parameters,
    optimiser_tensors,
    restore_optimiser,
)
from prerank.training.combine import Combine
from prerank.training.combine.base import Reporting, Watching
from prerank.training.config import FitConfig
from prerank.training.metrics_log import MetricsLog
from prerank.training.optim import build_optimisers, clip_gradients
from prerank.training.precision import run_model
from prerank.training.schedule import Plateau, multiplier
from prerank.training.validate import MODEL

__all__ = ["Best", "Trainer", "TrainerState"]

_DROPOUT = stream("training/dropout")
_SEEDS = 256
"""Updates whose seeds are hashed in one call: alone, each takes as long as a small layer."""


class Best(msgspec.Struct, frozen=True):
    """The best evaluation so far.

    Parameters
    ----------
    step : int
        Updates done.
    metric : str
        Name of the metric that decides.
    value : float
        Its value, as it is reported.
    metrics : dict of str to float
        All metrics of that evaluation.
    """

    step: int
    metric: str
    value: float
    metrics: dict[str, float] = {}


class TrainerState(msgspec.Struct):
    """Where a run stands; plain values only.

    Parameters
    ----------
    step : int
        Updates done.
    epoch, batch : int
        Epoch and number of the next batch in it.
    samples, seconds : int, float
        Candidates trained on and time spent on updates.
    plateau : Plateau, optional
        State of the plateau cut.
    best : Best, optional
        Best evaluation so far.
    waited : int
        Evaluations since the best one.
    stopped : str
        Why the run ended, empty while it goes on.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    samples: int = 0
    seconds: float = 0.0
    plateau: Plateau | None = None
    best: Best | None = None
    waited: int = 0
    stopped: str = ""


class Trainer:
    """A model under training with its optimisers.

    Parameters
    ----------
    model : Model
        On ``device``.
    objective : callable
        Scores and batch to named parts.
    combine : Combine
        Parts to gradient.
    config : FitConfig
        Rates, schedule, clipping, precision, seed.
    steps_per_epoch : int
        Batches of the training part.
    log : MetricsLog
        Where lines of training metrics go.
    device : torch.device
        Where batches are moved.
    """

    def __init__(
        self,
        model: Model,
        objective: Objective,
        combine: Combine,
        config: FitConfig,
        *,
        steps_per_epoch: int,
        log: MetricsLog,
        device: torch.device,
    ) -> None:
        self.model = model
        self.objective = objective
        self.combine = combine
        self.config = config
        self.steps_per_epoch = steps_per_epoch
        whole = config.epochs * steps_per_epoch
        self.total_steps = min(whole, config.max_steps or whole)
        self.log = log
        self.device = device
        self._is_cpu = device.type == "cpu"
        self.optimisers = build_optimisers(model, config)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.state = TrainerState()
        if config.plateau_patience is not None:
            self.state.plateau = Plateau(
                patience=config.plateau_patience, factor=config.plateau_factor
            )
        self._pending: list[dict[str, Tensor]] = []
        # Asked once: to compare an object with a protocol takes as long as a layer.
        self._watching = combine if isinstance(combine, Watching) else None
        self._reporting = combine if isinstance(combine, Reporting) else None
        self._seeds: tuple[int, list[int]] = (0, [])

    @property
    def epochs(self) -> float:
        """Epochs done, with the part of the one under way."""
        return round(self.state.epoch + self.state.batch / self.steps_per_epoch, 4)

    @property
    def pending(self) -> int:
        """Updates since the last flush."""
        return len(self._pending)

    def update(self, batch: RequestBatch) -> None:
        """Do one update with a batch, or this process's share of one, and count it.

        Dropout is seeded from (seed, step, process), so that a resumed run draws what the whole
        run drew.
        """
        state, config = self.state, self.config
        # torch.manual_seed looks for every kind of device there might be, at each update.
        seed = torch.default_generator.manual_seed if self._is_cpu else torch.manual_seed
        seed(self._seed())
        self._set_rates()
        if not self.model.training:
            self.model.train()
        num_candidates = batch.num_candidates
        if not self._is_cpu:
            batch = batch.to(self.device)
        for parameter in self.parameters:
            parameter.grad = None
        values: dict[str, Tensor] = {}
        # A process whose share is empty still takes part in what the others exchange.
        if num_candidates or distributed.size() > 1:
            scores = run_model(self.model, batch.inputs, config.precision)
            parts = self.objective({MODEL: scores}, batch)
            if self._watching is not None:
                self._watching.watch(scores.logits)
            total = self.combine(parts, self.parameters)
            num_candidates = distributed.average_gradients(self.parameters, num_candidates)
            values = {"loss": total, **{f"loss/{k}": v.detach() for k, v in parts.items()}}
            if self._reporting is not None:
                said = self._reporting.report()
                values |= {f"combine/{k}": total.new_tensor(v) for k, v in said.items()}
        if num_candidates:
            if config.clip_norm is not None:
                values["grad_norm"] = clip_gradients(self.parameters, config.clip_norm)
            for optimiser in self.optimisers.values():
                optimiser.step()
        self._pending.append(values if num_candidates else {})
        state.step += 1
        state.batch += 1
        state.samples += num_candidates

    def _seed(self) -> int:
        """Return the number that seeds this update, hashed for many updates at once."""
        step = self.state.step
        first, numbers = self._seeds
        if not first <= step < first + len(numbers):
            rank = distributed.rank()
            steps = np.arange(step, step + _SEEDS)
            keys = (self.config.seed, steps, *([rank] if rank else []))
            first, numbers = self._seeds = step, (hash64(_DROPOUT, *keys) >> np.uint64(1)).tolist()
        return numbers[step - first]

    def _set_rates(self) -> None:
        config, plateau = self.config, self.state.plateau
        factor = multiplier(
            self.state.step,
            kind=config.schedule,
            warmup_steps=config.warmup_steps,
            total_steps=self.total_steps,
        ) * (plateau.scale if plateau else 1.0)
        for name, optimiser in self.optimisers.items():
            for group in optimiser.param_groups:
                group["lr"] = factor * (config.table_lr if name == "table" else config.lr)

    def flush(self) -> None:
        """Check the losses since the last flush and write their means as one line.

        Values are read here, not at every update: reading one stalls an accelerator.

        Raises
        ------
        PrerankError
            A loss is NaN or infinite; names the step and the part.
        """
        pending, self._pending = self._pending, []
        first = self.state.step - len(pending)
        if not any(pending):
            return
        flat = torch.stack([v.detach().float() for values in pending for v in values.values()])
        numbers = iter(distributed.average(flat).tolist())
        sums: dict[str, list[float]] = {}
        for offset, values in enumerate(pending):
            found = {name: next(numbers) for name in values}
            if not all(map(math.isfinite, found.values())):
                self._refuse(first + offset + 1, found)
            for name, number in found.items():
                sums.setdefault(name, []).append(number)
        means = {name: sum(seen) / len(seen) for name, seen in sums.items()}
        rates = {f"lr/{k}": o.param_groups[0]["lr"] for k, o in self.optimisers.items()}
        self.log.append(self.state.step, kind="train", epoch=self.epochs, **means, **rates)

    def _refuse(self, step: int, values: Mapping[str, float]) -> None:
        bad = {name: number for name, number in values.items() if not math.isfinite(number)}
        # The total is bad because a part is; name the part.
        name = next((n for n in bad if n.startswith("loss/")), next(iter(bad)))
        what = f"part '{name.removeprefix('loss/')}'" if name.startswith("loss/") else name
        raise PrerankError(
            f"training: {what} is {bad[name]} at step {step}; expected a finite number; "
            "lower lr or table_lr, set clip_norm, or look for extreme feature values"
        )

    def observe(self, metrics: Mapping[str, float]) -> bool:
        """Take note of an evaluation; return whether it is a new best.

        Parameters
        ----------
        metrics : mapping of str to float
            All of its metrics, that of ``config.eval_metric`` finite.
        """
        state, name = self.state, self.config.eval_metric
        value = metrics[name]
        sign = -1.0 if name == "loss" else 1.0
        if state.plateau is not None:
            state.plateau = state.plateau.after(sign * value)
        if state.best is not None and sign * value <= sign * state.best.value:
            state.waited += 1
            return False
        # An undefined metric has no place in JSON.
        defined = {key: number for key, number in metrics.items() if math.isfinite(number)}
        state.best, state.waited = Best(state.step, name, value, defined), 0
        return True

    def tensors(self) -> dict[str, Tensor]:
        """Return everything a checkpoint holds beside :attr:`state`."""
        names = named_parameters(self.model)
        tensors = {f"model:{name}": value for name, value in self.model.state_dict().items()}
        for key, optimiser in self.optimisers.items():
            for name, value in optimiser_tensors(optimiser, names).items():
                tensors[f"{key}:{name}"] = value
        for key, owner in self._remembering():
            tensors |= {f"{key}:{name}": value for name, value in owner.state_tensors().items()}
        return tensors

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where a checkpoint was written."""
        self.state = msgspec.convert(checkpoint.state, TrainerState)
        self.load_weights(checkpoint)
        self.load_optimisers(checkpoint.tensors)
        for key, owner in self._remembering():
            owner.load_state(_under(key, checkpoint.tensors))

    def _remembering(self) -> list[tuple[str, Stateful]]:
        """Return what has a state beside the model and its optimisers."""
        owners = {"objective": self.objective, "combine": self.combine}
        return [(key, owner) for key, owner in owners.items() if isinstance(owner, Stateful)]

    def load_optimisers(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the state of optimisers from tensors named as in a checkpoint."""
        names = named_parameters(self.model)
        for key, optimiser in self.optimisers.items():
            restore_optimiser(optimiser, names, _under(key, tensors))

    def same_weights(self) -> None:
        """Give all processes the weights of process 0."""
        distributed.same_tensors(list(self.model.state_dict().values()))

    def load_weights(self, checkpoint: Checkpoint) -> None:
        """Take only the model's weights from a checkpoint."""
        self.model.load_state_dict(_under("model", checkpoint.tensors))

    def plain_state(self) -> dict[str, Any]:
        """Return :attr:`state` as JSON values."""
        values: dict[str, Any] = msgspec.to_builtins(self.state)
        return values


def _under(key: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = f"{key}:"
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
