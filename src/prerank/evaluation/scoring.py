"""Scores of a whole part, streamed to a Parquet file."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prerank import metrics
from prerank.errors import InputError, PrerankError
from prerank.evaluation.collect import ModelScorer, check_scores
from prerank.log import Part
from prerank.log.inputs.evidence import build_evidence
from prerank.models.base import Model

__all__ = ["score_part"]


def score_part(
    model: Model,
    part: Part,
    out: str | Path,
    *,
    batch_size: int = 256,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Write the scores of every candidate of a part.

    The file has one row per request: ``request_id``, and lists with one value per candidate, in
    the order of the log: ``item`` (raw ids), ``logit.TASK`` (float32) for every task,
    ``position`` (int32, 0-based place by the first task's logit, equal ones in random order). It
    appears only when it is whole.

    Parameters
    ----------
    model : Model
        Trained.
    part : Part
        The requests.
    out : path
        The file to make.
    batch_size : int
        Requests scored at once.
    device : str
        Where the model computes.
    progress : callable, optional
        Called with the number of requests just written.

    Returns
    -------
    dict
        ``requests``, ``candidates``, ``seconds``, ``candidates_per_s`` (reading and writing
        included).

    Raises
    ------
    InputError
        ``out`` exists, the part is empty, the model was not trained or gives a score that is not
        finite.
    PrerankError
        The file cannot be written.
    """
    out = Path(out)
    if out.exists():
        raise InputError(f"{out}: exists already; choose another name or remove it first")
    if not part.num_requests:
        raise InputError(f"{part.log.path}: part '{part.name}' has no request to score")
    tables = _tables(model, part, batch_size, device)
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.partial")
    started = time.perf_counter()
    num_candidates = 0
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        table = next(tables)
        with pq.ParquetWriter(temporary, table.schema, compression="zstd") as writer:
            while table is not None:
                writer.write_table(table)
                num_candidates += len(table["position"].combine_chunks().values)
                if progress is not None:
                    progress(table.num_rows)
                table = next(tables, None)
        temporary.rename(out)
    except OSError as error:
        raise PrerankError(f"{out}: cannot be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):  # its parent may be no folder
            temporary.unlink(missing_ok=True)
    seconds = time.perf_counter() - started
    return {
        "requests": part.num_requests,
        "candidates": num_candidates,
        "seconds": seconds,
        "candidates_per_s": num_candidates / seconds,
    }


def _tables(model: Model, part: Part, batch_size: int, device: str) -> Iterator[pa.Table]:
    """Yield the rows of the file, one table per batch."""
    log, scorer = part.log, ModelScorer(model, device)
    tasks = model.schema.task_names
    for columns in part.columns(batch_size, with_ids=True):
        candidates = columns.candidates
        evidence = build_evidence(columns, log.schema, log.schema)
        logits = scorer(columns, log, evidence)
        check_scores(logits, len(tasks), type(model).__name__, columns)
        order = metrics.top_order(logits[:, 0], candidates.offsets, row=columns.scalars["row"])
        position = np.empty(len(order), dtype=np.int32)
        starts = np.repeat(candidates.offsets[:-1], np.diff(candidates.offsets))
        position[order] = np.arange(len(order)) - starts
        lists = {"item": log.items.ids.decode(candidates.values["item"])}
        for k, task in enumerate(tasks):
            lists[f"logit.{task}"] = pa.array(logits[:, k].astype(np.float32))
        lists["position"] = pa.array(position)
        ends = pa.array(candidates.offsets.astype(np.int32))
        arrays = {name: pa.ListArray.from_arrays(ends, flat) for name, flat in lists.items()}
        yield pa.table({"request_id": pa.array(columns.scalars["request_id"]), **arrays})
