"""Values of a training run."""

from __future__ import annotations

from typing import Literal

from prerank.config import Config
from prerank.errors import InputError
from prerank.training.schedule import ScheduleKind

__all__ = ["FitConfig"]

_POSITIVE = (
    "epochs",
    "batch_size",
    "lr",
    "table_lr",
    "clip_norm",
    "plateau_patience",
    "early_stopping",
    "eval_every",
    "min_count",
    "max_history",
    "checkpoint_every",
    "keep_checkpoints",
    "log_every",
    "diagnose_every",
    "threads",
    "max_steps",
)


class FitConfig(Config, frozen=True):
    """How to train.

    Parameters
    ----------
    epochs : int, default 1
        Passes over the training part.
    batch_size : int, default 256
        Requests per update.
    max_steps : int, optional
        Updates to stop after, if the epochs have not ended by then.
    shuffle : bool, default True
        Draw the order of requests anew every epoch; False trains in time order.
    lr, table_lr : float
        Learning rates of the dense part (default 1e-3) and of embedding tables (default 0.05).
    optimizer : {"adamw", "adam"}
        Of the dense part.
    table_optimizer : {"rowwise_adagrad", "adagrad", "lazy_adam"}
        Of embedding tables; ``lazy_adam`` wants a ``table_lr`` near 0.01.
    table_backend : {"torchrec"}, optional
        Train tables with TorchRec's fused CPU kernels, which update rows inside the backward pass:
        ``rowwise_adagrad`` in one process, parts added up, without ``clip_norm`` and diagnosis.
        The weights are stored as ever. None: our own kernels.
    weight_decay : float, default 0
        Of the dense part; decoupled with ``adamw``.
    clip_norm : float, optional
        Largest joint L2 norm of all gradients, tables included.
    warmup_steps : int, default 0
        Updates over which learning rates climb linearly.
    schedule : {"constant", "linear", "cosine"}
        What follows the warm-up; ``linear`` and ``cosine`` reach 0 at the last update.
    plateau_patience : int, optional
        Multiply learning rates by ``plateau_factor`` after this many evaluations without a new
        best.
    plateau_factor : float, default 0.5
        In (0, 1).
    early_stopping : int, optional
        Stop after this many evaluations without a new best.
    eval_every : int, optional
        Updates between evaluations; None: at the end of each epoch. The end of the run is always
        evaluated.
    eval_metric : {"gauc", "auc", "loss"}
        Decides which weights are best, over the exposures of the validation part.
    seed : int, default 0
        Of order and dropout. (Initial weights are the model's own business.)
    precision : {"fp32", "bf16"}
        ``bf16`` runs matrix products in bfloat16; weights, tables and losses stay float32.
    min_count : int, default 2
        Ids seen fewer times in the training part train as unknown (only where the model has no
        transforms yet).
    max_history : int, default 100
        Most recent events read of each history stream (likewise).
    checkpoint_every : int, optional
        Updates between checkpoints, beside the one after every evaluation and epoch.
    keep_checkpoints : int, default 2
        Last checkpoints kept, beside the best.
    log_every : int, default 50
        Updates between lines of ``metrics.jsonl``.
    diagnose_every : int, optional
        Updates between diagnoses of gradients per source (:mod:`prerank.training.diagnosis`),
        lines of ``metrics.jsonl`` with ``kind`` = ``diagnosis``. One costs as much as 4 to 7
        updates; weights come out the same.
    threads : int, optional
        CPU threads of torch; None leaves them as they are.

    Raises
    ------
    InputError
        A value out of its range.

    Examples
    --------
    >>> FitConfig(epochs=0)
    Traceback (most recent call last):
        ...
    prerank.errors.InputError: fit: epochs is 0; expected a number above 0
    """

    epochs: int = 1
    batch_size: int = 256
    max_steps: int | None = None
    shuffle: bool = True
    lr: float = 1e-3
    table_lr: float = 0.05
    optimizer: Literal["adamw", "adam"] = "adamw"
    table_optimizer: Literal["rowwise_adagrad", "adagrad", "lazy_adam"] = "rowwise_adagrad"
    table_backend: Literal["torchrec"] | None = None
    weight_decay: float = 0.0
    clip_norm: float | None = None
    warmup_steps: int = 0
    schedule: ScheduleKind = "constant"
    plateau_patience: int | None = None
    plateau_factor: float = 0.5
    early_stopping: int | None = None
    eval_every: int | None = None
    eval_metric: Literal["gauc", "auc", "loss"] = "gauc"
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    min_count: int = 2
    max_history: int = 100
    checkpoint_every: int | None = None
    keep_checkpoints: int = 2
    log_every: int = 50
    diagnose_every: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"fit: {name} is {value}; expected a number above 0")
        for name in ("weight_decay", "warmup_steps"):
            value = getattr(self, name)
            if not value >= 0:
                raise InputError(f"fit: {name} is {value}; expected 0 or more")
        if not 0 < self.plateau_factor < 1:
            raise InputError(
                f"fit: plateau_factor is {self.plateau_factor}; expected a number between 0 and 1"
            )
        if self.table_backend == "torchrec":
            self._check_torchrec()

    def _check_torchrec(self) -> None:
        if self.table_optimizer != "rowwise_adagrad":
            raise InputError(
                f"fit: table_optimizer is {self.table_optimizer} with table_backend torchrec; "
                "expected rowwise_adagrad"
            )
        for name in ("clip_norm", "diagnose_every"):
            if getattr(self, name) is not None:
                raise InputError(
                    f"fit: {name} with table_backend torchrec, whose tables are updated before "
                    f"their gradients can be read; leave {name} or table_backend out"
                )
