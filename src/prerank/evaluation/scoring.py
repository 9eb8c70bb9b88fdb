"""Scores of a whole part, streamed to a Parquet file."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from prerank import metrics
from prerank.errors import InputError, PrerankError
from prerank.evaluation.collect import ModelScorer
from prerank.log import Part
from prerank.log.columns import CANDIDATES
from prerank.log.evidence import build_evidence
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

    The file has one row per request: ``request_id``, and lists with one value per candidate:
    ``item`` (raw ids), ``logit.TASK`` for every task, ``position`` (0-based place by the first
    task's logit, ties in log order). It appears only when it is whole.

    Returns
    -------
    dict
        ``requests``, ``candidates``, ``seconds``, ``candidates_per_s`` (of scoring, reading
        included).

    Raises
    ------
    InputError
        ``out`` exists, or the model was not trained.
    PrerankError
        The file cannot be written.
    """
    out = Path(out)
    if out.exists():
        raise InputError(f"{out}: exists already; choose another name or remove it first")
    scorer = ModelScorer(model, device)
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.partial")
    started = time.perf_counter()
    num_requests = num_candidates = 0
    writer: pq.ParquetWriter | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with torch.inference_mode():
            for columns in part.columns(batch_size, with_ids=True):
                offsets = columns.groups[CANDIDATES].offsets
                evidence = build_evidence(columns, part.log.schema, part.log.schema)
                logits = scorer(columns, part.log, evidence)
                order = metrics.top_order(logits[:, 0], offsets, row=columns.scalars["row"])
                place = np.empty(len(order), dtype=np.int32)
                lengths = np.diff(offsets)
                place[order] = np.arange(len(order)) - np.repeat(offsets[:-1], lengths)
                ends = pa.array(offsets.astype(np.int32))
                raw = part.log.items.ids.decode(columns.groups[CANDIDATES].values["item"])
                arrays = {
                    "request_id": pa.array(columns.scalars["request_id"]),
                    "item": pa.ListArray.from_arrays(ends, raw),
                }
                for k, task in enumerate(model.schema.task_names):
                    values = pa.array(logits[:, k].astype(np.float32))
                    arrays[f"logit.{task}"] = pa.ListArray.from_arrays(ends, values)
                arrays["position"] = pa.ListArray.from_arrays(ends, pa.array(place))
                table = pa.table(arrays)
                if writer is None:
                    writer = pq.ParquetWriter(temporary, table.schema, compression="zstd")
                writer.write_table(table)
                num_requests += columns.num_requests
                num_candidates += len(order)
                if progress is not None:
                    progress(columns.num_requests)
        if writer is None:
            raise InputError(f"{part.log.path}: part '{part.name}' has no request to score")
        writer.close()
        temporary.rename(out)
    except OSError as error:
        raise PrerankError(f"{out}: cannot be written: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
    seconds = time.perf_counter() - started
    return {
        "requests": num_requests,
        "candidates": num_candidates,
        "seconds": seconds,
        "candidates_per_s": num_candidates / seconds,
    }
