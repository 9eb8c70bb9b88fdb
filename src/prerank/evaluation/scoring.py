"""Scores of a whole part, streamed to a Parquet file or into the log itself."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prerank import metrics
from prerank.errors import InputError, PrerankError
from prerank.evaluation.collect import ModelScorer, check_scores
from prerank.log import Columns, Log, Part
from prerank.log.format.files import COLUMNS
from prerank.log.growth import add_columns
from prerank.log.inputs.evidence import build_evidence
from prerank.models.base import Model
from prerank.schema import Schema

__all__ = ["score_into", "score_part"]


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


def score_into(
    model: Model,
    log: str | Path,
    name: str,
    *,
    part: str = "",
    batch_size: int = 256,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Store the logits of every candidate in a log, as side columns.

    They become ``candidates.score.NAME`` (``NAME.TASK`` each where the model has several tasks):
    evidence, which objectives may read and no model sees.

    Parameters
    ----------
    model : Model
        Trained.
    log : path
        The log; it changes in one step.
    name : str
        Of the scores; one that ``score_into`` made before is replaced.
    part : str
        Score the rows of this part only and leave the others as they are; empty: all.
    batch_size : int
        Requests scored at once.
    device : str
        Where the model computes.
    progress : callable, optional
        Called with the number of requests just done.

    Returns
    -------
    dict
        ``scores`` (names), ``requests``, ``candidates``, ``seconds``, ``candidates_per_s``.

    Raises
    ------
    InputError
        The log itself came with scores of that name; a name that cannot be a column; an empty
        part; the model was not trained or gives a score that is not finite.
    """
    scorer, tasks = ModelScorer(model, device), model.schema.task_names
    names = [name] if len(tasks) == 1 else [f"{name}.{task}" for task in tasks]
    keys = [f"candidates.score.{n}" for n in names]
    counts = {"requests": 0, "candidates": 0}
    started = time.perf_counter()

    def plan(opened: Log) -> tuple[Schema, list[str], Callable[[Columns], Any]]:
        schema = opened.schema
        for n, key in zip(names, keys, strict=True):
            ours = any(file.startswith(f"{COLUMNS}/{key}/") for file in opened.manifest.files)
            if n in schema.scores and not ours:
                raise InputError(f"{opened.path}: came with scores '{n}'; choose another name")
        chosen = opened[part] if part else opened.all()
        if not chosen.num_requests:
            raise InputError(f"{opened.path}: part '{part}' has no request to score")
        new = tuple(n for n in names if n not in schema.scores)

        def compute(columns: Columns) -> dict[str, Any]:
            row, offsets = columns.scalars["row"], columns.candidates.offsets
            stored = columns.candidates.values
            blank = np.full(int(offsets[-1]), np.nan, dtype=np.float32)
            out = {key: stored.get(key.partition(".")[2], blank).copy() for key in keys}
            mine = chosen.rows.within(int(row[0]), int(row[-1]) + 1) - int(row[0])
            for start in range(0, len(mine), batch_size):
                rows = mine[start : start + batch_size]
                batch = columns.take(rows)
                evidence = build_evidence(batch, schema, schema)
                logits = scorer(batch, opened, evidence)
                check_scores(logits, len(tasks), type(model).__name__, batch)
                place = np.concatenate([np.arange(offsets[r], offsets[r + 1]) for r in rows])
                for k, key in enumerate(keys):
                    out[key][place] = logits[:, k]
                counts["requests"] += len(rows)
                counts["candidates"] += len(place)
            return out

        return msgspec.structs.replace(schema, scores=(*schema.scores, *new)), keys, compute

    add_columns(log, plan, progress=progress)
    seconds = time.perf_counter() - started
    rate = counts["candidates"] / seconds
    return {"scores": names, **counts, "seconds": seconds, "candidates_per_s": rate}


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
