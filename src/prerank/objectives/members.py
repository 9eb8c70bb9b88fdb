"""Who is compared with whom: the positives of a batch and the negatives of every source.

Shapes: ``R`` requests, ``I`` candidates, ``P`` positives, ``N`` negatives.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prerank.batch import POSITIVE, UNKNOWN, RequestBatch
from prerank.schema import Schema

__all__ = ["Members", "Roles"]

_SHIFT = -UNKNOWN
"""Source codes start at ``UNKNOWN``; tables over sources are indexed by code plus this."""
_OUT = -2
"""Role of a candidate that takes no part; a positive is -1, others have their source's place."""


@dataclass(frozen=True, slots=True)
class Members:
    """Positives and negatives of a batch; a candidate of weight 0 is as if it were not there.

    Parameters
    ----------
    num_requests, num_sources : int
        Requests ``R`` of the batch, sources chosen.
    positives : Tensor ``[P]`` int64
        Candidates that are positive.
    positive_request : Tensor ``[P]`` int64
        Their requests.
    positive_weight : Tensor ``[P]``
        ``evidence.weight``, in the dtype of the scores.
    negatives : Tensor ``[N]`` int64
        Candidates that are negatives of a chosen source.
    negative_request, negative_source : Tensor ``[N]`` int64
        Their requests, and places of their sources among the chosen ones.
    negative_weight, negative_prob : Tensor ``[N]``
        ``evidence.weight`` and ``sample_prob``.
    """

    num_requests: int
    num_sources: int
    positives: Tensor
    positive_request: Tensor
    positive_weight: Tensor
    negatives: Tensor
    negative_request: Tensor
    negative_source: Tensor
    negative_weight: Tensor
    negative_prob: Tensor


class Roles:
    """Finds the members of a batch.

    Without a task, positives and sources are what the log says (``evidence.source``). For a task,
    a candidate is positive where its target is 1, and a negative of its stage's source where its
    target is 0 or, if it was never shown, unknown; a shown one without a target is left out.

    Parameters
    ----------
    schema : Schema
        Sources, stages, tasks.
    sources : tuple of str
        The chosen ones; other candidates are left out.
    task : str, optional
        Whose targets say what is positive.

    Examples
    --------
    >>> from prerank.schema import Label
    >>> schema = Schema(labels=(Label(name="click"),))
    >>> Roles(schema, ("rank", "random"), None).places.tolist()
    [-2, -1, 1, -2, 0, -2]
    """

    def __init__(self, schema: Schema, sources: tuple[str, ...], task: str | None) -> None:
        self.num_sources = len(sources)
        self.task = None if task is None else schema.task_names.index(task)
        place = {name: k for k, name in enumerate(sources)}
        known = [place.get(name, _OUT) for name in schema.source_names]
        self.places = torch.tensor([_OUT, -1, *known])
        of_stage = {s: name for name, stages in schema.sources.items() for s in stages}
        self._place_of_stage = torch.tensor(
            [place.get(of_stage.get(stage, ""), _OUT) for stage in schema.stages]
        )
        self._shown = len(schema.stages) - 1

    def find(self, batch: RequestBatch, dtype: torch.dtype) -> Members:
        """Return the members of a batch, weights in the dtype of its scores."""
        evidence = batch.evidence
        role_I = self._of_task(batch) if self.task is not None else self._of_log(evidence.source)
        role_I = torch.where(evidence.weight > 0, role_I, _OUT)
        positive_P = torch.where(role_I == -1)[0]
        negative_N = torch.where(role_I >= 0)[0]
        request_of = batch.inputs.request_of
        return Members(
            num_requests=batch.num_requests,
            num_sources=self.num_sources,
            positives=positive_P,
            positive_request=request_of[positive_P],
            positive_weight=evidence.weight[positive_P].to(dtype),
            negatives=negative_N,
            negative_request=request_of[negative_N],
            negative_source=role_I[negative_N],
            negative_weight=evidence.weight[negative_N].to(dtype),
            negative_prob=evidence.sample_prob[negative_N].to(dtype),
        )

    def _of_log(self, source_I: Tensor) -> Tensor:
        return self.places.to(source_I.device)[source_I + _SHIFT]

    def _of_task(self, batch: RequestBatch) -> Tensor:
        evidence = batch.evidence
        target_I = evidence.targets[:, self.task]
        by_stage_I = self._place_of_stage.to(evidence.stage.device)[evidence.stage]
        has_source_I = evidence.source > POSITIVE
        place_I = torch.where(has_source_I, self._of_log(evidence.source), by_stage_I)
        never_shown_I = has_source_I & (evidence.stage != self._shown)
        is_negative_I = (target_I == 0) | (target_I.isnan() & never_shown_I)
        return torch.where(target_I == 1, -1, torch.where(is_negative_I, place_I, _OUT))
