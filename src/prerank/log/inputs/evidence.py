"""Evidence of a batch: stages to sources, labels to {1, 0, unknown}, logged ranks and scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prerank import expression
from prerank.batch import POSITIVE, UNKNOWN, Evidence
from prerank.log.format.columns import CANDIDATES, Columns
from prerank.schema import Schema

__all__ = ["build_evidence", "label_columns", "source_codes"]

Floats = npt.NDArray[np.float32]


def label_columns(columns: Columns, schema: Schema) -> dict[str, Floats]:
    """Return the labels of each candidate; a delayed one whose window is over counts as 0."""
    group = columns.groups[CANDIDATES]
    labels: dict[str, Floats] = {}
    for label in schema.labels:
        values = group.values[f"labels.{label.name}"].astype(np.float32, copy=False)
        if label.window_ms is not None:
            over = columns.scalars["observed_until"] >= columns.scalars["time"] + label.window_ms
            closed = np.repeat(over, np.diff(group.offsets))
            values = np.where(np.isnan(values) & closed, np.float32(0), values)
        labels[label.name] = values
    return labels


def source_codes(stage: npt.NDArray[Any], engaged: Floats, schema: Schema) -> npt.NDArray[np.int64]:
    """Return the source of each candidate ``[I]``.

    An engaged candidate is ``POSITIVE`` whatever its stage. One that was shown belongs to its
    source only when it is known not to be engaged; else it is ``UNKNOWN``.
    """
    code = np.full(len(schema.stages), UNKNOWN, dtype=np.int64)
    for index, stages in enumerate(schema.sources.values()):
        for name in stages:
            code[schema.stages.index(name)] = index
    source: npt.NDArray[np.int64] = code[stage]
    shown = stage == len(schema.stages) - 1
    source[shown & np.isnan(engaged)] = UNKNOWN
    source[engaged == 1] = POSITIVE
    return source


def build_evidence(columns: Columns, schema: Schema, trained: Schema) -> Evidence:
    """Make the evidence of a batch; tasks are those of the training schema.

    Of ranks and scores it holds those that were read.
    """
    group = columns.groups[CANDIDATES]
    values = group.values
    num_candidates = int(group.offsets[-1])
    labels = label_columns(columns, schema)
    engaged = expression.evaluate(schema.engaged, labels)
    engaged = np.broadcast_to(engaged, (num_candidates,))
    targets = np.empty((num_candidates, len(trained.task_names)), dtype=np.float32)
    for k, text in enumerate(trained.task_expressions):
        targets[:, k] = expression.evaluate(text, labels)

    def ones(name: str) -> Tensor:
        if name in values:
            return _tensor(np.nan_to_num(values[name], nan=1.0).astype(np.float32))
        return torch.ones(num_candidates)

    stage = values["stage"].astype(np.int64)
    none = np.full(num_candidates, -1, dtype=np.int64)
    return Evidence(
        row=_tensor(columns.scalars["row"]),
        user=_tensor(columns.scalars["user"].astype(np.int64)),
        time=_tensor(columns.scalars["time"]),
        stage=_tensor(stage),
        source=_tensor(source_codes(stage, engaged, schema)),
        engaged=_tensor(engaged.astype(np.float32)),
        targets=_tensor(targets),
        item=_tensor(values["item"].astype(np.int64)),
        channel=_tensor(values.get("channel", none).astype(np.int64)),
        weight=ones("weight"),
        propensity=ones("propensity"),
        sample_prob=ones("sample_prob"),
        scored_online=_tensor(values.get("scored_online", np.ones(num_candidates, dtype=np.bool_))),
        labels={name: _tensor(column) for name, column in labels.items()},
        ranks={
            s: _tensor(values[f"rank.{s}"].astype(np.int64))
            for s in schema.ranks
            if f"rank.{s}" in values
        },
        scores={
            s: _tensor(values[f"score.{s}"].astype(np.float32))
            for s in schema.scores
            if f"score.{s}" in values
        },
    )


def _tensor(values: npt.NDArray[Any]) -> Tensor:
    if not values.flags.writeable or not values.flags.c_contiguous:
        values = values.copy()
    return torch.from_numpy(values)
