"""How many of a request's candidates a tier forwards, from its own values alone.

Every rule is a *level* on a ladder: each candidate has a *reach*, the lowest level at which it
is forwarded, which never falls from one place to the next. So what is forwarded is the first part
of the tier's order and grows with the level; both are what a promise
(:mod:`prerank.cascade.promise`) and a budget (:mod:`prerank.cascade.budget`) need to choose the
level from data.

==============  ====================================  ======================================
rule            level                                 reach of a candidate
==============  ====================================  ======================================
``Share``       share of the original candidates      its place over their number
``Threshold``   minus the score                       minus its value
``Mass``        softmax mass                          the mass of those before it
``Gap``         distance below the ``place``-th one   how far it is below
==============  ====================================  ======================================

The authors of HAP forward a fixed number of the highest-scored; every other rule here is ours.

Shapes: ``R`` requests, ``F`` candidates that reached the tier.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar, Self

import msgspec
import torch
from torch import Tensor

from prerank.cascade.ladder import Ladder, pad
from prerank.config import Config
from prerank.errors import InputError
from prerank.jagged import segment_sum

__all__ = ["Budget", "Gap", "Mass", "Promise", "Rule", "Share", "Threshold", "num_of_share"]

# A product of two float64 is off by less: 0.07 * 100 is a hair above 7, and 7 must go on, not 8.
_SLACK = 1.0 - 1e-15
# The same mass summed in another batch may differ in its last bits.
_MASS_SLACK = 1e-9


def num_of_share(num_candidates: Tensor, share: float) -> Tensor:
    """Return a share of each request's candidates ``[R]`` int64, rounded up.

    Examples
    --------
    >>> num_of_share(torch.tensor([0, 1, 10, 11, 100]), 0.3)
    tensor([ 0,  1,  3,  4, 30])
    """
    return (num_candidates.double() * share * _SLACK).ceil().long()


class Promise(Config, frozen=True):
    """What a level was certified for, as :func:`prerank.cascade.promise.certify` found it.

    Parameters
    ----------
    epsilon : float
        Bound of the expected loss: the share of the ranker's first ``top_m`` not forwarded.
    top_m : int
        Of the ranker's own order of the candidates it scored.
    unit : {"request", "user"}
        What is taken to be exchangeable with the future.
    num_units : int
        How many calibrated it.
    risk : float
        Mean loss over them at the level.
    part : str
        What they were, in words.
    """

    epsilon: float
    top_m: int
    unit: str
    num_units: int
    risk: float
    part: str = ""


class Budget(Config, frozen=True):
    """What a level was fitted to, as :func:`prerank.cascade.budget.spend` found it.

    Parameters
    ----------
    mean : float
        Candidates forwarded per request that were asked for.
    realised : float
        The mean over the requests it was fitted on; below ``mean`` where values tie.
    num_requests : int
        How many requests.
    part : str
        What they were, in words.
    """

    mean: float
    realised: float
    num_requests: int
    part: str = ""


class Rule(Config, frozen=True):
    """Base of the rules.

    Parameters
    ----------
    at_least, at_most : int, int or None
        Bounds of the count, whatever the values say; ``at_least`` may be 0.
    promise, budget : optional
        Where the level comes from.
    """

    name: ClassVar[str] = ""

    at_least: int = 1
    at_most: int | None = None
    promise: Promise | None = None
    budget: Budget | None = None

    def __post_init__(self) -> None:
        if self.at_least < 0:
            raise InputError(f"{self.name}: at_least is {self.at_least}; expected 0 or more")
        if self.at_most is not None and self.at_most < max(1, self.at_least):
            raise InputError(
                f"{self.name}: at_most is {self.at_most}; expected at least {max(1, self.at_least)}"
            )
        if not math.isfinite(self.level):
            raise InputError(f"{self.name}: the level is {self.level}; expected a finite number")

    @property
    @abstractmethod
    def level(self) -> float:
        """The level; more is forwarded at a higher one."""

    @abstractmethod
    def with_level(self, level: float) -> Self:
        """Return the same rule at another level."""

    @abstractmethod
    def reach(self, ladder: Ladder) -> Tensor:
        """Return the lowest level ``[F]`` float64 at which each candidate is forwarded."""

    @abstractmethod
    def describe(self) -> str:
        """Return the rule in words, for reports."""

    def bounded_reach(self, ladder: Ladder) -> Tensor:
        """Return :meth:`reach` with the bounds of the count: -inf must go on, inf never does."""
        reach = self.reach(ladder).masked_fill(ladder.place < self.at_least, -torch.inf)
        if self.at_most is not None:
            reach = reach.masked_fill(ladder.place >= self.at_most, torch.inf)
        return reach

    def count(self, ladder: Ladder) -> Tensor:
        """Return how many candidates each request forwards, ``[R]`` int64."""
        forwarded = self.bounded_reach(ladder) <= self.level
        return segment_sum(forwarded.long(), ladder.request, ladder.num_requests)


class Share(Rule, frozen=True, kw_only=True):
    """The same share of every request, as a rule that can be calibrated.

    Examples
    --------
    >>> ladder = Ladder.of(torch.zeros(10), torch.tensor([0, 10]))
    >>> Share(share=0.25).count(ladder)
    tensor([3])
    """

    name: ClassVar[str] = "share"

    share: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise InputError(f"share: is {self.share}; expected a number from 0 to 1")
        super().__post_init__()

    @property
    def level(self) -> float:
        """The share."""
        return self.share

    def with_level(self, level: float) -> Self:
        """Return the rule with another share, 1 at most."""
        return msgspec.structs.replace(self, share=min(max(level, 0.0), 1.0))

    def reach(self, ladder: Ladder) -> Tensor:
        """Return the place of each candidate over the request's original number."""
        place, num = ladder.place.double(), ladder.num_candidates[ladder.request].double()
        # Just above it: a share of exactly place / num stops before this candidate.
        return (place / num * (1.0 + 4e-15)).clamp(min=1e-300)

    def describe(self) -> str:
        """Return the share in per cent."""
        return f"{100 * self.share:.4g} %"


class Threshold(Rule, frozen=True, kw_only=True):
    """Every candidate whose value is at least ``score``.

    Parameters
    ----------
    score : float
        In the unit of the tier's value: the first task's logit by default.

    Examples
    --------
    >>> ladder = Ladder.of(torch.tensor([2.0, 1.0, 0.0, -1.0]), torch.tensor([0, 3, 4]))
    >>> Threshold(score=1.0).count(ladder), Threshold(score=1.0, at_least=0).count(ladder)
    (tensor([2, 1]), tensor([2, 0]))
    """

    name: ClassVar[str] = "threshold"

    score: float

    @property
    def level(self) -> float:
        """Minus the score."""
        return -self.score

    def with_level(self, level: float) -> Self:
        """Return the rule with the score ``-level``."""
        return msgspec.structs.replace(self, score=-level)

    def reach(self, ladder: Ladder) -> Tensor:
        """Return minus the values."""
        return -ladder.value.double()

    def describe(self) -> str:
        """Return the threshold."""
        return f"score >= {self.score:.4g}"


class Mass(Rule, frozen=True, kw_only=True):
    """Candidates until those before hold more than ``mass`` of the request's softmax.

    Few where one stands out, many where the light model cannot tell them apart.

    Parameters
    ----------
    mass : float
        In [0, 1]; 1 forwards all.
    temperature : float
        Of the softmax over the candidates that reached the tier; above 0.

    Examples
    --------
    >>> ladder = Ladder.of(torch.tensor([5.0, 0.0, 0.0, 0.0, 0.0]), torch.tensor([0, 2, 5]))
    >>> Mass(mass=0.5).count(ladder)
    tensor([1, 2])
    """

    name: ClassVar[str] = "mass"

    mass: float
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError(f"mass: temperature is {self.temperature}; expected a number above 0")
        super().__post_init__()

    @property
    def level(self) -> float:
        """The mass, and a hair for sums taken in another batch."""
        return self.mass + _MASS_SLACK

    def with_level(self, level: float) -> Self:
        """Return the rule with another mass, 1 at most."""
        return msgspec.structs.replace(self, mass=min(level, 1.0))

    def reach(self, ladder: Ladder) -> Tensor:
        """Return the softmax mass of those before each candidate."""
        top = ladder.at(torch.zeros_like(ladder.lengths))
        # Row by row, so that other requests of the batch do not change a sum.
        below = ladder.value.double() - top.double()[ladder.request]
        share = (below / self.temperature).exp()
        total = pad(share, ladder.offsets, 0.0).cumsum(dim=1)
        if not total.numel():
            return share
        before = torch.cat([torch.zeros_like(total[:, :1]), total[:, :-1]], dim=1)
        relative = before / total[:, -1:].clamp(min=1.0)
        return relative[ladder.request, ladder.place]

    def describe(self) -> str:
        """Return the mass in per cent."""
        return f"{100 * self.mass:.4g} % of softmax mass"


class Gap(Rule, frozen=True, kw_only=True):
    """Candidates at most ``within`` below the value of the ``place``-th one.

    Parameters
    ----------
    within : float
        In the unit of the tier's value; below 0 the ``place``-th itself stays back.
    place : int
        1-based, for example what the next stage takes; a shorter request uses its last.

    Examples
    --------
    >>> ladder = Ladder.of(torch.tensor([9.0, 2.0, 1.5, 0.0]), torch.tensor([0, 4]))
    >>> Gap(within=0.5, place=2).count(ladder)
    tensor([3])
    """

    name: ClassVar[str] = "gap"

    within: float
    place: int = 1

    def __post_init__(self) -> None:
        if self.place < 1:
            raise InputError(f"gap: place is {self.place}; expected 1 or more")
        super().__post_init__()

    @property
    def level(self) -> float:
        """The distance."""
        return self.within

    def with_level(self, level: float) -> Self:
        """Return the rule with another distance."""
        return msgspec.structs.replace(self, within=level)

    def reach(self, ladder: Ladder) -> Tensor:
        """Return how far each candidate is below the ``place``-th one."""
        mark = ladder.at(torch.full_like(ladder.lengths, self.place - 1)).double()
        return mark[ladder.request] - ladder.value.double()

    def describe(self) -> str:
        """Return the distance and the place."""
        return f"within {self.within:.4g} of place {self.place}"
