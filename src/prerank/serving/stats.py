"""Counters of an engine."""

from __future__ import annotations

import threading

import msgspec

from prerank.serving.cache import StateCache
from prerank.serving.scoring import HeldStates

__all__ = ["Counters", "Stats"]


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since the engine was opened, for metrics.

    Parameters
    ----------
    requests, errors, degraded, candidates, unknown : int
        Requests answered, refused, and answered degraded; candidates scored, unknown ones sent.
    scored : list of int
        Candidates scored by each tier.
    tier_ms : list of float
        Total time of each tier.
    cache_hits, cache_misses, cache_entries, cache_bytes, cache_evictions : int
        Of the request states.
    us_per_candidate : list of float
        Present estimate of each tier's cost, for deadlines.
    dtype : str
        What the tiers compute in: ``fp32`` or ``bf16``.
    dtype_reason : str
        Why that.
    items, items_added, items_removed : int
        Catalogue rows; those of segments; tombstones.
    """

    requests: int
    errors: int
    degraded: int
    candidates: int
    unknown: int
    scored: list[int]
    tier_ms: list[float]
    cache_hits: int
    cache_misses: int
    cache_entries: int
    cache_bytes: int
    cache_evictions: int
    us_per_candidate: list[float]
    dtype: str
    dtype_reason: str
    items: int
    items_added: int
    items_removed: int


class Counters:
    """Sums over batches; safe for several threads.

    Examples
    --------
    >>> counters = Counters(2)
    >>> counters.shares()
    [1.0, 0.5]
    """

    def __init__(self, num_tiers: int) -> None:
        self._lock = threading.Lock()
        self.requests = self.errors = self.degraded = self.candidates = self.unknown = 0
        self.scored = [0] * num_tiers
        self.tier_ms = [0.0] * num_tiers

    def count(self, *, group_size: int, held: HeldStates, unknown: int) -> None:
        """Take in one batch."""
        with self._lock:
            self.requests += group_size
            self.degraded += group_size if held.cut else 0
            self.candidates += len(held.side.kept)
            self.unknown += unknown
            for k, (candidates, _) in held.scored.items():
                self.scored[k] += candidates.numel()
                self.tier_ms[k] += 1e3 * held.seconds[k]

    def count_errors(self, num: int) -> None:
        """Take in requests that were refused."""
        with self._lock:
            self.errors += num

    def shares(self) -> list[float]:
        """Return the share of candidates that each tier scored so far; a half before any."""
        with self._lock:
            first = max(1, self.scored[0])
            later = [(n / first if self.scored[0] else 0.5) for n in self.scored[1:]]
        return [1.0, *later]

    def stats(
        self,
        cache: StateCache,
        us_per_candidate: list[float],
        dtype: tuple[str, str],
        items: tuple[int, int, int],
    ) -> Stats:
        """Return all numbers."""
        with self._lock:
            return Stats(
                requests=self.requests,
                errors=self.errors,
                degraded=self.degraded,
                candidates=self.candidates,
                unknown=self.unknown,
                scored=list(self.scored),
                tier_ms=list(self.tier_ms),
                cache_hits=cache.hits,
                cache_misses=cache.misses,
                cache_entries=len(cache),
                cache_bytes=cache.nbytes,
                cache_evictions=cache.evictions,
                us_per_candidate=us_per_candidate,
                dtype=dtype[0],
                dtype_reason=dtype[1],
                items=items[0],
                items_added=items[1],
                items_removed=items[2],
            )
