"""The stages of the funnel as pure functions: the one path that every candidate takes.

Real candidates are scored and ranked like all others; only *keeping* them is forced, because they
really were shown. What would have happened without that is logged beside it.

Shapes: ``R`` requests, ``I`` candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prerank import rng
from prerank.funnel.config import Quotas

__all__ = ["STAGES", "Outcome", "positions", "run_stages"]

STAGES = ("pool", "retrieval", "prerank", "rank", "exposed")
POOL, RETRIEVAL, PRERANK, RANK, EXPOSED = range(5)

Index = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What the funnel did with each candidate ``[I]``.

    Parameters
    ----------
    stage : ndarray int8
        Deepest list it was kept in, an index into ``STAGES``.
    prerank, rank : ndarray int64
        Position in the list that the stage ordered, -1 where it did not see the item.
    online : ndarray bool
        The ranker saw it in the funnel; its score of all others was computed for the log only.
    survives : ndarray bool
        Found by a channel and within the quota of both stages by its own rank.
    """

    stage: npt.NDArray[np.int8]
    prerank: Index
    rank: Index
    online: Bools
    survives: Bools


def positions(score: Floats, request_of: Index, tie: npt.NDArray[np.uint64]) -> Index:
    """Return the 0-based place of each candidate in its request, best score first.

    Parameters
    ----------
    score : ndarray ``[I]``
        Higher is better.
    request_of : ndarray ``[I]`` int64
        Ascending.
    tie : ndarray ``[I]`` uint64
        Orders equal scores.

    Examples
    --------
    >>> tie = np.arange(4).astype(np.uint64)
    >>> positions(np.array([0.1, 0.7, 0.5, 0.5]), np.array([0, 0, 1, 1]), tie)
    array([1, 0, 0, 1])
    """
    order = np.lexsort((tie, -score, request_of))
    place = np.empty(len(score), dtype=np.int64)
    row = np.arange(len(score))
    sorted_request = request_of[order]
    starts = np.flatnonzero(np.diff(sorted_request, prepend=-1))
    lengths = np.diff(np.append(starts, len(row)))
    place[order] = row - np.repeat(starts, lengths)
    return place


def run_stages(
    request_of: Index,
    *,
    real: Bools,
    found: Bools,
    pool: Bools,
    prerank_score: Floats,
    rank_score: Floats,
    quotas: Quotas,
    tie: npt.NDArray[np.uint64] | None = None,
) -> Outcome:
    """Pass the candidates of some requests through pre-ranking and ranking.

    Parameters
    ----------
    request_of : ndarray ``[I]`` int64
        Ascending.
    real, found, pool : ndarray ``[I]`` bool
        Really shown; produced by a channel; a random item that no stage saw.
    prerank_score, rank_score : ndarray ``[I]``
        Of every candidate, by the same models.
    quotas : Quotas
        Lists hold so many candidates, real ones included (or all real ones, if they are more).
    tie : ndarray ``[I]`` uint64, optional
        Orders equal scores; default by a hash of the position.
    """
    tie = rng.hash64(np.arange(len(real))) if tie is None else tie
    num_requests = int(request_of[-1]) + 1 if len(request_of) else 0
    num_real = np.bincount(request_of[real], minlength=num_requests)

    def ordered(among: Bools, score: Floats, quota: int) -> tuple[Index, Bools]:
        """Return positions in the list (-1 outside), and who is kept when the real ones are."""
        place = np.full(len(real), -1, dtype=np.int64)
        place[among] = positions(score[among], request_of[among], tie[among])
        others = among & ~real
        place_of_other = positions(score[others], request_of[others], tie[others])
        kept = real.copy()
        kept[others] = place_of_other < (quota - num_real)[request_of[others]]
        return place, kept

    prerank, kept_prerank = ordered(~pool, prerank_score, quotas.prerank)
    rank, kept_rank = ordered(kept_prerank, rank_score, quotas.rank)
    stage = np.full(len(real), RETRIEVAL, dtype=np.int8)
    stage[kept_prerank] = PRERANK
    stage[kept_rank] = RANK
    stage[real] = EXPOSED
    stage[pool] = POOL
    within = (prerank >= 0) & (prerank < quotas.prerank) & (rank >= 0) & (rank < quotas.rank)
    return Outcome(stage, prerank, rank, kept_prerank, found & within)
