"""Retrieval: several channels draw candidates without ever scoring all items.

A channel draws sub-clusters, then items in them by a running sum of popularity that is made once a
day; cost per request is ``O(S + K log N)``.

Shapes: ``B`` requests of a block (all of one day), ``K`` slots, ``S`` sub-clusters, ``N`` items.
"""

from __future__ import annotations

import numpy as np

from prerank.world.config import CHANNELS, WorldConfig
from prerank.world.draws import Bools, Draws, Floats, Ints
from prerank.world.population import Items

__all__ = ["Retrieval", "first_of_each"]

_OVERSAMPLE = 2.0
_FRESH_DAYS = 2
_RECENT_CLICKS = 10


def first_of_each(item: Ints) -> Bools:
    """Mark the first occurrence of every item in each row of ``item [B, K]``; -1 is never marked.

    Examples
    --------
    >>> first_of_each(np.array([[4, 2, 4, -1]])).tolist()
    [[True, True, False, False]]
    """
    order = np.argsort(item, axis=1, kind="stable")
    ordered = np.take_along_axis(item, order, axis=1)
    new = np.ones(item.shape, dtype=bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    marked = np.empty_like(new)
    np.put_along_axis(marked, order, new & (ordered >= 0), axis=1)
    return marked


class Retrieval:
    """Draws the candidates of blocks of requests.

    Parameters
    ----------
    config : WorldConfig
        Quota, channel shares, noise.
    items : Items
        What can be drawn.
    """

    def __init__(self, config: WorldConfig, items: Items) -> None:
        self._config, self._items = config, items
        self._draws = Draws(config.seed)
        self._by_sub = np.argsort(items.sub, kind="stable")
        edges = np.searchsorted(items.sub[self._by_sub], np.arange(config.num_cells + 1))
        self._start, self._stop = edges[:-1], edges[1:]
        self._by_birth = np.argsort(items.first_day, kind="stable")
        self._births = items.first_day[self._by_birth]
        similar, popular, fresh = (
            round(share * config.num_retrieved)
            for share in (config.share_similar, config.share_popular, config.share_fresh)
        )
        rest = max(0, config.num_retrieved - similar - popular - fresh)
        self._quota = (rest, similar, popular, fresh)
        self._day: int | None = None

    def noisy_fit(self, rows: Ints, fit: Floats) -> Floats:
        """Return the topic fit that retrieval sees, ``[B, S]``."""
        config = self._config
        sub = np.arange(config.num_cells)
        noise = self._draws.normal("retrieval/noise", rows[:, None], sub)
        noisy: Floats = fit + config.noise_retrieval / config.gap * noise
        return noisy

    def retrieve(self, rows: Ints, day: int, noisy_fit: Floats, clicked: Ints) -> tuple[Ints, Ints]:
        """Return candidates and their channels, ``[B, num_retrieved]``; -1 fills short rows.

        Parameters
        ----------
        rows : ndarray ``[B]`` int64
            Request rows, the keys of the draws.
        day : int
            Day of all of them.
        noisy_fit : ndarray ``[B, S]`` float64
            From :meth:`noisy_fit`.
        clicked : ndarray ``[B, L]`` int64
            Last clicks, -1 where missing, most recent at the right.
        """
        self._prepare(day)
        interest, similar, popular, fresh = (
            int(np.ceil(_OVERSAMPLE * quota)) for quota in self._quota
        )
        weights = np.exp(self._config.retrieval_focus * noisy_fit) * (self._mass > 0)
        by_fit = self._pick_sub(rows, weights, interest)
        by_clicks = self._clicked_sub(rows, clicked, similar)
        # An item that several channels find belongs to the first one here. The user-blind ones
        # come first, or they would be left with what does not fit the user.
        found = {
            "popular": self._pick_popular(rows, popular),
            "fresh": self._pick_fresh(rows, day, fresh),
            "similar": self._pick_item("similar", rows, by_clicks),
            "interest": self._pick_item("interest", rows, by_fit),
        }
        drawn = np.concatenate(list(found.values()), axis=1)
        codes = [CHANNELS.index(name) for name in found]
        channel = np.repeat(codes, [items.shape[1] for items in found.values()])
        return self._fill(rows, drawn, channel)

    def pool(self, rows: Ints, day: int, retrieved: Ints) -> tuple[Ints, Floats]:
        """Draw ``num_pool`` items uniformly from those that can be but were not retrieved.

        Returns
        -------
        tuple
            Items ``[B, num_pool]`` (-1 fills) and the probability ``[B]`` with which each item
            that was not retrieved is among them.
        """
        num_alive = int(np.searchsorted(self._births, day, side="right"))
        num_pool = self._config.num_pool
        slots = np.arange(2 * num_pool + 2 * retrieved.shape[1])
        at = self._draws.index("pool", num_alive, rows[:, None], slots)
        everything = np.concatenate([retrieved, self._by_birth[at]], axis=1)
        new = first_of_each(everything)[:, retrieved.shape[1] :]
        chosen = new & (np.cumsum(new, axis=1) <= num_pool)
        order = np.argsort(~chosen, axis=1, kind="stable")[:, :num_pool]
        found = np.take_along_axis(chosen, order, axis=1)
        item = np.take_along_axis(everything[:, retrieved.shape[1] :], order, axis=1)
        eligible = num_alive - (retrieved >= 0).sum(axis=1)
        return np.where(found, item, -1), found.sum(axis=1) / np.maximum(eligible, 1)

    def warm_clicks(self, user: Ints, fit: Floats) -> Ints:
        """Draw the items of ``max_history`` clicks before the log, ``[B, max_history]``.

        Sub-clusters come in proportion to ``exp(2 fit)`` with ``fit [B, S]``; -1: none was found.
        """
        self._prepare(0)
        num = self._config.max_history
        keys = -1 - user  # Apart from the keys of requests, which are 0 or more.
        sub = self._pick_sub(keys, np.exp(2.0 * fit) * (self._mass > 0), num)
        return self._pick_item("interest", keys, sub)

    def _prepare(self, day: int) -> None:
        """Make the running sums of a day; blocks come in order of day, so each is made once."""
        if day == self._day:
            return
        self._day = day
        weight = self._items.popularity_on(day, self._config.popularity_drift)
        self._popular = np.cumsum(weight)
        # The square root lets personal channels reach further into the tail.
        inside = np.sqrt(weight[self._by_sub])
        self._running = np.concatenate(([0.0], np.cumsum(inside)))
        self._mass = self._running[self._stop] - self._running[self._start]

    def _pick_sub(self, rows: Ints, weights: Floats, num: int) -> Ints:
        """Draw sub-clusters ``[B, num]`` in proportion to ``weights [B, S]``."""
        edges = np.cumsum(weights, axis=1)
        share = edges / np.maximum(edges[:, -1:], 1e-300)
        request = np.arange(rows.size)
        u = self._draws.uniform("interest/sub", rows[:, None], np.arange(num))
        flat = (share + request[:, None]).ravel()
        at = np.searchsorted(flat, u + request[:, None], side="right")
        picked: Ints = np.minimum(at - request[:, None] * weights.shape[1], weights.shape[1] - 1)
        return np.where(self._mass[picked] > 0, picked, -1)

    def _clicked_sub(self, rows: Ints, clicked: Ints, num: int) -> Ints:
        """Draw sub-clusters ``[B, num]`` of recent clicks; -1 where there is no such click."""
        recent = clicked[:, -_RECENT_CLICKS:]
        slot = self._draws.index("similar/sub", recent.shape[1], rows[:, None], np.arange(num))
        item = np.take_along_axis(recent, slot, axis=1)
        return np.where(item >= 0, self._items.sub[item], -1)

    def _pick_item(self, name: str, rows: Ints, sub: Ints) -> Ints:
        """Draw an item in each of the sub-clusters ``[B, K]``, by the root of its popularity."""
        u = self._draws.uniform(f"{name}/item", rows[:, None], np.arange(sub.shape[1]))
        low = self._running[self._start[sub]]
        at = np.searchsorted(self._running, low + u * self._mass[sub], side="right") - 1
        at = np.clip(at, self._start[sub], np.maximum(self._stop[sub] - 1, self._start[sub]))
        item = self._by_sub[np.minimum(at, self._by_sub.size - 1)]
        fits = (sub >= 0) & (self._mass[sub] > 0) & self._items.alive(self._day or 0)[item]
        return np.where(fits, item, -1)

    def _pick_popular(self, rows: Ints, num: int) -> Ints:
        u = self._draws.uniform("popular/item", rows[:, None], np.arange(num))
        at = np.searchsorted(self._popular, u * self._popular[-1], side="right")
        item: Ints = np.minimum(at, self._popular.size - 1)
        return item

    def _pick_fresh(self, rows: Ints, day: int, num: int) -> Ints:
        low, high = np.searchsorted(self._births, [day - _FRESH_DAYS + 1, day + 1])
        if low == high:
            return np.full((rows.size, num), -1, dtype=np.int64)
        at = self._draws.index("fresh/item", int(high - low), rows[:, None], np.arange(num))
        item: Ints = self._by_birth[low + at]
        return item

    def _fill(self, rows: Ints, drawn: Ints, channel: Ints) -> tuple[Ints, Ints]:
        """Keep each channel's quota of distinct items, then top up from all that is left."""
        new = first_of_each(drawn)
        choice = np.full(drawn.shape, 2, dtype=np.int64)
        for code, quota in enumerate(self._quota):
            own = channel == code
            count = np.cumsum(new[:, own], axis=1)
            choice[:, own] = np.where(new[:, own], np.where(count <= quota, 0, 1), 2)
        order = np.argsort(choice, axis=1, kind="stable")[:, : self._config.num_retrieved]
        item = np.take_along_axis(drawn, order, axis=1)
        kept = np.take_along_axis(choice, order, axis=1) < 2
        item = np.where(kept, item, -1)
        # A random order of candidates, so that neither ties nor position tell the channel.
        key = self._draws.uniform("retrieval/order", rows[:, None], item)
        shuffle = np.argsort(np.where(kept, key, 2.0), axis=1, kind="stable")
        codes = np.where(kept, channel[order], -1)
        return (
            np.take_along_axis(item, shuffle, axis=1),
            np.take_along_axis(codes, shuffle, axis=1),
        )
