"""Weighted binary cross-entropy over tasks, per impression.

Source: the loss of request-level training, ``sum w BCE / sum w`` (ROO, arXiv 2508.05640; formula
re-stated from public summaries and the team's open code, which normalises per task).

Shapes: ``I`` candidates, ``T`` tasks.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from prerank.batch import POSITIVE, UNKNOWN, RequestBatch, Scores
from prerank.config import Config as BaseConfig
from prerank.objectives.base import (
    Normaliser,
    check_names,
    check_weights,
    local_weight,
    scores_of,
    weighted_mean,
)
from prerank.schema import Schema

__all__ = ["BCE"]

_SHIFT = -UNKNOWN
"""Source codes start at ``UNKNOWN``; tables over sources are indexed by code plus this."""


class BCE:
    """Binary cross-entropy of each task, a weighted mean over candidates: ``bce/TASK``.

    A candidate counts where its target is known, with that target; and as a 0 where its target is
    unknown and it belongs to one of ``sources`` that was not exposed. Everything else is left out.
    Each candidate weighs ``evidence.weight`` times its source's weight, and a task's loss is
    divided by the total weight of its candidates in the batch: never a mean of request means,
    which would favour candidates of short requests.

    Parameters
    ----------
    schema : Schema
        Sources and tasks.
    config : BCE.Config
        Which unlabelled negatives count, and weights.

    Examples
    --------
    >>> from prerank.schema import Label
    >>> schema = Schema(labels=(Label(name="click"),))
    >>> BCE.Config(sources=("exposed", "rank")).build(schema).tasks
    ('engaged',)
    """

    per_impression = True
    logged: frozenset[str] = frozenset()

    class Config(BaseConfig, frozen=True):
        """Options of the cross-entropy.

        Parameters
        ----------
        model : str, optional
            Whose scores; needed when several models train together.
        sources : tuple of str, optional
            Sources whose unlabelled members are negatives. None: all; empty: labelled only.
        source_weights : dict of str to float
            Weight of the members of a source, or of ``positive`` ones; default 1.
        task_weights : dict of str to float
            Factor of a task's part; default 1.
        """

        model: str | None = None
        sources: tuple[str, ...] | None = None
        source_weights: dict[str, float] = msgspec.field(default_factory=dict)
        task_weights: dict[str, float] = msgspec.field(default_factory=dict)

        def build(self, schema: Schema) -> BCE:
            """Make the objective for a schema."""
            return BCE(schema, self)

    def __init__(self, schema: Schema, config: Config) -> None:
        self.config = config
        self.normaliser: Normaliser = local_weight
        self.tasks = schema.task_names
        names = schema.source_names
        sources = names if config.sources is None else config.sources
        check_names("bce: sources", sources, names)
        check_weights("bce: source_weights", config.source_weights, (*names, "positive"))
        check_weights("bce: task_weights", config.task_weights, self.tasks)
        # Both by source code + _SHIFT: first UNKNOWN, then POSITIVE, then the sources.
        rows = {UNKNOWN + _SHIFT: "", POSITIVE + _SHIFT: "positive"}
        rows |= {k + _SHIFT: name for k, name in enumerate(names)}
        self._weight_of = torch.tensor(
            [config.source_weights.get(rows[k], 1.0) for k in range(len(rows))]
        )
        # The last stage means "shown": without a label, a shown candidate is unknown, not a 0.
        negatives = {s for s in sources if schema.stages[-1] not in schema.sources[s]}
        self._is_negative = torch.tensor([rows[k] in negatives for k in range(len(rows))])

    def __call__(self, scores: Mapping[str, Scores], batch: RequestBatch) -> dict[str, Tensor]:
        """Return ``{"bce/TASK": scalar}`` for every task.

        Parameters
        ----------
        scores : mapping of str to Scores
            By model; ``logits [I, T]`` of the chosen one are read.
        batch : RequestBatch
            Reads ``evidence.targets``, ``source`` and ``weight``.
        """
        logits_IT = scores_of(scores, self.config.model).logits
        evidence = batch.evidence
        code_I = evidence.source + _SHIFT
        is_negative_I = self._is_negative.to(code_I.device)[code_I]
        weight_I = evidence.weight * self._weight_of.to(code_I.device)[code_I]
        is_known_IT = ~evidence.targets.isnan()
        target_IT = evidence.targets.nan_to_num(0.0).to(logits_IT.dtype)
        weight_IT = torch.where(
            is_known_IT | is_negative_I.unsqueeze(1), weight_I.unsqueeze(1), 0.0
        )
        weight_IT = weight_IT.to(logits_IT.dtype)
        loss_IT = F.binary_cross_entropy_with_logits(
            logits_IT, target_IT, weight=weight_IT, reduction="none"
        )
        mean_T = weighted_mean(loss_IT.sum(0), weight_IT.sum(0), self.normaliser)
        return {
            f"bce/{task}": mean_T[t] * self.config.task_weights.get(task, 1.0)
            for t, task in enumerate(self.tasks)
        }
