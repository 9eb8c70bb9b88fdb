"""Diagnosis of a finished run: its model, objective and sampler on batches of some part."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from prerank import objectives, sampling
from prerank.config import from_values
from prerank.errors import InputError
from prerank.log import Part
from prerank.objectives.base import Objective
from prerank.sampling.base import Sampler, knowing
from prerank.schema import Schema
from prerank.training.diagnosis.batch import diagnose
from prerank.training.diagnosis.hook import KIND
from prerank.training.diagnosis.summary import Summary, sources_of, summarise
from prerank.training.metrics_log import read_metrics
from prerank.training.run import METRICS, RUN, Run, load_run, read_run

__all__ = ["RunDiagnosis", "diagnose_run", "diagnosis_lines", "load_objective", "load_sampler"]

_LEARNED = "combine/weight/"
"""Prefix under which training logs the weights of rules that learn them."""


class RunDiagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """What :func:`diagnose_run` returns.

    Parameters
    ----------
    summary : Summary
        Over batches.
    num_requests : int
        Requests in all batches.
    batch_size : int
        Requests per batch, those included that a sampler leaves out. Norms are of a batch's mean
        gradient, so they depend on it a little.
    training : tuple of dict
        Lines of ``metrics.jsonl`` that ``diagnose_every`` wrote, first to last.
    warnings : tuple of str
        What is missing, and why.
    """

    summary: Summary
    num_requests: int
    batch_size: int
    training: tuple[dict[str, Any], ...]
    warnings: tuple[str, ...]


def diagnose_run(
    path: str | Path,
    part: Part,
    *,
    num_batches: int = 16,
    batch_size: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> RunDiagnosis:
    """Diagnose the best weights of a run on batches of a part, drawn at random.

    The objective and the sampler are those that the run was trained with. Weights of parts are
    those of its combine rule, learned ones as they were last logged before the best evaluation;
    what a rule does to gradients afterwards (projection) is not seen.

    Parameters
    ----------
    path : path
        A complete run.
    part : Part
        Requests of any log that the run's transforms can read.
    num_batches : int
        How many, if the part has as many.
    batch_size : int, optional
        Default: that of the training.
    seed : int
        Draws requests and sampled candidates.
    device : str
        Where to compute.
    progress : callable, optional
        Called with 1 after every batch.

    Raises
    ------
    InputError
        No complete run; an objective or sampler that is in no table; no negatives to diagnose.
    """
    path = Path(path)
    run = read_run(path)
    model = load_run(path).to(device)
    objective = load_objective(path, model.schema)
    assert model.transforms is not None
    sampler = knowing(load_sampler(path, part), model.transforms, part.log)
    size = batch_size or int(run.fit["batch_size"])
    assert model.transforms is not None
    weights = _weights(path, run)
    found: list[dict[str, float]] = []
    num_requests = 0
    batches = part.batches(model.transforms, size, seed=seed, shuffle=True, sampler=sampler)
    with contextlib.closing(batches) as reading:  # type: ignore[type-var]
        for batch in itertools.islice(reading, num_batches):
            num_requests += batch.num_requests
            found.append(diagnose(model, objective, batch.to(device), weights=weights))
            if progress is not None:
                progress(1)
    names = model.schema.source_names
    if not sources_of(found):
        raise InputError(
            f"{part.log.path}: part '{part.name}' has no negatives that the run's objective reads "
            f"({', '.join(names)}); choose another part"
        )
    return RunDiagnosis(
        summary=summarise(found),
        num_requests=num_requests,
        batch_size=size,
        training=tuple(diagnosis_lines(path)),
        warnings=tuple(_warnings(run, part, names, found, num_batches)),
    )


def load_objective(path: Path, schema: Schema) -> Objective:
    """Build the objective that a run was trained with."""
    run = read_run(path)
    kind: Any = objectives.get(run.objective.name)
    config = from_values(kind.Config, run.objective.config, where=f"{path / RUN}: objective")
    objective: Objective = config.build(schema)
    return objective


def load_sampler(path: Path, part: Part) -> Sampler | None:
    """Build the sampler that a run was trained with for the log of a part, if it had one.

    What it counts it counts in the part of the same name as then, where this log has one.
    """
    run = read_run(path)
    if run.sampler is None:
        return None
    kind: Any = sampling.get(run.sampler.name)
    values = {name: v for name, v in run.sampler.config.items() if name != "fitted_on"}
    config = from_values(kind.Config, values, where=f"{path / RUN}: sampler")
    name = run.parts["train"].part
    sampler: Sampler = config.build(part.log[name] if name in part.log.parts else part)
    return sampler


def diagnosis_lines(path: str | Path) -> list[dict[str, Any]]:
    """Return the lines that ``diagnose_every`` wrote into a run's ``metrics.jsonl``."""
    metrics = Path(path) / METRICS
    lines = read_metrics(metrics) if metrics.is_file() else []
    return [line for line in lines if line.get("kind") == KIND]


def _weights(path: Path, run: Run) -> dict[str, float] | None:
    """Return the weights of parts or sources at the run's best weights, None where all are 1."""
    fixed = run.combine.config.get("weights")
    if fixed or not (path / METRICS).is_file():
        return fixed or None
    best = run.report.get("best") or {}
    last = best.get("step", math.inf)
    found: dict[str, float] = {}
    for line in read_metrics(path / METRICS):
        if line["step"] <= last:
            found |= {
                k.removeprefix(_LEARNED): v for k, v in line.items() if k.startswith(_LEARNED)
            }
    return found or None


def _warnings(
    run: Run, part: Part, names: tuple[str, ...], found: list[dict[str, float]], asked: int
) -> list[str]:
    warnings = [
        f"source '{name}' is left out: the objective reads no negatives of it in part '{part.name}'"
        for name in names
        if name not in sources_of(found)
    ]
    if len(found) < asked:
        warnings.append(f"part '{part.name}' has {len(found)} batches, not {asked}")
    if len(found) == 1:
        warnings.append("one batch has no intervals; give more --batches")
    if run.combine.name not in ("sum", "harmonised", "inverse_norm"):
        rule = run.combine.name.rpartition(":")[2]
        warnings.append(f"the combine rule '{rule}' is not seen: shown are gradients before it")
    empty = sum(not math.isfinite(value) for line in found for value in line.values())
    if empty:
        warnings.append(f"{empty} numbers are not finite")
    return warnings
