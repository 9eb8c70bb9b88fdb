"""One budget for all requests against a fixed share, at equal mean cost, on a later part.

See :mod:`prerank.cascade.budget` for what a budget is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from prerank.cascade import Rule, Share, Tier
from prerank.cascade.budget import spend
from prerank.cascade.promise import losses
from prerank.errors import InputError
from prerank.evaluation.statistics import Difference, paired_mean
from prerank.evaluation.studies.promise import Realised, Sample, read_sample, realised
from prerank.jagged import segment_sum
from prerank.log import Part

__all__ = ["Spent", "calibrate", "compare_budgets", "losses_of_share"]

_Rule = TypeVar("_Rule", bound=Rule)


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """One rule under a budget.

    Parameters
    ----------
    rule : str
        In words, with the level that was found.
    realised : Realised
        On the later part: loss and mean count, which drifts from the budget as requests do.
    difference : Difference, optional
        Its loss minus that of a fixed share with *the same* mean count on the later part, so that
        spending more than planned is no advantage; users resampled together. Between two counts
        that a share can have on average, the loss is the mix of both.
    """

    rule: str
    realised: Realised
    difference: Difference | None


def calibrate(
    rule: _Rule, sample: Sample | Part, mean: float, *, tier: Tier | None = None
) -> _Rule:
    """Choose the level of a rule whose mean count on a sample is the budget.

    Parameters
    ----------
    rule : Rule
        The family, for example ``Threshold(score=0.0)``; its level is replaced.
    sample : Sample or Part
        Requests later than training; of a part, ``tier`` says who scores it.
    mean : float
        Candidates forwarded per request.
    tier : Tier, optional
        For a part.

    Raises
    ------
    InputError
        As :func:`prerank.cascade.budget.spend`; a part without a tier.
    """
    if isinstance(sample, Part):
        if tier is None:
            raise InputError("budget: a part needs the tier that scores it; give one")
        sample = read_sample(tier, sample)
    return spend(rule, sample.ladder, mean, part=sample.part)


def compare_budgets(
    rules: Mapping[str, Rule],
    fit: Sample,
    judge: Sample,
    mean: float,
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Spent]:
    """Fit every rule to one mean count and judge all on a later sample.

    Parameters
    ----------
    rules : mapping of str to Rule
        Families by name.
    fit, judge : Sample
        Where levels are chosen, and a later one where they are judged.
    mean : float
        Candidates forwarded per request.
    num_resamples, seed : int
        Of the user bootstrap.

    Returns
    -------
    dict of str to Spent
        The fixed share first, as ``share``, then the rules.
    """
    options = {"num_resamples": num_resamples, "seed": seed}
    fixed = spend(Share(share=0.0), fit.ladder, mean, part=fit.part)
    found = realised(fixed, judge, **options)
    spent = {"share": Spent(rule=fixed.describe(), realised=found, difference=None)}
    user = judge.user.numpy()
    for name, rule in rules.items():
        fitted = spend(rule, fit.ladder, mean, part=fit.part)
        found = realised(fitted, judge, **options)
        difference = paired_mean(
            losses(fitted, judge.ladder, judge.needed).numpy(),
            losses_of_share(judge, found.forwarded.value),
            None,
            user,
            num_resamples=num_resamples,
            seed=seed,
        )
        spent[name] = Spent(rule=fitted.describe(), realised=found, difference=difference)
    return spent


def losses_of_share(sample: Sample, mean: float) -> npt.NDArray[np.float64]:
    """Return the losses of a fixed share whose mean count on the sample is ``mean``.

    Between two counts that a share can have on average, the losses are the mix of both.

    Parameters
    ----------
    sample : Sample
        Requests.
    mean : float
        Candidates forwarded per request.

    Returns
    -------
    ndarray ``[R]`` float64
        NaN for a request in which the ranker wanted nothing.
    """
    ladder = sample.ladder
    reach = Share(share=0.0, at_least=0).reach(ladder)
    levels = torch.unique(reach)
    counts = torch.searchsorted(reach.sort().values, levels, side="right") / ladder.num_requests
    above = min(int(torch.searchsorted(counts, mean - 1e-9)), levels.numel() - 1)

    def at(place: int) -> npt.NDArray[np.float64]:
        lost = sample.needed & (reach > (levels[place] if place >= 0 else -1.0))
        number = segment_sum(sample.needed.double(), ladder.request, ladder.num_requests)
        lost_R = segment_sum(lost.double(), ladder.request, ladder.num_requests)
        return (lost_R / torch.where(number > 0, number, torch.nan)).numpy()

    high, low = float(counts[above]), float(counts[above - 1]) if above else 0.0
    weight = min(1.0, (mean - low) / (high - low))
    mixed: npt.NDArray[np.float64] = weight * at(above) + (1.0 - weight) * at(above - 1)
    return mixed
