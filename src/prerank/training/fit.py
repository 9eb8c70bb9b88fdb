"""``fit``: train a model on a part of a log, resumable at any update."""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch

from prerank.errors import InputError
from prerank.log import Part, Transforms
from prerank.log.format.files import write_json
from prerank.models.base import Model
from prerank.nn.torchrec_tables import require_torchrec, use_plain_tables, use_torchrec_tables
from prerank.objectives.base import Objective
from prerank.sampling.base import Sampler, knowing
from prerank.training import distributed
from prerank.training.combine import Combine, Sum
from prerank.training.config import FitConfig
from prerank.training.interrupt import InterruptedRunError
from prerank.training.loop import Trainer
from prerank.training.metrics_log import MetricsLog
from prerank.training.run import METRICS, RunFolder, Trunk, describe_run, fill_model
from prerank.training.sitting import FitReport, Sitting
from prerank.training.warm import DRIFT, Start

__all__ = ["fit"]


def fit(
    model: Model,
    train: Part,
    objective: Objective,
    *,
    valid: Part | None = None,
    config: FitConfig | None = None,
    combine: Combine | None = None,
    sampler: Sampler | None = None,
    start: Start | None = None,
    trunk: Trunk | None = None,
    out: Path | str | None = None,
    progress: bool = True,
    device: str | torch.device = "cpu",
) -> FitReport:
    """Train a model; afterwards it has the best weights, transforms, and is in eval mode.

    With ``out`` the run can be stopped at any moment and goes on where it was when ``fit`` is
    called again with the same arguments: the result is the same, bit for bit, on the same number
    of threads. A complete run of the same configuration is loaded and returned at once.

    Called in every process of an initialised ``torch.distributed`` group, it trains data-parallel:
    each process takes its share of every batch, the result is that of one process on whole batches
    up to the order of floating-point sums, and process 0 alone writes.

    Parameters
    ----------
    model : Model
        Trained in place. Its transforms are fitted on ``train`` unless it has some.
    train, valid : Part
        Training and validation requests.
    objective : callable
        ``({"model": Scores}, RequestBatch) -> {part: scalar}``.
    config : FitConfig, optional
        Default: ``FitConfig()``.
    combine : Combine, optional
        How parts become a gradient; default :class:`Sum`.
    sampler : Sampler, optional
        Which candidates of a training request are used, and which are drawn; default: those that
        are stored. Validation reads all that is stored, so its loss is of other candidates than
        the training loss; its other metrics are of exposures.
    start : Start, optional
        What :func:`warm_start` returned for this model.
    trunk : Trunk, optional
        The run whose model this model was built over, for the record: what that one was trained
        on, this one has seen too.
    out : path, optional
        Folder of the run. Without it nothing is written.
    progress : bool
        Show progress on stderr.
    device : str or torch.device
        Where to train; the model stays there.

    Raises
    ------
    InputError
        An empty part; a metric that the validation part cannot have; ``out`` holds something
        else or a run of another configuration.
    PrerankError
        A loss is not finite (names step and part).
    InterruptedRunError
        Ctrl-C. The run can be resumed.

    Examples
    --------
    >>> import tempfile
    >>> import pyarrow as pa
    >>> from prerank.log import open_log, write_log
    >>> from prerank.models import TwoTower
    >>> from prerank.objectives import BCE
    >>> from prerank.schema import Feature, Label, Schema
    >>> schema = Schema(
    ...     features=(Feature(name="item", owner="item", kind="categorical"),),
    ...     labels=(Label(name="click"),),
    ... )
    >>> requests = pa.table(
    ...     {
    ...         "request_id": [0, 1],
    ...         "user": [7, 8],
    ...         "time": [1_700_000_000_000, 1_700_000_060_000],
    ...         "candidates.item": [[1, 2], [2, 3]],
    ...         "candidates.stage": [["exposed", "exposed"]] * 2,
    ...         "labels.click": [[1.0, 0.0], [0.0, 1.0]],
    ...     }
    ... )
    >>> path = tempfile.mkdtemp() + "/log"
    >>> _ = write_log(path, schema, [requests])
    >>> log = open_log(path)
    >>> model = TwoTower.Config().build(log.schema)
    >>> report = fit(model, log.all(), BCE.Config().build(log.schema), progress=False)
    >>> report.steps, report.samples, report.stopped
    (1, 4, 'epochs')
    """
    config = config or FitConfig()
    combine = combine or Sum()
    _check(train, valid, config)
    if config.table_backend == "torchrec":
        _check_torchrec(combine)
    run = describe_run(model, objective, combine, config, train=train, valid=valid, sampler=sampler)
    run.origin = start.origin if start else None
    run.trunk = trunk
    folder = None
    if out is not None:
        path = Path(out)
        folder = distributed.from_first(lambda: RunFolder(path, run))
    if folder is not None and folder.run.status == "complete":
        return _loaded(model.to(device), folder)
    try:
        _prepare(model, train, config, folder)
    except KeyboardInterrupt:
        raise InterruptedRunError("interrupted before the first update") from None
    is_first = distributed.rank() == 0
    if config.table_backend == "torchrec":
        use_torchrec_tables(model.to(device), lr=config.table_lr)
    trainer = Trainer(
        model.to(device),
        objective,
        combine,
        config,
        steps_per_epoch=train.num_batches(config.batch_size),
        log=MetricsLog(folder.path / METRICS if folder is not None and is_first else None),
        device=torch.device(device),
    )
    if start is not None:
        trainer.load_optimisers(start.optimisers)
        if folder is not None and is_first:
            write_json(start.drift, folder.path / DRIFT)
    assert model.transforms is not None
    sampler = knowing(sampler, model.transforms, train.log)
    sitting = Sitting(trainer, train, valid, folder, sampler)
    try:
        return sitting.run(progress=progress and is_first)
    except KeyboardInterrupt:
        raise InterruptedRunError(sitting.interrupted()) from None
    finally:
        use_plain_tables(model)


def _check(train: Part, valid: Part | None, config: FitConfig) -> None:
    for part in (train, valid):
        if part is not None and not part.num_requests:
            raise InputError(f"{part.log.path}: part '{part.name}' has no request to train on")
    for name in ("early_stopping", "plateau_patience"):
        if valid is None and getattr(config, name) is not None:
            raise InputError(f"fit: {name} needs a validation part; give valid, or leave it out")


def _check_torchrec(combine: Combine) -> None:
    require_torchrec()
    if type(combine) is not Sum or distributed.size() > 1:
        raise InputError(
            f"fit: table_backend torchrec with combine {type(combine).__name__} in "
            f"{distributed.size()} process(es); expected Sum in one process, because tables are "
            "updated before their gradients can be read"
        )


def _loaded(model: Model, folder: RunFolder) -> FitReport:
    """Fill the model from a complete run."""

    def load() -> Transforms:
        fill_model(model, folder.path, folder.run)
        return Transforms.load(folder.path)

    model.transforms = distributed.from_first(load)
    distributed.same_tensors(list(model.state_dict().values()))
    model.eval()
    report = {**folder.run.report, "run": str(folder.path)}
    return msgspec.convert({**report, "resumed_from": report["steps"]}, FitReport)


def _prepare(model: Model, train: Part, config: FitConfig, folder: RunFolder | None) -> None:
    def transforms() -> Transforms:
        if folder is not None and folder.run.status == "running":
            return Transforms.load(folder.path)
        if model.transforms is None:
            model.transforms = Transforms.fit(
                train, min_count=config.min_count, max_history=config.max_history
            )
        if folder is not None:
            folder.start(model)
        return model.transforms

    model.transforms = distributed.from_first(transforms)
