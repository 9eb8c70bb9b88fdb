"""One tier: a model, how its tasks become one value, how much it forwards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prerank.batch import Scores
from prerank.errors import InputError, did_you_mean
from prerank.models.base import Model

__all__ = ["Tier"]


@dataclass(frozen=True, slots=True)
class Tier:
    """A model of a cascade and its rule of what to forward to the next tier.

    Parameters
    ----------
    model : Model
        Scores every candidate that reaches the tier.
    forward : float or int, optional
        How much of each request's original candidates goes on: a share in (0, 1] (rounded up) or
        a count. None for the last tier.
    value : mapping of task to float, optional
        Weights of the task probabilities in the tier's order. Default: the first task's logit.

    Raises
    ------
    InputError
        A share or count that is not positive, a share above 1, a task the model does not have.
    """

    model: Model
    forward: float | int | None = None
    value: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        f = self.forward
        if f is not None and (f <= 0 or (isinstance(f, float) and not f <= 1.0)):
            raise InputError(f"tier: forward is {f}; expected a share in (0, 1] or a count >= 1")
        tasks = self.model.schema.task_names
        for task in self.value:
            if task not in tasks:
                raise InputError(
                    f"tier: value weighs task '{task}', which the model lacks; "
                    f"{did_you_mean(task, tasks)}"
                )

    def num_forwarded(self, num_candidates: Tensor) -> Tensor:
        """Return how many of each request's candidates ``[R]`` int64 go on."""
        if self.forward is None:
            return num_candidates
        if isinstance(self.forward, float):
            # a tiny slack keeps 0.3 * 10 at 3, not 4
            share = (num_candidates.double() * self.forward - 1e-9).ceil().long()
            return share.clamp(min=0)
        return num_candidates.clamp(max=self.forward)

    def order_value(self, scores: Scores) -> Tensor:
        """Fuse the tasks of ``logits [I, T]`` into one value ``[I]``; higher is better."""
        if not self.value:
            return scores.logits[:, 0]
        tasks = self.model.schema.task_names
        weights = [self.value.get(task, 0.0) for task in tasks]
        weight = torch.tensor(weights, dtype=scores.logits.dtype, device=scores.logits.device)
        return scores.logits.sigmoid() @ weight

    def describe(self) -> str:
        """Return the tier in words, for reports."""
        if self.forward is None:
            return type(self.model).__name__
        share = isinstance(self.forward, float)
        amount = f"{math.floor(self.forward * 1000) / 10:g} %" if share else f"{self.forward}"
        return f"{type(self.model).__name__} -> {amount}"
