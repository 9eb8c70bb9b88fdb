"""One tier: a model, how its tasks become one value, what it forwards, what becomes of the rest.

Shapes: ``R`` requests, ``F`` candidates that reached the tier.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from prerank.batch import Scores
from prerank.cascade.ladder import Ladder
from prerank.cascade.routers import ROUTERS, Facts, Margin, Router, first_by, router_keys
from prerank.cascade.rules import Rule, num_of_share
from prerank.errors import InputError, did_you_mean
from prerank.models.base import Model

__all__ = ["Merge", "Tail", "Tier"]

Merge = Literal["front", "places"]
Tail = Literal["append", "drop"]


@dataclass(frozen=True, slots=True)
class Tier:
    """A model of a cascade and its rule of what to forward to the next tier.

    Parameters
    ----------
    model : Model
        Scores every candidate that reaches the tier.
    forward : float, int, Rule or Margin, optional
        How much of each request goes on: a share of its original candidates in (0, 1] (a float,
        rounded up), a count (an int), a :class:`~prerank.cascade.rules.Rule` that reads the
        values, or a :class:`~prerank.cascade.routers.Margin` around the cut. None for the last
        tier.
    value : mapping of task to float, optional
        Weights of the task probabilities in the tier's order. Default: the first task's logit.
    router : {"score", "margin", "entropy", "random", "oracle"}
        Which candidates go on, see :mod:`prerank.cascade.routers`. ``score``, the highest first,
        is HAP's; the others are for ablations (``oracle`` reads the truth, so only evaluation can
        run it).
    cut : float or int, optional
        Where the decision falls, as a share or a count: what is finally kept. For ``margin``.
    merge : {"front", "places"}, optional
        Where the forwarded ones stand: before the rest, or in the places that they held in this
        tier's order. The same for ``score``. Default: ``front`` for score and oracle, else
        ``places``.
    tail : {"append", "drop"}
        What becomes of those behind the last forwarded one: they follow in this tier's order, or
        have no place at all.

    Raises
    ------
    InputError
        A share or count that is not positive, a share above 1, a task the model does not have,
        weights that are not finite or all 0, a router without what it needs.

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
    forward: float | int | Rule | Margin | None = None
    value: Mapping[str, float] = field(default_factory=dict)
    router: Router = "score"
    cut: float | int | None = None
    merge: Merge | None = None
    tail: Tail = "append"

    def __post_init__(self) -> None:
        if not (self.forward is None or isinstance(self.forward, Rule | Margin)) and not _is_amount(
            self.forward
        ):
            raise InputError(
                f"tier: forward is {self.forward!r}; expected a share in (0, 1] or a count >= 1"
            )
        _check_weights(self.value, self.model.schema.task_names)
        for name, choice, known in (
            ("router", self.router, ROUTERS),
            ("merge", self.merge or "front", ("front", "places")),
            ("tail", self.tail, ("append", "drop")),
        ):
            if choice not in known:
                raise InputError(f"tier: {name} is '{choice}'; {did_you_mean(choice, known)}")
        if isinstance(self.forward, Margin) and self.router == "score":
            object.__setattr__(self, "router", "margin")
        if isinstance(self.forward, Margin) and self.router != "margin":
            raise InputError(
                f"tier: forwards by margin, but the router is '{self.router}'; leave one out"
            )
        if (self.cut is None) == (self.router == "margin"):
            told = "needs" if self.cut is None else "is given"
            raise InputError(
                f"tier: router '{self.router}' {told} a cut; give the share or count that is "
                "finally kept with 'margin', and only there"
            )
        if self.cut is not None and not _is_amount(self.cut):
            raise InputError(
                f"tier: cut is {self.cut!r}; expected a share in (0, 1] or a count >= 1"
            )

    @property
    def merge_rule(self) -> Merge:
        """Where the forwarded ones stand."""
        return self.merge or ("front" if self.router in ("score", "oracle") else "places")

    def num_forwarded(self, num_candidates: Tensor) -> Tensor:
        """Return how many of each request's candidates ``[R]`` int64 a share or count forwards."""
        assert not isinstance(self.forward, Rule | Margin)
        return num_candidates if self.forward is None else _amount(self.forward, num_candidates)

    def select(self, ladder: Ladder, logit: Tensor, facts: Facts) -> Tensor:
        """Choose what goes on.

        Parameters
        ----------
        ladder : Ladder
            The tier's values.
        logit : Tensor ``[F]``
            First task, in the ladder's order.
        facts : Facts
            What the routers ``random`` and ``oracle`` need, in the ladder's order.

        Returns
        -------
        Tensor ``[F]`` bool
        """
        cut = None if self.cut is None else _amount(self.cut, ladder.num_candidates)
        keys = router_keys(self.router, ladder, logit, facts, cut)
        if isinstance(self.forward, Margin):
            count = self.forward.count(ladder, keys[0])
        elif isinstance(self.forward, Rule):
            count = self.forward.count(ladder)
        else:
            count = self.num_forwarded(ladder.num_candidates)
        if not keys:
            return ladder.place < count[ladder.request]
        return first_by(keys, ladder, count)

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
        if isinstance(self.forward, Rule | Margin):
            amount = self.forward.describe()
        else:
            amount = _in_words(self.forward)
        if self.router != "score":
            around = "" if self.cut is None else f" {_in_words(self.cut)}"
            amount += f" by {self.router}{around}"
        return f"{name} -> {amount}" + (", rest dropped" if self.tail == "drop" else "")


def _amount(amount: float | int, num_candidates: Tensor) -> Tensor:
    if isinstance(amount, float):
        return num_of_share(num_candidates, amount)
    return num_candidates.clamp(max=amount)


def _in_words(amount: float | int) -> str:
    return f"{100 * amount:.4g} %" if isinstance(amount, float) else str(amount)


def _is_amount(forward: object) -> bool:
    if isinstance(forward, float):
        return 0.0 < forward <= 1.0
    return isinstance(forward, int) and not isinstance(forward, bool) and forward >= 1


def _check_weights(value: Mapping[str, float], tasks: tuple[str, ...]) -> None:
    for task, weight in value.items():
        if task not in tasks:
            raise InputError(
                f"tier: value weighs task '{task}', which the model lacks; "
                f"{did_you_mean(task, tasks)}"
            )
        if not math.isfinite(weight):
            raise InputError(f"tier: value weighs task '{task}' by {weight}; expected a number")
    if value and not any(value.values()):
        raise InputError("tier: value weighs every task by 0, so nothing would be ordered")
