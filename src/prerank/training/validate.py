"""Validation during training: the objective's loss and cheap order metrics over exposures."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prerank.batch import RequestBatch, Scores
from prerank.errors import PrerankError
from prerank.log import Part
from prerank.metrics import auc, gauc
from prerank.models.base import Model
from prerank.objectives.base import Objective
from prerank.training import distributed
from prerank.training.combine import Combine
from prerank.training.precision import Precision, run_model

__all__ = ["MODEL", "validate"]

_Column = npt.NDArray[Any]

MODEL = "model"
"""Name of the trained model in the scores that an objective gets."""


@torch.no_grad()
def validate(
    model: Model,
    part: Part,
    objective: Objective,
    combine: Combine,
    *,
    batch_size: int,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
) -> dict[str, float]:
    """Evaluate a model on a part of a log; each of several processes takes its share.

    Parameters
    ----------
    model : Model
        With transforms; put into eval mode and left so.
    part : Part
        The validation part.
    objective, combine
        As in training.
    batch_size : int
        Requests per batch.

    Returns
    -------
    dict of str to float
        ``loss`` and ``loss/PART``: means over batches, each weighted by what its objective divided
        by; so, for an objective with one weighted mean, the mean over the whole part. ``auc`` and
        ``gauc`` (groups are users, weighted by impressions): first task, exposed candidates whose
        target is known; NaN where undefined.

    Raises
    ------
    PrerankError
        A score is NaN or infinite.
    """
    assert model.transforms is not None
    model.eval()
    shown = len(model.schema.stages) - 1
    sums: dict[str, float] = defaultdict(float)
    total = 0.0
    columns: list[tuple[_Column, _Column, _Column]] = []
    rank, world_size = distributed.rank(), distributed.size()
    for batch in part.batches(model.transforms, batch_size, rank=rank, world_size=world_size):
        if not batch.num_candidates:
            continue
        with _weight_of(objective) as weights:
            moved = batch.to(device)
            scores = run_model(model, moved.inputs, precision)
            parts = objective({MODEL: scores}, moved)
        # An objective that never normalises is taken for a mean over candidates.
        weight = sum(weights) if weights else float(batch.num_candidates)
        named = {"loss": combine.total(parts), **{f"loss/{k}": v for k, v in parts.items()}}
        for name, value in named.items():
            sums[name] += float(value) * weight
        total += weight
        columns.append(_exposures(moved, scores, shown))
    shares = distributed.gather((dict(sums), total, columns))
    return distributed.from_first(lambda: _metrics(shares, part.name))


def _metrics(
    shares: list[tuple[dict[str, float], float, list[tuple[_Column, _Column, _Column]]]], name: str
) -> dict[str, float]:
    """Put the shares of all processes together."""
    total = sum(weight for _, weight, _ in shares)
    if not total:
        return {"loss": float("nan"), "auc": float("nan"), "gauc": float("nan")}
    sums: dict[str, float] = defaultdict(float)
    for values, _, _ in shares:
        for key, value in values.items():
            sums[key] += value
    result = {key: value / total for key, value in sums.items()}
    columns = [column for _, _, found in shares for column in found]
    logit, target, user = (np.concatenate(column) for column in zip(*columns, strict=True))
    if not np.isfinite(logit).all():
        raise PrerankError(
            f"validation on part '{name}': {int((~np.isfinite(logit)).sum())} of {logit.size} "
            "scores are not finite; lower lr or table_lr, or set clip_norm"
        )
    result["auc"] = auc(logit, target)
    result["gauc"] = gauc(logit, target, user).value
    return result


@contextlib.contextmanager
def _weight_of(objective: Objective) -> Iterator[list[float]]:
    """Listen to the total weights that an objective divides by, those of its own batch here."""
    weights: list[float] = []
    normaliser = getattr(objective, "normaliser", None)
    if normaliser is None:
        yield weights
        return

    def listen(weight: Tensor) -> Tensor:
        weights.append(float(weight.sum()))
        return weight

    objective.normaliser = listen
    try:
        yield weights
    finally:
        objective.normaliser = normaliser


def _exposures(batch: RequestBatch, scores: Scores, shown: int) -> tuple[_Column, _Column, _Column]:
    evidence = batch.evidence
    target = evidence.targets[:, 0]
    kept = (evidence.stage == shown) & ~torch.isnan(target)
    user = evidence.user[batch.inputs.request_of]
    return (
        scores.logits[kept, 0].float().cpu().numpy(),
        target[kept].cpu().numpy(),
        user[kept].cpu().numpy(),
    )
