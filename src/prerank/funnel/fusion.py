"""The order of retrieval: one score for every item, whether a channel returned it or not.

Channels return sets with quotas, which have no common order. The logged one is reciprocal rank
fusion (Cormack et al., SIGIR 2009), weighted by the channels' shares:

    score(request, item) = sum over channels of share / (60 + place of the item in the channel)

The place is the number of alive items that the channel puts strictly before the item, so it exists
for every item: one the channel would never have returned, one that nobody showed, one that was
really shown. It reads the history, the item, and what the channels learned, nothing else: being
real cannot move it. ``candidates.rank.retrieval`` is the position by this score in the list that
the funnel made; items of the pool were in no list and have the score alone. The constant 60 is
the authors'; weighting by shares is ours.

Shapes: ``B`` requests, ``I`` candidates, ``N`` items.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from prerank.funnel.channels import Channels
from prerank.funnel.config import CHANNELS, Shares

__all__ = ["fused_scores"]

Index = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

_CONSTANT = 60.0


def fused_scores(
    channels: Channels,
    history: tuple[Index, Index],
    alive: npt.NDArray[np.bool_],
    offsets: Index,
    item: Index,
    shares: Shares,
) -> Floats:
    """Return the retrieval score of every candidate.

    Parameters
    ----------
    channels : Channels
        Fitted on something else than these requests.
    history : tuple of two ndarray
        Offsets ``[B + 1]`` and items of the histories, oldest first.
    alive : ndarray ``[N]`` bool
        Items that could be retrieved.
    offsets, item : ndarray ``[B + 1]``, ``[I]`` int64
        The candidates.
    shares : Shares
        Weights of the channels.

    Returns
    -------
    ndarray ``[I]`` float32
        Higher is earlier.

    Examples
    --------
    >>> user, seen = np.array([0, 0, 1, 1]), np.array([2, 3, 2, 3], dtype=np.int32)
    >>> fitted = Channels.fit(user, seen, num_items=5, neighbours=2, dim=2, seed=0)
    >>> history = np.array([0, 1]), np.array([2])
    >>> bounds, items = np.array([0, 2]), np.array([3, 4])
    >>> score = fused_scores(fitted, history, np.ones(5, dtype=bool), bounds, items, Shares())
    >>> bool(score[0] > score[1])
    True
    """
    queries = channels.queries(*history)
    request, similar, similarity = channels.similar(*history)
    bounds = np.searchsorted(request, np.arange(len(offsets)))
    popular = np.sort(-channels.popularity[alive])
    fused = np.empty(len(item), dtype=np.float32)
    # By item, cleared after each request: the list of neighbours is short, the catalogue is not.
    near = np.zeros(len(alive), dtype=np.float32)
    for b in range(len(offsets) - 1):
        inside = slice(int(offsets[b]), int(offsets[b + 1]))
        wanted = item[inside]
        mine = slice(bounds[b], bounds[b + 1])
        near[similar[mine]] = similarity[mine]
        ahead = similarity[mine][alive[similar[mine]]]
        product = channels.factors @ queries[b]
        places = {
            "similar": np.searchsorted(-ahead, -near[wanted]),
            "factors": np.searchsorted(np.sort(-product[alive]), -product[wanted]),
            "popular": np.searchsorted(popular, -channels.popularity[wanted]),
        }
        near[similar[mine]] = 0
        fused[inside] = sum(getattr(shares, n) / (_CONSTANT + places[n]) for n in CHANNELS)
    return fused
