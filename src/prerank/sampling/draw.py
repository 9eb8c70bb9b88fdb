"""Drawing distinct items for every request, in proportion to their weights, without loops.

Both ways take the first ``n`` distinct valid items of a sequence of independent draws, which is
successive sampling without replacement: one sequence per request, or one that the requests of a
batch share. *Valid* for a request is an item of its pool that it does not have already.

Shapes: ``R`` requests, ``M`` drawn items, ``H`` blocked pairs of request and item.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prerank.rng import hash64, stream, uniform
from prerank.sampling.choose import place_in_segment, smallest
from prerank.sampling.pool import ItemPool

__all__ = ["Drawn", "Targets", "draw_for_each", "draw_shared"]

Index = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_REST = stream("sampling/rest")
_ROUNDS = 6
_AT_ONCE = 1 << 22
_BITS = 20
_ODD = 0x9E3779B97F4A7C15 - (1 << 64)
_SHARED_LEAST, _SHARED_FACTOR = 64, 8


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """Items drawn for requests.

    Parameters
    ----------
    request : ndarray ``[M]`` int64
        Position of the request, ascending.
    item : ndarray ``[M]`` int64
        Item index; distinct within a request.
    chance : ndarray ``[M]`` float64
        Number drawn times the item's share of the valid weight, at most 1: with equal weights
        exactly the probability that the item is among those of its request; with unequal ones the
        expected number of times in as many independent draws, a little more than the probability.
    hits : ndarray ``[R]`` int64
        Draws thrown away because the item was not valid.
    valid : ndarray ``[R]`` int64
        Items that could be drawn.
    """

    request: Index
    item: Index
    chance: Floats
    hits: Index
    valid: Index

    @classmethod
    def nothing(cls, num_requests: int) -> Drawn:
        """Return no items for any request."""
        none, zeros = np.zeros(0, dtype=np.int64), np.zeros(num_requests, dtype=np.int64)
        return cls(none, none, np.zeros(0), zeros, zeros)


class Targets:
    """How many items each request is to get, and from which part of the pool.

    Parameters
    ----------
    pool : ItemPool
        What is drawn from.
    times : ndarray ``[R]`` int64
        Request times in ms.
    wanted : ndarray ``[R]`` int64
        Items to draw; no more than are valid will be.
    request, item : ndarray ``[H]``
        Items that a request cannot be given; each pair once.
    """

    def __init__(
        self,
        pool: ItemPool,
        times: Index,
        wanted: Index,
        request: Index,
        item: npt.NDArray[np.int_],
    ) -> None:
        self.pool = pool
        self.sizes = pool.size_at(times)
        place, num = pool.place[item], len(times)
        inside = (place >= 0) & (place < self.sizes[request])
        if not inside.all():
            request, place = request[inside], place[inside]
        self._request, self._place = request, place
        self._code = self.code(request, place)
        num_blocked = np.bincount(request, minlength=num)
        self.valid = self.sizes - num_blocked
        blocked: Floats = num_blocked.astype(np.float64)
        if pool.ends is not None:
            blocked = np.bincount(request, pool.weight(place), minlength=num).astype(np.float64)
        self.total = pool.mass(self.sizes)
        # The difference of two sums may be 0 or less by rounding; the count says what is left.
        left = np.maximum(self.total - blocked, 1e-12 * self.total)
        self.free = np.where(self.valid > 0, left, 0.0)
        self.wanted = np.minimum(wanted, self.valid)

    def code(self, request: Index, place: Index) -> Index:
        """Return one number for each pair ``[M]`` of request and place in the pool."""
        code: Index = request * self.pool.num_items + place
        return code

    def blocks(self, code: Index) -> npt.NDArray[np.bool_]:
        """Return which pairs ``[M]`` are blocked."""
        # Few are drawn, many are blocked: only the blocked ones whose last bits, spread by a
        # multiplication, are those of a drawn one are compared.
        seen = np.zeros(1 << _BITS, dtype=np.bool_)
        seen[_spread(code)] = True
        return np.isin(code, self._code[seen[_spread(self._code)]])

    def blocked_pairs(self) -> tuple[Index, Index]:
        """Return request and place in the pool of what is blocked."""
        return self._request, self._place

    def drawn(self, request: Index, place: Index, hits: Index) -> Drawn:
        """Put together what was drawn, by request."""
        order = np.argsort(request, kind="stable")
        request, place = request[order], place[order]
        share = self.pool.weight(place) / self.free[request]
        chance = np.minimum(self.wanted[request] * share, 1.0)
        return Drawn(request, self.pool.items[place], chance, hits, self.valid)


def draw_for_each(targets: Targets, keys: Index) -> Drawn:
    """Draw for every request by itself, as a function of its key ``[R]`` alone."""
    pool, num = targets.pool, len(keys)
    need, done = targets.wanted.copy(), np.zeros(num, dtype=np.int64)
    hits = np.zeros(num, dtype=np.int64)
    taken = np.zeros(0, dtype=np.int64)  # codes of pairs
    for _ in range(_ROUNDS):
        # Twice what should do, unless going through the whole pool is less work.
        block = np.ceil(2.0 * need * targets.total / np.maximum(targets.free, 1e-300)) + 4
        block = np.where((need > 0) & (block < targets.sizes), block, 0).astype(np.int64)
        if not block.any():
            break
        request = np.repeat(np.arange(num), block)
        number = place_in_segment(request, num) + done[request]
        place = pool.pick(uniform(keys[request], number), targets.sizes[request])
        code = targets.code(request, place)
        hit = targets.blocks(code)
        new = np.zeros(len(code), dtype=np.bool_)
        new[np.unique(code, return_index=True)[1]] = True
        new &= ~hit & ~np.isin(code, taken)
        looked_at = _count_before(new, block, request) < need[request]
        hits += np.bincount(request[hit & looked_at], minlength=num)
        taken = np.concatenate([taken, code[new & looked_at]])
        need = targets.wanted - np.bincount(taken // pool.num_items, minlength=num)
        done += block
    rest = np.flatnonzero(need > 0)
    while len(rest):  # few requests: those whose valid items are rare in what they are drawn from
        ends = np.cumsum(targets.sizes[rest])
        some = rest[: max(int(np.searchsorted(ends, _AT_ONCE, side="right")), 1)]
        taken = np.concatenate([taken, _from_all(targets, some, need, keys, taken)])
        rest = rest[len(some) :]
    size = max(pool.num_items, 1)
    return targets.drawn(taken // size, taken % size, hits)


def _spread(code: Index) -> npt.NDArray[np.uint64]:
    """Return ``_BITS`` well mixed bits of each code."""
    return (code * np.int64(_ODD)).view(np.uint64) >> np.uint64(64 - _BITS)


def _count_before(marked: npt.NDArray[np.bool_], lengths: Index, segment: Index) -> Index:
    """Return how many marked members of the same segment come before each member."""
    before: Index = np.cumsum(marked) - marked
    starts = np.minimum(np.cumsum(lengths) - lengths, len(marked) - 1)
    count: Index = before - before[starts][segment]
    return count


def _from_all(
    targets: Targets, some: Index, need: Index, keys: Index, taken: Index
) -> npt.NDArray[np.int64]:
    """Go on drawing for some requests by giving every valid item an exponential waiting time.

    The first of independent clocks with rates ``w`` to ring is an item with probability
    ``w / sum w``, so taking the earliest is the same successive sampling (Efraimidis and
    Spirakis, 2006).
    """
    request = np.repeat(some, targets.sizes[some])
    place = place_in_segment(request, len(need))
    code = targets.code(request, place)
    fits = ~targets.blocks(code) & ~np.isin(code, taken)
    request, place = request[fits], place[fits]
    waiting = -np.log1p(-uniform(keys[request], _REST, place)) / targets.pool.weight(place)
    chosen = smallest(waiting, request, need)
    return targets.code(request[chosen], place[chosen])


def draw_shared(targets: Targets, *keys: int) -> Drawn:
    """Give every request the first valid items of one sequence of draws.

    The sequence is a function of ``keys`` alone, so what a request gets does not depend on which
    others are in this process. A request looks at 64 draws and eight times what it wants, at most.
    """
    pool, num = targets.pool, len(targets.wanted)
    limit = np.where(targets.wanted > 0, _SHARED_FACTOR * targets.wanted + _SHARED_LEAST, 0)
    most = int(limit.max(initial=0)) if pool.num_items else 0
    size = np.full(most, pool.num_items, dtype=np.int64)
    sequence = pool.pick(uniform(hash64(*keys).view(np.int64), np.arange(most)), size)
    first = np.sort(np.unique(sequence, return_index=True)[1])  # positions of distinct items
    length = 2 * int(targets.wanted.max(initial=0)) + _SHARED_LEAST
    while True:
        at = first[:length]
        place = sequence[at]
        valid = (place < targets.sizes[:, None]) & (at < limit[:, None])
        column = np.full(pool.num_items, -1, dtype=np.int64)
        column[place] = np.arange(len(place))
        request, blocked = targets.blocked_pairs()
        met = np.flatnonzero(column[blocked] >= 0)
        valid[request[met], column[blocked[met]]] = False
        before: Index = np.cumsum(valid, axis=1) - valid
        looked_at = (before < targets.wanted[:, None]) & (at < limit[:, None])
        if length >= len(first) or (valid.sum(axis=1) >= targets.wanted).all():
            break
        length *= 2
    hits = (looked_at & ~valid).sum(axis=1).astype(np.int64)
    row, found = np.nonzero(valid & looked_at)
    assert hits.shape == (num,)
    return targets.drawn(row.astype(np.int64), place[found], hits)
