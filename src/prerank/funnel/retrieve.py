"""Retrieval: several channels, each with its share of the quota; what it must not return.

Shapes: ``B`` requests, ``I`` candidates, ``N`` items.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prerank import rng
from prerank.funnel.channels import Channels, nearest
from prerank.funnel.config import CHANNELS, Quotas, Shares

__all__ = ["Retrieved", "draw_pool", "force_real", "merge_lists", "retrieve"]

Index = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

MISSED = -1
"""Channel of a real item that no channel found."""


@dataclass(frozen=True, slots=True, eq=False)
class Retrieved:
    """The candidates of one request and the channel that claimed each first."""

    item: Index
    channel: npt.NDArray[np.int8]


def merge_lists(lists: list[Index], sizes: list[int], blocked: Bools) -> Retrieved:
    """Take each channel's share, skip what an earlier channel took, then fill up in turn.

    Parameters
    ----------
    lists : list of ndarray
        Items of each channel, best first.
    sizes : list of int
        Their shares; together the quota.
    blocked : ndarray ``[N]`` bool
        Items not to return; unchanged afterwards.

    Examples
    --------
    >>> blocked = np.zeros(6, dtype=bool)
    >>> lists = [np.array([1, 2, 3]), np.array([2, 4, 5])]
    >>> merge_lists(lists, [1, 2], blocked).item.tolist()
    [1, 2, 4]
    >>> merge_lists(lists, [2, 2], blocked).channel.tolist()
    [0, 0, 1, 1]
    """
    taken: list[Index] = []
    channels: list[npt.NDArray[np.int8]] = []
    missing = sum(sizes)

    def take(k: int, size: int) -> int:
        fresh = lists[k][~blocked[lists[k]]][:size]
        blocked[fresh] = True
        taken.append(fresh)
        channels.append(np.full(len(fresh), k, dtype=np.int8))
        return len(fresh)

    for k, size in enumerate(sizes):
        missing -= take(k, size)
    for k in range(len(lists)):
        if missing:
            missing -= take(k, missing)
    item = np.concatenate(taken)
    blocked[item] = False
    return Retrieved(item, np.concatenate(channels))


def retrieve(
    channels: Channels,
    history: tuple[Index, Index],
    alive: Bools,
    excluded: list[Index],
    quotas: Quotas,
    shares: Shares,
) -> list[Retrieved]:
    """Return the candidates of some requests, without knowing what was really shown.

    Parameters
    ----------
    channels : Channels
        Fitted on something else than these requests.
    history : tuple of two ndarray
        Offsets ``[B + 1]`` and items of the histories, oldest first.
    alive : ndarray ``[N]`` bool
        Items that can be retrieved.
    excluded : list of ndarray
        Items not to return, per request.
    quotas, shares : Quotas, Shares
        How many and by whom.
    """
    offsets, item = history
    living = np.flatnonzero(alive)
    margin = max((len(np.unique(e)) for e in excluded), default=0)
    depth = min(quotas.retrieval + margin, len(living))
    request, similar, _ = channels.similar(offsets, item)
    keep = alive[similar]
    request, similar = request[keep], similar[keep]
    bounds = np.searchsorted(request, np.arange(len(offsets)))
    _, rows = nearest(channels.factors[living], channels.queries(offsets, item), depth)
    order = np.argsort(-channels.popularity[living], kind="stable")[:depth]
    popular = living[order]
    sizes = [round(getattr(shares, name) * quotas.retrieval) for name in CHANNELS]
    sizes[-1] = quotas.retrieval - sum(sizes[:-1])
    blocked = ~alive
    found = []
    for b, without in enumerate(excluded):
        was = blocked[without]
        blocked[without] = True
        lists = [similar[bounds[b] : bounds[b + 1]], living[rows[b]], popular]
        found.append(merge_lists(lists, sizes, blocked))
        blocked[without] = was
    return found


def force_real(
    found: Retrieved, real: Index, quota: int, key: Callable[[Index], npt.NDArray[np.uint64]]
) -> tuple[Index, npt.NDArray[np.int8], Bools]:
    """Put the real items among the retrieved ones; random others make room for them.

    Parameters
    ----------
    found : Retrieved
        What the channels returned.
    real : ndarray int64
        Really shown items.
    quota : int
        Size of the list (more if there are more real items).
    key : callable
        Random keys of items; the others with the largest ones go.

    Returns
    -------
    tuple of ndarray
        Items ascending (their order says nothing), channel (-1: no channel found it), real.
    """
    is_real = np.isin(found.item, real)
    missed = np.setdiff1d(real, found.item)
    others = found.item[~is_real]
    room = max(quota - len(real), 0)
    kept = others[np.argsort(key(others), kind="stable")[:room]]
    keep = is_real | np.isin(found.item, kept)
    item = np.concatenate([found.item[keep], missed])
    channel = np.concatenate([found.channel[keep], np.full(len(missed), MISSED, np.int8)])
    order = np.argsort(item)
    item, channel = item[order], channel[order]
    return item, channel, np.isin(item, real)


def draw_pool(alive: Bools, blocked: Index, num: int, *keys: int) -> tuple[Index, float]:
    """Draw random items that are alive and not blocked, evenly and without repetition.

    Returns
    -------
    tuple
        Items ascending, and the probability with which each was drawn.
    """
    free = alive.copy()
    free[blocked] = False
    items = np.flatnonzero(free)
    if len(items) <= num:
        return items, 1.0
    # Draw with repetition until enough differ: far cheaper than shuffling a large catalogue.
    drawn = rng.hash64(*keys, np.arange(4 * num)) % np.uint64(len(items))
    first = np.sort(np.unique(drawn, return_index=True)[1])[:num]
    places = drawn[first].astype(np.int64)
    if len(places) < num:
        places = np.argsort(rng.hash64(*keys, np.arange(len(items))), kind="stable")[:num]
    return np.sort(items[places]), num / len(items)
