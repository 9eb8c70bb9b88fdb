"""Promises and budgets on logs: what a light tier says, what the ranker wanted, what was lost.

A :class:`Sample` holds both for one part. ``calibrate`` chooses a level on it, ``realised`` says
what a rule does on another one, later: mean loss and mean count with intervals over users, whole
and in windows of time, since a promise is for exchangeable requests and drift breaks it. See
:mod:`prerank.cascade.promise` for what is certified and what is not.

Shapes: ``R`` requests, ``F`` candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prerank import metrics
from prerank.batch import Scores
from prerank.cascade import Rule, Tier
from prerank.cascade.ladder import Ladder
from prerank.cascade.promise import certify, losses
from prerank.errors import InputError
from prerank.evaluation.collect import Collected, ModelScorer, Ranker, collect
from prerank.evaluation.statistics import Estimate, bootstrap_mean
from prerank.evaluation.truth.ranker import logged_ranker
from prerank.log import Part

__all__ = ["Realised", "Sample", "calibrate", "read_sample", "realised", "sample_of"]

_Rule = TypeVar("_Rule", bound=Rule)


@dataclass(frozen=True, slots=True)
class Sample:
    """What calibrating and judging a rule needs of a part.

    Parameters
    ----------
    ladder : Ladder
        The tier's values.
    needed : Tensor ``[F]`` bool
        The ranker's first ``top_m``, in the ladder's order.
    user, time : Tensor ``[R]`` int64
        User index and time (ms) of each request.
    top_m : int
        ``m``.
    part : str
        Name of the log's part.
    scored_share : float
        Share of the candidates that the ranker scored; below 1 the promise is about those only.
    """

    ladder: Ladder
    needed: Tensor
    user: Tensor
    time: Tensor
    top_m: int
    part: str
    scored_share: float


class Realised(msgspec.Struct, frozen=True, kw_only=True):
    """What a rule does on a sample.

    Parameters
    ----------
    loss : Estimate
        Mean share of the ranker's first ``m`` not forwarded; 95 % interval over users.
    forwarded : Estimate
        Mean number of candidates forwarded.
    share : float
        Forwarded candidates over all.
    windows : tuple of (time in ms, mean loss, mean forwarded)
        The sample cut into windows of as many requests, each with the time of its first.
    """

    loss: Estimate
    forwarded: Estimate
    share: float
    windows: tuple[tuple[int, float, float], ...] = ()


def read_sample(
    tier: Tier,
    part: Part,
    *,
    top_m: int = 0,
    ranker: str | Ranker | None = None,
    batch_size: int = 256,
    device: str = "cpu",
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Sample:
    """Score a part with the model of a tier and ask the ranker for its favourites.

    Parameters
    ----------
    tier : Tier
        Its model and value; what it forwards is not read.
    part : Part
        Requests later than the training of the tier and of the ranker.
    top_m : int
        How many the ranker would show or pass on; 0: nobody asks it, which is enough to fit a
        budget.
    ranker : str or Scorer, optional
        Default: the log's.
    batch_size, device, seed, progress
        As in :func:`prerank.evaluate`; the seed draws the order among equal scores.

    Raises
    ------
    InputError
        No ranker; an empty part; a count out of range.
    """
    behind: Ranker | None = None
    if top_m:
        if ranker is None or isinstance(ranker, str):
            behind = logged_ranker(part.log.schema, ranker)
        else:
            behind = ranker
    if top_m and behind is None:
        raise InputError(
            f"{part.log.path}: logs no score and no order of a ranker, so what it wanted is not "
            "known; give a ranker"
        )
    scorer = ModelScorer(tier.model, device)
    data = collect(part, {"tier": scorer}, ranker=behind, batch_size=batch_size, progress=progress)
    logits = torch.from_numpy(data.scores["tier"])
    value = tier.order_value(Scores(logits)).double().numpy()
    return sample_of(data, value, top_m=top_m, part=part.name, seed=seed)


def sample_of(
    data: Collected, value: npt.NDArray[np.float64], *, top_m: int, part: str = "", seed: int = 0
) -> Sample:
    """Make a sample of what was collected already.

    Parameters
    ----------
    data : Collected
        With a ranker, unless ``top_m`` is 0.
    value : ndarray ``[I]`` float64
        The tier's order value, in the candidates' own order.
    top_m, part, seed
        As in :func:`read_sample`.
    """
    if top_m < 0:
        raise InputError(f"promise: top_m is {top_m}; expected 0 or more")
    assert data.ranker is not None or not top_m
    order = metrics.top_order(value, data.offsets, seed=seed, row=data.row)
    heavy = np.full(len(value), np.nan) if data.ranker is None else data.ranker
    known = ~np.isnan(heavy)
    heavy = np.where(known, heavy, -np.inf)
    theirs = metrics.top_order(heavy, data.offsets, seed=seed, row=data.row)
    place = np.arange(len(theirs)) - np.repeat(data.offsets[:-1], data.lengths)
    needed = np.zeros(len(theirs), dtype=np.bool_)
    needed[theirs[place < top_m]] = True
    needed &= known
    return Sample(
        ladder=Ladder.of(torch.from_numpy(value[order]), torch.from_numpy(data.offsets)),
        needed=torch.from_numpy(needed[order]),
        user=torch.from_numpy(data.user),
        time=torch.from_numpy(data.time),
        top_m=top_m,
        part=part,
        scored_share=float(known.mean()) if len(known) else 0.0,
    )


def calibrate(
    rule: _Rule, sample: Sample, epsilon: float, *, unit: Literal["request", "user"] = "request"
) -> _Rule:
    """Choose the level of a rule that keeps the promise ``epsilon``.

    Parameters
    ----------
    rule : Rule
        The family, for example ``Mass(mass=0.5)``; its level is replaced.
    sample : Sample
        Requests later than training.
    epsilon : float
        Bound of the expected loss.
    unit : {"request", "user"}
        What is exchangeable. ``user`` needs ``1 / epsilon - 1`` users.

    Raises
    ------
    InputError
        As :func:`prerank.cascade.promise.certify`.
    """
    return certify(
        rule,
        sample.ladder,
        sample.needed,
        epsilon=epsilon,
        top_m=sample.top_m,
        user=sample.user if unit == "user" else None,
        part=sample.part,
    )


def realised(
    rule: Rule,
    sample: Sample,
    *,
    num_windows: int = 0,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Realised:
    """Say what a rule loses and forwards.

    Parameters
    ----------
    rule : Rule
        With any level.
    sample : Sample
        Other requests than it was calibrated on.
    num_windows : int
        Also cut the sample, in time order, into so many windows.
    num_resamples, seed : int
        Of the user bootstrap.
    """
    ladder = sample.ladder
    loss = losses(rule, ladder, sample.needed).numpy()
    count = rule.count(ladder).double().numpy()
    user = sample.user.numpy()
    options = {"num_resamples": num_resamples, "seed": seed}
    windows = []
    by_time = np.argsort(sample.time.numpy(), kind="stable")
    for rows in np.array_split(by_time, num_windows) if num_windows else []:
        known = rows[~np.isnan(loss[rows])]
        mean = float(loss[known].mean()) if len(known) else float("nan")
        if len(rows):
            first = int(sample.time[rows[0]])
            windows.append((first, mean, float(count[rows].mean())))
    return Realised(
        loss=bootstrap_mean(loss, None, user, **options),
        forwarded=bootstrap_mean(count, None, user, **options),
        share=float(count.sum() / max(1, int(ladder.num_candidates.sum()))),
        windows=tuple(windows),
    )
