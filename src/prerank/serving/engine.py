"""The engine: raw requests to orders, in process and in the server alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from prerank.config import Config as BaseConfig
from prerank.serving.messages import Id, RankAnswer, RankRequest, Value

__all__ = ["Engine", "SelfTest", "Stats"]


class SelfTest(msgspec.Struct, frozen=True):
    """What the self-test found.

    Parameters
    ----------
    ok : bool
        Whether every bound was kept.
    num_requests : int
        Requests compared.
    max_difference : float
        Largest difference of a logit from the stored one, over ``1 + |stored|``, all tiers.
    bound : float
        What it may be.
    agreement : float
        Share of the stored first places that the engine gives too.
    message : str
        One line; empty if ok.
    """

    ok: bool
    num_requests: int
    max_difference: float
    bound: float
    agreement: float
    message: str = ""


class Stats(msgspec.Struct, frozen=True):
    """Counters since the engine was opened, for metrics.

    Parameters
    ----------
    requests, degraded, candidates, unknown : int
        Requests answered, those of them degraded; candidates and unknown ones in them.
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


class Engine:
    """Answers requests from one bundle; safe to call from several threads.

    ``Engine.open(bundle, config)`` makes one; the constructor is private to it.
    """

    class Config(BaseConfig, frozen=True):
        """How an engine runs.

        Parameters
        ----------
        dtype : {"auto", "fp32", "bf16"}
            What the tiers score in. ``bf16`` is taken if the self-test keeps ``min_agreement``,
            ``auto`` only where the processor is fast at it too; else fp32.
        min_agreement : float
            Least share of first places that bf16 must have in common with fp32.
        unknown : {"features", "last", "drop"}
            Unknown items: scored from the features sent with them (without any: last), placed
            last, or left out.
        max_candidates, max_events : int
            Per request, and per stream of a request.
        micro_batch : int
            Candidates scored at once; bounds memory and keeps activations in the caches.
        coalesce : int
            Most candidates that requests of ``rank_many`` share one forward for.
        cache_bytes : int
            Of cached request states; 0 for no cache.
        cache_ttl_s : float
            How far the time of a request may be from that of the state it reuses (ages of events
            are part of a state), and how long a state is held.
        margin : float
            Share of a budget kept back for answering.
        """

        dtype: Literal["auto", "fp32", "bf16"] = "auto"
        min_agreement: float = 0.98
        unknown: Literal["features", "last", "drop"] = "features"
        max_candidates: int = 20_000
        max_events: int = 10_000
        micro_batch: int = 1024
        coalesce: int = 16_384
        cache_bytes: int = 256 << 20
        cache_ttl_s: float = 60.0
        margin: float = 0.1

    version: str
    """Name of what answers: digest of the bundle, ``+N`` after N segments of items."""

    @classmethod
    def open(
        cls,
        bundle: str | Path,
        config: Config | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
        check: bool = True,
    ) -> Engine:
        """Open a bundle.

        Parameters
        ----------
        bundle : path
            Folder that ``export`` wrote.
        config : Engine.Config, optional
            How to run.
        clock : callable
            Seconds; for deadlines and timings.
        check : bool
            Compare the digest of every file, and run the self-test.

        Raises
        ------
        InputError
            Truncated, foreign, altered or of another version: one line that names the file.
        CheckFailedError
            The self-test failed.
        """
        raise NotImplementedError

    def rank(self, request: RankRequest, *, started: float | None = None) -> RankAnswer:
        """Order the candidates of a request.

        Parameters
        ----------
        request : RankRequest
            Raw values.
        started : float, optional
            When the request came, on the engine's clock; its budget counts from there.

        Raises
        ------
        BadRequestError, UnknownFeatureError, HistoryRequiredError
            See :mod:`prerank.serving.errors`.
        """
        raise NotImplementedError

    def rank_many(
        self, requests: Sequence[RankRequest], *, started: Sequence[float] | None = None
    ) -> list[RankAnswer | Exception]:
        """Order several requests with shared forwards; the error of one stands in its place."""
        raise NotImplementedError

    def self_test(self) -> SelfTest:
        """Rank the requests stored in the bundle and compare with what is stored."""
        raise NotImplementedError

    def stats(self) -> Stats:
        """Return the counters."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Return what answers, for ``/v1/model``: version, tiers, features, limits."""
        raise NotImplementedError

    def add_items(
        self,
        items: Sequence[tuple[Id, Mapping[str, Value]]] = (),
        *,
        removed: Sequence[Id] = (),
        stats: Sequence[tuple[Id, int, Mapping[str, float | None]]] = (),
    ) -> str:
        """Add, replace and remove items, on disk and here; return the new version.

        Parameters
        ----------
        items : sequence of (id, features)
            Raw item features; an id that is known gets these instead of its own.
        removed : sequence of id
            Candidates no more.
        stats : sequence of (id, valid_from_ms, values)
            Item statistics from a moment on.

        Raises
        ------
        BadRequestError, UnknownFeatureError
            Values that do not fit; nothing is written.
        """
        raise NotImplementedError

    def refresh(self) -> bool:
        """Take up segments that another process has written; say whether there were any."""
        raise NotImplementedError
