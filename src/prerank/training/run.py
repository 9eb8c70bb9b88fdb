"""The folder of a run: what was trained, on which rows, how far it got, the weights.

::

    RUN/
      run.json              configuration, versions, log id and row ranges, status, best evaluation
      metrics.jsonl         one line per evaluation and per ``log_every`` updates
      checkpoints/          the last few and the best
      transforms.json, vocab/   how to turn stored values into inputs
      schema.json           of the log it was trained on
      model.safetensors     best weights; there when the run is complete
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch

import prerank
from prerank import models, objectives, sampling
from prerank.config import from_values, to_values
from prerank.errors import InputError
from prerank.log import Part, Transforms
from prerank.log.format.files import read_json, write_json
from prerank.models.base import Model
from prerank.sampling.base import Sampler
from prerank.schema import Schema
from prerank.training.checkpoint import load_tensors, save_tensors
from prerank.training.combine import TABLE as COMBINE_TABLE
from prerank.training.config import FitConfig

__all__ = [
    "Description",
    "Origin",
    "Run",
    "RunFolder",
    "TrainedRows",
    "Trunk",
    "describe_class",
    "describe_run",
    "fill_model",
    "load_run",
    "read_run",
]

RUN, METRICS, SCHEMA = "run.json", "metrics.jsonl", "schema.json"
CHECKPOINTS, WEIGHTS = "checkpoints", "model.safetensors"

# They change neither weights nor losses (threads: beyond the order of floating-point sums).
_FREE = frozenset({"threads", "checkpoint_every", "keep_checkpoints", "diagnose_every"})


class Description(msgspec.Struct, frozen=True):
    """Name of a class (as in its room's table) and the values of its configuration."""

    name: str
    config: dict[str, Any] = {}


class TrainedRows(msgspec.Struct, frozen=True):
    """Requests of a log: its id, the part's name, half-open ranges of request rows."""

    log_id: str
    part: str
    rows: list[tuple[int, int]]


class Origin(msgspec.Struct, frozen=True):
    """The run that a run was started from.

    Parameters
    ----------
    run : str
        Its folder, as it was given.
    weights_sha256 : str
        Digest of its weights.
    keep_optimizer : bool
        Whether the state of its optimisers was kept.
    noise_std : float
        Of the rows of ids that are new.
    seen : list of TrainedRows
        What it and the runs before it were trained on.
    """

    run: str
    weights_sha256: str
    keep_optimizer: bool
    noise_std: float
    seen: list[TrainedRows]


class Trunk(msgspec.Struct, frozen=True):
    """The run whose model a run's model is built over.

    Parameters
    ----------
    run : str
        Its folder, as it was given.
    weights_sha256 : str
        Digest of its weights.
    seen : list of TrainedRows
        What it was trained on.
    """

    run: str
    weights_sha256: str
    seen: list[TrainedRows]

    @classmethod
    def of(cls, folder: str | Path) -> Trunk:
        """Describe a complete run as a trunk."""
        run = read_run(Path(folder))
        return cls(str(folder), run.weights_sha256, run.seen)


class Run(msgspec.Struct, kw_only=True):
    """Contents of ``run.json``.

    Parameters
    ----------
    status : {"starting", "running", "complete"}
        ``starting`` until transforms are written, ``complete`` once the weights are.
    model, objective, combine : Description
        What was trained with what.
    fit : dict
        Values of :class:`FitConfig`.
    parts : dict of str to TrainedRows
        ``train`` and, where given, ``valid``.
    transforms : dict of str to int
        ``min_count`` and ``max_history``.
    versions : dict of str to str
        prerank, python, torch, platform.
    report : dict
        Steps, samples, samples per second, why it stopped, best evaluation.
    weights_sha256 : str
        Digest of ``model.safetensors``.
    origin : Origin, optional
        The run it was started from.
    sampler : Description, optional
        What chose and drew the candidates; None: all that were stored.
    trunk : Trunk, optional
        The run whose model its model is built over.
    """

    status: Literal["starting", "running", "complete"] = "starting"
    model: Description
    objective: Description
    combine: Description
    fit: dict[str, Any]
    parts: dict[str, TrainedRows]
    transforms: dict[str, int]
    versions: dict[str, str] = {}
    report: dict[str, Any] = {}
    weights_sha256: str = ""
    origin: Origin | None = None
    sampler: Description | None = None
    trunk: Trunk | None = None
    version: Literal[1] = 1

    @property
    def seen(self) -> list[TrainedRows]:
        """All requests that its weights have seen, those of the runs before it included."""
        before = [rows for run in (self.origin, self.trunk) if run for rows in run.seen]
        return [*before, self.parts["train"]]


def describe_run(
    model: Model,
    objective: object,
    combine: object,
    config: FitConfig,
    *,
    train: Part,
    valid: Part | None,
    sampler: Sampler | None = None,
) -> Run:
    """Write down what a call of ``fit`` is about to do."""
    fitted = model.transforms or config
    return Run(
        model=describe_class(model, models.TABLE, "prerank.models"),
        objective=describe_class(objective, objectives.TABLE, "prerank.objectives"),
        combine=describe_class(combine, COMBINE_TABLE, "prerank.combine"),
        fit=to_values(config),
        parts={
            name: TrainedRows(
                part.log.schema.lineage.log_id,
                part.name,
                [(int(a), int(b)) for a, b in part.rows.pairs],
            )
            for name, part in (("train", train), ("valid", valid))
            if part is not None
        },
        transforms={"min_count": fitted.min_count, "max_history": fitted.max_history},
        versions={
            "prerank": prerank.__version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "platform": platform.platform(),
        },
        sampler=None
        if sampler is None
        else describe_class(sampler, sampling.TABLE, "prerank.sampling", sampler.describe()),
    )


def describe_class(
    value: object, table: Mapping[str, str], group: str, values: dict[str, Any] | None = None
) -> Description:
    """Write down a configurable object: its name in a table or entry point, and its values."""
    path = f"{type(value).__module__}:{type(value).__qualname__}"
    known = {target: name for name, target in table.items()}
    for entry in importlib.metadata.entry_points(group=group):
        known.setdefault(entry.value, entry.name)
    if values is None:
        config = getattr(value, "config", None)
        values = to_values(config) if isinstance(config, msgspec.Struct) else {}
    # Through JSON once, so that a description equals itself after it was stored and read.
    plain = msgspec.json.decode(msgspec.json.encode(values))
    return Description(known.get(path, path), plain)


class RunFolder:
    """A run's folder, new or found again.

    Parameters
    ----------
    path : Path
        The folder; made if absent.
    run : Run
        What is about to be trained.

    Raises
    ------
    InputError
        The folder holds something else, or a run of another configuration (says what differs).
    """

    def __init__(self, path: Path, run: Run) -> None:
        self.path = path
        self.run = run
        self.checkpoints = path / CHECKPOINTS
        if (path / RUN).exists():
            found = read_run(path)
            _refuse_difference(path, found, run)
            self.run = found
            self.run.fit = run.fit
        elif path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(f"{path}: exists and is no run folder (no {RUN}); choose another name")
        else:
            try:
                path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"{path}: cannot be made: {error.strerror or error}") from None
            self.save()

    def save(self) -> None:
        """Write ``run.json``."""
        write_json(self.run, self.path / RUN)

    def start(self, model: Model) -> None:
        """Store schema and transforms before the first update."""
        assert model.transforms is not None
        model.transforms.save(self.path)
        write_json(model.transforms.schema, self.path / SCHEMA)
        self.run.status = "running"
        self.save()

    def finish(self, model: Model, report: dict[str, Any]) -> None:
        """Store the weights and mark the run complete."""
        self.run.weights_sha256 = save_tensors(model.state_dict(), self.path / WEIGHTS)
        self.run.report = report
        self.run.status = "complete"
        self.save()


def read_run(path: Path) -> Run:
    """Read ``run.json``.

    Raises
    ------
    InputError
        There is none, or it is damaged.
    """
    if not (path / RUN).is_file():
        raise InputError(f"{path}: no run there ({RUN} is missing); expected what training wrote")
    try:
        return msgspec.json.decode((path / RUN).read_bytes(), type=Run)
    except (msgspec.MsgspecError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path / RUN}: damaged ({error}); train the run again") from None


def _refuse_difference(path: Path, found: Run, run: Run) -> None:
    old, new = _flat(_identity(found)), _flat(_identity(run))
    differing = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if differing:
        shown = "; ".join(f"{k} was {old.get(k)}, is {new.get(k)}" for k in differing[:3])
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise InputError(
            f"{path}: holds a run of another configuration ({shown}{more}); choose another "
            "folder, or remove this one"
        )


def _identity(run: Run) -> dict[str, Any]:
    kept = ("model", "objective", "combine", "fit", "parts", "transforms")
    values = {name: msgspec.to_builtins(getattr(run, name)) for name in kept}
    if run.sampler is not None:
        values["sampler"] = msgspec.to_builtins(run.sampler)
    for name in ("origin", "trunk"):
        if getattr(run, name) is not None:  # a folder may have been moved
            values[name] = {**msgspec.to_builtins(getattr(run, name)), "run": ""}
    values["fit"] = {k: v for k, v in values["fit"].items() if k not in _FREE}
    return values


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: list(value) if isinstance(value, tuple) else value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def load_run(path: str | Path, model: Model | None = None) -> Model:
    """Load the model of a complete run: best weights, transforms, eval mode.

    Parameters
    ----------
    path : path
        The run's folder.
    model : Model, optional
        An untrained model to fill, for a class that is in no table; default: built from
        ``run.json``.

    Raises
    ------
    InputError
        No run there, an unfinished one, a file that is cut, changed or of another run.
    """
    path = Path(path)
    run = read_run(path)
    if run.status != "complete":
        raise InputError(
            f"{path}: the run is not complete; give the same training command again to finish it"
        )
    transforms = Transforms.load(path)
    if model is None:
        schema = read_json(path / SCHEMA, Schema)
        kind: Any = models.get(run.model.name)
        where = f"{path / RUN}: model"
        model = from_values(kind.Config, run.model.config, where=where).build(schema)
    fill_model(model, path, run)
    model.transforms = transforms
    return model.eval()


def fill_model(model: Model, path: Path, run: Run) -> None:
    """Put the weights of a complete run into a model."""
    try:
        tensors = load_tensors(path / WEIGHTS, run.weights_sha256)
    except InputError as error:
        raise InputError(f"{error}; restore it, or remove the folder and train again") from None
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        lines = str(error).splitlines()
        reason = (lines[1] if len(lines) > 1 else lines[0]).strip()
        raise InputError(
            f"{path / WEIGHTS}: does not fit the model '{run.model.name}' ({reason})"
        ) from None
