"""Which candidates go on, once it is said how many: HAP's choice and its controls.

============  ====================================================================================
``score``     the highest values; the authors' rule
``margin``    the closest in value to the candidate at the cut, the last one that would be kept
``entropy``   the first task's probability closest to one half
``random``    a draw per candidate that the caller makes (see ``Facts.draw``)
``oracle``    the highest truth, which only evaluation knows
============  ====================================================================================

All but the first are ablations of ours. Ties go to the better place (``margin``: to the place
closer to the cut, so that its band has no hole).

Shapes: ``R`` requests, ``F`` candidates that reached the tier.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from prerank.cascade.ladder import Ladder, sort_within
from prerank.config import Config
from prerank.errors import InputError
from prerank.jagged import segment_sum

__all__ = ["ROUTERS", "Facts", "Margin", "Router", "first_by", "router_keys"]

Router = Literal["score", "margin", "entropy", "random", "oracle"]
ROUTERS: tuple[Router, ...] = ("score", "margin", "entropy", "random", "oracle")


@dataclass(frozen=True, slots=True)
class Facts:
    """What routers of an ablation know of each candidate beside its values.

    Parameters
    ----------
    draw : Tensor ``[F]``, optional
        For ``random``: the lowest go on. A pure function of seed, request and item
        (:func:`prerank.rng.hash64` as int64), so that batch-mates do not change it.
    truth : Tensor ``[F]``, optional
        For ``oracle``: the highest go on.
    """

    draw: Tensor | None = None
    truth: Tensor | None = None

    def select(self, index: Tensor) -> Facts:
        """Return the facts of given candidates ``[F']`` int64."""
        return Facts(*(None if x is None else x[index] for x in (self.draw, self.truth)))


class Margin(Config, frozen=True):
    """A band around the cut: every candidate whose value is at most ``within`` from the cut's.

    Those above the band stay before it and those below it behind, both in the tier's own order.

    Parameters
    ----------
    within : float
        In the unit of the tier's value; at least 0.
    at_least, at_most : int, int or None
        Bounds of the count, the closest first.
    """

    name: ClassVar[str] = "margin"

    within: float
    at_least: int = 1
    at_most: int | None = None

    def __post_init__(self) -> None:
        if not self.within >= 0:
            raise InputError(f"margin: within is {self.within}; expected 0 or more")
        if self.at_least < 0:
            raise InputError(f"margin: at_least is {self.at_least}; expected 0 or more")
        if self.at_most is not None and self.at_most < max(1, self.at_least):
            raise InputError(
                f"margin: at_most is {self.at_most}; expected at least {max(1, self.at_least)}"
            )

    def count(self, ladder: Ladder, distance: Tensor) -> Tensor:
        """Return how many candidates of each request ``[R]`` are inside, from their distances."""
        inside = segment_sum((distance <= self.within).long(), ladder.request, ladder.num_requests)
        return inside.clamp(min=self.at_least, max=self.at_most)

    def describe(self) -> str:
        """Return the band in words."""
        return f"within {self.within:.4g}"


def router_keys(
    router: Router, ladder: Ladder, logit: Tensor, facts: Facts, cut: Tensor | None
) -> tuple[Tensor, ...]:
    """Return what a router sorts by ``[F]``, lowest first: the key, then what decides its ties.

    Empty for the tier's own order.

    Parameters
    ----------
    router : str
        Which one.
    ladder : Ladder
        The tier's values.
    logit : Tensor ``[F]``
        First task, in the ladder's order.
    facts : Facts
        Of the candidates, in the ladder's order.
    cut : Tensor ``[R]`` int64, optional
        How many are finally kept, for ``margin``.

    Raises
    ------
    InputError
        ``random`` without draws, ``oracle`` without truth.
    """
    match router:
        case "score":
            return ()
        case "margin":
            assert cut is not None
            last = (cut - 1).clamp(min=0)
            mark = ladder.at(last).double()
            last = torch.minimum(last, (ladder.lengths - 1).clamp(min=0))
            steps = (ladder.place - last[ladder.request]).abs()
            return (ladder.value.double() - mark[ladder.request]).abs(), steps
        case "entropy":
            return (logit.abs(),)
        case "random":
            if facts.draw is None:
                raise InputError("cascade: router 'random' needs draw, one number per candidate")
            return (facts.draw,)
        case "oracle":
            if facts.truth is None:
                raise InputError(
                    "cascade: router 'oracle' needs the truth of each candidate, which only "
                    "evaluation knows"
                )
            return (-facts.truth.double(),)


def first_by(keys: tuple[Tensor, ...], ladder: Ladder, count: Tensor) -> Tensor:
    """Return which candidates ``[F]`` are among the ``count [R]`` lowest of their request."""
    order = torch.arange(ladder.value.numel(), device=ladder.value.device)
    for key in reversed(keys):
        order = order[sort_within(key[order], ladder.offsets)]
    chosen = torch.zeros_like(ladder.place, dtype=torch.bool)
    chosen[order[ladder.place < count[ladder.request]]] = True
    return chosen
