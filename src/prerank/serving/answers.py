"""An order of candidates back to raw ids."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from prerank.batch import Scores
from prerank.cascade import Cascade, Order
from prerank.serving.messages import Id, RankAnswer, RankRequest, TierExplained, Timings
from prerank.serving.prepare import CandidateSide
from prerank.serving.scoring import HeldStates
from prerank.serving.settings import Policy

__all__ = ["build_answer"]


def build_answer(
    request: RankRequest,
    side: CandidateSide,
    order: Order,
    span: tuple[int, int],
    held: HeldStates,
    cascade: Cascade,
    version: str,
    timings: Timings,
    policy: Policy,
    history_version: str,
) -> RankAnswer:
    """Say the order of one request of a batch.

    Parameters
    ----------
    side : CandidateSide
        Of the request alone.
    order : Order
        Of the batch.
    span : (int, int)
        The request's candidates in the batch.
    """
    first, stop = span
    position = order.position[first:stop].numpy()
    placed = np.flatnonzero(position >= 0)
    sequence = np.empty(len(placed), dtype=np.int64)
    sequence[position[placed]] = placed
    sequence = sequence[: request.k]
    raw = request.candidates.ids
    ids: Any = np.frombuffer(raw, "<i8").tolist() if isinstance(raw, bytes) else raw
    chosen: list[Id] = [ids[k] for k in side.kept[sequence].tolist()]
    tier: list[int] = order.tier[first:stop].numpy()[sequence].tolist()
    unknown: list[Id] = [ids[k] for k in side.unknown.tolist()]
    last = []
    if unknown and policy != "drop":
        room = len(ids) if request.k is None else request.k - len(chosen)
        last = [ids[k] for k in np.setdiff1d(side.unknown, side.kept).tolist()][: max(0, room)]
    score, explained = None, None
    if request.explain:
        explained = [
            _explain(k, span, sequence, held, cascade, len(last)) for k in sorted(held.scored)
        ]
        score = _last_scores(tier, explained, len(last))
    return RankAnswer(
        model=version,
        request_id=request.request_id,
        ids=chosen + last,
        tier=tier + [-1] * len(last),
        degraded=bool(held.cut),
        done=_done(held, cascade),
        score=score,
        unknown=unknown,
        history_version=history_version,
        explain=explained,
        timings=timings,
    )


def _done(held: HeldStates, cascade: Cascade) -> str | None:
    """Say what was done where time was short."""
    told = [
        f"tier {k} ({type(cascade.tiers[k].model).__name__}) scored {n} of {wanted} candidates"
        for k, (n, wanted) in held.cut.items()
    ]
    return f"short of time: {'; '.join(told)}" if told else None


def _explain(
    index: int,
    span: tuple[int, int],
    sequence: npt.NDArray[np.int64],
    held: HeldStates,
    cascade: Cascade,
    num_last: int,
) -> TierExplained:
    """Return a tier's values and places for candidates in the order of the answer."""
    first, stop = span
    candidates, logits = held.scored[index]
    mine = ((candidates >= first) & (candidates < stop)).nonzero().squeeze(1)
    value = cascade.tiers[index].order_value(Scores(logits[mine])).double().numpy()
    at = (candidates[mine] - first).numpy()
    score = np.full(stop - first, np.nan)
    score[at] = value
    place = np.full(stop - first, -1)
    place[at[np.argsort(-value, kind="stable")]] = np.arange(len(at))
    return TierExplained(
        type(cascade.tiers[index].model).__name__,
        [p if p >= 0 else None for p in place[sequence].tolist()] + [None] * num_last,
        [None if math.isnan(s) else s for s in score[sequence].tolist()] + [None] * num_last,
    )


def _last_scores(
    tier: list[int], explained: list[TierExplained], num_last: int
) -> list[float | None]:
    found = [explained[t].score[k] if t < len(explained) else None for k, t in enumerate(tier)]
    return found + [None] * num_last
