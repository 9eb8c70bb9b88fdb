"""One training of the HAP study: train, score valid and test, write what is needed later.

The folder of a job holds ``result.json`` (written last: its presence means done), the scores of the
thinned valid and test parts, and the run. A job that was killed goes on from its checkpoint.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from prerank.bench.hap.grid import Job
from prerank.bench.hap.models import build_model
from prerank.bench.hap.sets import StudySet
from prerank.config import from_values
from prerank.evaluation.collect import ModelScorer
from prerank.evaluation.cost import count_parameters
from prerank.log import Part
from prerank.log.format.files import write_json
from prerank.log.inputs.evidence import build_evidence
from prerank.models.base import Model
from prerank.objectives import get as get_objective
from prerank.sampling import get as get_sampler
from prerank.training import FitConfig, fit, load_run
from prerank.training.combine import Sum

__all__ = ["RESULT", "execute", "is_done", "read_result", "read_scores", "score_part"]

RESULT = "result.json"
Floats = npt.NDArray[np.float64]


def is_done(folder: Path) -> bool:
    """Whether a job's folder is complete."""
    return (folder / RESULT).is_file()


def read_result(folder: Path) -> dict[str, Any]:
    """Read what a finished job wrote."""
    found: dict[str, Any] = msgspec.json.decode((folder / RESULT).read_bytes())
    return found


def read_scores(folder: Path, part: str) -> Floats:
    """Read the scores ``[I]`` of a thinned part, in the order of the log."""
    scores: Floats = np.load(folder / f"{part}.npy", allow_pickle=False).astype(np.float64)
    return scores


def execute(
    job: Job,
    chosen: StudySet,
    parts: Mapping[str, Part],
    folder: Path,
    *,
    light: Path | None = None,
    diagnose_every: int | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Do one job, or return its result if it is done.

    Parameters
    ----------
    job : Job
        What to train.
    chosen : StudySet
        Its data set.
    parts : mapping of str to Part
        ``train``, ``valid``, ``test``.
    folder : Path
        Where its results go.
    light : Path, optional
        Folder of the finished light job that a shared trunk is built over.
    diagnose_every : int, optional
        Updates between diagnoses of the sources' gradients.
    progress : bool
        Show a bar.
    """
    if is_done(folder):
        return read_result(folder)
    schema = parts["train"].log.schema
    torch.manual_seed(job.seed)
    trunk = None if light is None else load_run(light / "run")
    model = build_model(job.line, schema, trunk, exclude=chosen.exclude)
    sources = schema.source_names if job.line.sources is None else job.line.sources
    config = get_objective("ghcl").Config
    where = f"line {job.line.name}"
    objective = from_values(
        config, {**job.line.loss, "sources": list(sources)}, where=f"{where}: loss"
    ).build(schema)
    combine: Any = Sum()
    if job.line.combine:
        from prerank.training.combine import get as get_combine

        values = dict(job.line.combine)
        kind = get_combine(values.pop("name"))
        combine = from_values(kind.Config, values, where=f"{where}: combine").build()
    kind = get_sampler("hap")
    # As the first trainings of the study had it, from before there was a choice.
    sampling = {"unknown": "keep", **job.line.sampling}
    sampler = from_values(kind.Config, sampling, where=f"{where}: sampling").build(parts["train"])
    values = chosen.fit_values(job.lr, job.seed, diagnose_every, job.line.table_rate)
    began = time.perf_counter()
    cpu = time.process_time()
    report = fit(
        model,
        parts["train"],
        objective,
        config=from_values(FitConfig, values, where=f"{where}: fit"),
        combine=combine,
        sampler=sampler,
        out=folder / "run",
        progress=progress,
    )
    trained, trained_cpu = time.perf_counter() - began, time.process_time() - cpu
    for part in ("valid", "test"):
        np.save(folder / f"{part}.npy", score_part(model, parts[part]).astype(np.float32))
    dense, table = count_parameters(model)
    result = {
        "job": msgspec.to_builtins(job),
        "steps": report.steps,
        "samples": report.samples,
        "samples_per_s": report.samples_per_s,
        "train_s": trained,
        "train_cpu_s": trained_cpu,
        "score_s": time.perf_counter() - began - trained,
        "params_dense": dense,
        "params_table": table,
        "torch": str(torch.__version__),
    }
    shutil.rmtree(folder / "run" / "checkpoints", ignore_errors=True)
    write_json(result, folder / RESULT)
    return result


def score_part(model: Model, part: Part) -> Floats:
    """Return the first task's logits ``[I]`` of all candidates of a part."""
    scorer = ModelScorer(model)
    found = []
    for columns in part.columns(64):
        evidence = build_evidence(columns, part.log.schema, part.log.schema)
        found.append(scorer(columns, part.log, evidence)[:, 0])
    scores: Floats = np.concatenate(found)
    return scores
