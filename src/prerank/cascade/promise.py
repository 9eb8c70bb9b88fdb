"""A cut with a promise: how much to forward so that the ranker's favourites are rarely lost.

The loss of a request is the share of the ranker's first ``m``, among the candidates that it
scored, which the light tier did not forward. A rule's level is chosen on requests later than
training by conformal risk control (Angelopoulos, Bates, Fisch, Lei and Schuster, "Conformal risk
control", ICLR 2024): the lowest level whose mean loss ``R`` over ``n`` units keeps

    n / (n + 1) * R + 1 / (n + 1) <= epsilon

(the loss is at most 1 and never grows with the level). Then the *expected* loss of one more unit
is at most ``epsilon``, for any light model and any ranker, however bad.

What that does not say:

- It is a mean over units, not a bound for each, and over the draw of the calibration units as well.
- It holds for units exchangeable with those: under drift, or another retrieval, it may fail, so the
  realised loss should be watched (:mod:`prerank.evaluation.studies.promise`).
- Requests of one user are not exchangeable with those of another; ``unit="user"`` makes users the
  units (the mean loss of a new user's requests), which needs as many users.
- Where the ranker scored only what an earlier pre-ranker kept, its first ``m`` are the first ``m``
  *of those*. Nothing is certified about candidates that it never scored: one that the ranker would
  have loved, had it seen it, counts as no loss.

Shapes: ``R`` requests, ``F`` candidates.
"""

from __future__ import annotations

import math
from typing import TypeVar

import msgspec
import torch
from torch import Tensor

from prerank.cascade.ladder import Ladder
from prerank.cascade.rules import Promise, Rule
from prerank.errors import InputError
from prerank.jagged import segment_sum

__all__ = ["certify", "losses"]

_Rule = TypeVar("_Rule", bound=Rule)


def losses(rule: Rule, ladder: Ladder, needed: Tensor) -> Tensor:
    """Return the share of each request's needed candidates that is not forwarded.

    Parameters
    ----------
    rule : Rule
        What is forwarded.
    ladder : Ladder
        Values of the light tier.
    needed : Tensor ``[F]`` bool
        The ranker's first ``m``, in the ladder's order.

    Returns
    -------
    Tensor ``[R]`` float64
        NaN for a request without any.

    Examples
    --------
    >>> from prerank.cascade import Share
    >>> ladder = Ladder.of(torch.tensor([3.0, 2.0, 1.0, 0.0]), torch.tensor([0, 4]))
    >>> losses(Share(share=0.5), ladder, torch.tensor([True, False, True, False]))
    tensor([0.5000], dtype=torch.float64)
    """
    lost = needed & (rule.bounded_reach(ladder) > rule.level)
    number = _count(needed, ladder)
    return _count(lost, ladder) / torch.where(number > 0, number, torch.nan)


def certify(
    rule: _Rule,
    ladder: Ladder,
    needed: Tensor,
    *,
    epsilon: float,
    top_m: int,
    user: Tensor | None = None,
    part: str = "",
) -> _Rule:
    """Choose the lowest level whose expected loss is certified to be at most ``epsilon``.

    Parameters
    ----------
    rule : Rule
        The family; its level is replaced.
    ladder : Ladder
        Values of the light tier on requests that neither model was trained on.
    needed : Tensor ``[F]`` bool
        The ranker's first ``top_m``, in the ladder's order. Requests without any do not count.
    epsilon : float
        In (0, 1).
    top_m : int
        Written down with the promise.
    user : Tensor ``[R]`` int64, optional
        Make users the units. Default: requests are.
    part : str
        Written down with the promise.

    Returns
    -------
    Rule
        With its :class:`~prerank.cascade.rules.Promise`.

    Raises
    ------
    InputError
        Too few units for ``epsilon`` (fewer than ``1 / epsilon - 1``); ``at_most`` keeps the loss
        above it at every level.

    Examples
    --------
    >>> from prerank.cascade import Share
    >>> values = torch.linspace(1.0, 0.0, 10).repeat(99)
    >>> ladder = Ladder.of(values, torch.arange(0, 1000, 10))
    >>> needed = torch.zeros(990, dtype=torch.bool)
    >>> needed[::10] = True   # the ranker loves what the light model loves
    >>> needed[9::100] = True  # but in one of ten requests also the very last
    >>> rule = certify(Share(share=0.5), ladder, needed, epsilon=0.1, top_m=1)
    >>> rule.count(ladder)[0].item(), rule.promise.num_units
    (1, 99)
    """
    if not 0.0 < epsilon < 1.0:
        raise InputError(f"promise: epsilon is {epsilon}; expected a number between 0 and 1")
    number = _count(needed, ladder)
    if user is None:
        weight_R = (number > 0).double()
    else:
        _, unit = torch.unique(user, return_inverse=True)
        has = (number > 0).double()
        per_user = segment_sum(has, unit, int(unit.max()) + 1 if unit.numel() else 0)
        weight_R = has / per_user[unit].clamp(min=1.0)
    num_units = round(float(weight_R.sum()))
    allowed = epsilon * (num_units + 1) - 1.0
    if allowed < 0:
        raise InputError(
            f"promise: {num_units} units are too few for epsilon {epsilon}; calibrate on at least "
            f"{math.ceil(1 / epsilon - 1)}"
        )
    share = (weight_R / number.clamp(min=1.0))[ladder.request][needed]
    reach, order = rule.bounded_reach(ladder)[needed].sort(descending=True)
    # What is lost at the level of each needed candidate: those that reach strictly further.
    through = share[order].cumsum(0)
    first = torch.searchsorted(-reach, -reach, side="left")
    lost = torch.where(first > 0, through[(first - 1).clamp(min=0)], 0.0)
    fine = lost <= allowed + 1e-9
    level = float(reach[fine].min()) if bool(fine.any()) else 0.0
    if math.isinf(level) and level > 0:
        raise InputError(
            f"promise: at_most {rule.at_most} loses more than {epsilon} at every level; raise it"
        )
    if math.isinf(level):
        # What may not be lost is among the first at_least places, so forward only those.
        every = rule.bounded_reach(ladder)
        finite = every[every.isfinite()]
        level = float(finite.min()) if finite.numel() else 0.0
        level -= 1e-6 * (1.0 + abs(level))
    # A hair above, so that rounding in another batch does not take the candidate itself away.
    chosen = rule.with_level(level + 1e-9 * (1.0 + abs(level)))
    risk = float((losses(chosen, ladder, needed).nan_to_num() * weight_R).sum()) / num_units
    promise = Promise(
        epsilon=epsilon,
        top_m=top_m,
        unit="request" if user is None else "user",
        num_units=num_units,
        risk=risk,
        part=part,
    )
    return msgspec.structs.replace(chosen, promise=promise, budget=None)


def _count(chosen: Tensor, ladder: Ladder) -> Tensor:
    return segment_sum(chosen.double(), ladder.request, ladder.num_requests)
