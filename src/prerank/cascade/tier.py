"""One tier: a model, how its tasks become one value, how much it forwards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from prerank.batch import Scores
from prerank.errors import InputError, did_you_mean
from prerank.models.base import Model

__all__ = ["Tier"]

# A product of two float64 is off by less: 0.07 * 100 is a hair above 7, and 7 must go on, not 8.
_SLACK = 1.0 - 1e-15


@dataclass(frozen=True, slots=True)
class Tier:
    """A model of a cascade and its rule of what to forward to the next tier.

    Parameters
    ----------
    model : Model
        Scores every candidate that reaches the tier.
    forward : float or int, optional
        How much of each request's original candidates goes on: a share in (0, 1] (a float,
        rounded up) or a count (an int). None for the last tier.
    value : mapping of task to float, optional
        Weights of the task probabilities in the tier's order. Default: the first task's logit.

    Raises
    ------
    InputError
        A share or count that is not positive, a share above 1, a task the model does not have,
        weights that are not finite or all 0.

    Examples
    --------
    >>> import torch
    >>> from prerank.models import TwoTower
    >>> from prerank.schema import Feature, Label, Schema
    >>> item = Feature(name="item", owner="item", kind="categorical")
    >>> schema = Schema(features=(item,), labels=(Label(name="click"),))
    >>> tier = Tier(TwoTower.Config().build(schema), forward=0.3)
    >>> tier.num_forwarded(torch.tensor([0, 1, 10, 11])), tier.describe()
    (tensor([0, 1, 3, 4]), 'TwoTower -> 30 %')
    """

    model: Model
    forward: float | int | None = None
    value: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.forward is not None and not _is_amount(self.forward):
            raise InputError(
                f"tier: forward is {self.forward!r}; expected a share in (0, 1] or a count >= 1"
            )
        tasks = self.model.schema.task_names
        for task, weight in self.value.items():
            if task not in tasks:
                raise InputError(
                    f"tier: value weighs task '{task}', which the model lacks; "
                    f"{did_you_mean(task, tasks)}"
                )
            if not math.isfinite(weight):
                raise InputError(f"tier: value weighs task '{task}' by {weight}; expected a number")
        if self.value and not any(self.value.values()):
            raise InputError("tier: value weighs every task by 0, so nothing would be ordered")

    def num_forwarded(self, num_candidates: Tensor) -> Tensor:
        """Return how many of each request's candidates ``[R]`` int64 go on."""
        if self.forward is None:
            return num_candidates
        if isinstance(self.forward, float):
            return (num_candidates.double() * self.forward * _SLACK).ceil().long()
        return num_candidates.clamp(max=self.forward)

    def order_value(self, scores: Scores) -> Tensor:
        """Fuse the tasks of ``logits [I, T]`` into one value ``[I]``; higher is better."""
        if not self.value:
            return scores.logits[:, 0]
        # float64: in float32 every logit above 17 has probability 1.
        probability = scores.logits.double().sigmoid()
        weights = [self.value.get(task, 0.0) for task in self.model.schema.task_names]
        return (probability * probability.new_tensor(weights)).sum(dim=1)

    def describe(self) -> str:
        """Return the tier in words, for reports."""
        name = type(self.model).__name__
        if self.forward is None:
            return name
        share = isinstance(self.forward, float)
        return f"{name} -> {100 * self.forward:.4g} %" if share else f"{name} -> {self.forward}"


def _is_amount(forward: float | int) -> bool:
    if isinstance(forward, float):
        return 0.0 < forward <= 1.0
    return isinstance(forward, int) and not isinstance(forward, bool) and forward >= 1
