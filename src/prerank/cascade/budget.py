"""One budget for all requests: the same mean cost, spent where the light model sees most to gain.

A fixed share forwards as much of a request with one clear winner as of one where the light model
cannot tell. A rule whose level is set so that the *mean* count equals the budget moves places from
the first kind to the second: ``Threshold`` to requests with many promising candidates (on a
calibrated logit it is the best split of the expected engagements among the forwarded), ``Mass`` to
requests whose softmax is flat, ``Gap`` to requests with many candidates close to the cut.

Which of them pays, if any, is a question for data: compare with :class:`~prerank.cascade.Share` at
the same mean on a later part (:mod:`prerank.evaluation.studies.budget`). This is ours, not the
authors'.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
import torch

from prerank.cascade.ladder import Ladder
from prerank.cascade.rules import Budget, Rule
from prerank.errors import InputError

__all__ = ["spend"]

_Rule = TypeVar("_Rule", bound=Rule)


def spend(rule: _Rule, ladder: Ladder, mean: float, *, part: str = "") -> _Rule:
    """Choose the highest level whose mean count over the given requests is at most ``mean``.

    Parameters
    ----------
    rule : Rule
        The family, with its bounds; its level is replaced.
    ladder : Ladder
        Values of the tier on requests that its model was not trained on.
    mean : float
        Candidates forwarded per request; a request with none counts too.
    part : str
        Written down with the budget.

    Returns
    -------
    Rule
        With its :class:`~prerank.cascade.rules.Budget`.

    Raises
    ------
    InputError
        No request; ``at_least`` alone spends more.

    Examples
    --------
    >>> from prerank.cascade import Threshold
    >>> value = torch.tensor([3.0, 2.5, 2.0, 1.0, 0.9, 0.1])
    >>> ladder = Ladder.of(value, torch.tensor([0, 3, 6]))
    >>> rule = spend(Threshold(score=0.0), ladder, 2.0)
    >>> rule.count(ladder), rule.budget.realised
    (tensor([3, 1]), 2.0)
    """
    if not ladder.num_requests:
        raise InputError("budget: no request to fit it on")
    reach = rule.bounded_reach(ladder).sort().values
    affordable = int(mean * ladder.num_requests + 1e-9)
    forced = int((reach == -torch.inf).sum())
    if not mean > 0 or forced > affordable:
        raise InputError(
            f"budget: a mean of {mean:.4g} candidates is not enough; at_least {rule.at_least} "
            f"alone takes {forced / ladder.num_requests:.4g}"
        )
    possible = int((reach < torch.inf).sum())
    if affordable >= possible:
        level = float(reach[possible - 1]) if possible > forced else 0.0
        level += 1e-9 * (1.0 + abs(level))
    else:
        # Between what is affordable and what is not; below all equals of the latter.
        above = reach[affordable]
        below = reach[reach < above]
        under = float(below[-1]) if below.numel() else -torch.inf
        level = float(above)
        if under > -torch.inf:
            # Two that differ in the last bit have no number between them.
            middle = 0.5 * (level + under)
            level = middle if middle < level else under
        else:
            level -= 1e-6 * (1 + abs(level))
    chosen = rule.with_level(level)
    realised = float(chosen.count(ladder).double().mean())
    budget = Budget(mean=mean, realised=realised, num_requests=ladder.num_requests, part=part)
    return msgspec.structs.replace(chosen, budget=budget, promise=None)
