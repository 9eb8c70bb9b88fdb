"""How an engine runs."""

from __future__ import annotations

from typing import Literal

from prerank.config import Config
from prerank.errors import InputError

__all__ = ["EngineConfig", "Policy"]

Policy = Literal["features", "last", "drop"]
"""What becomes of unknown items."""


class EngineConfig(Config, frozen=True):
    """How an engine runs.

    Parameters
    ----------
    dtype : {"auto", "fp32", "bf16"}
        What the tiers score in. ``bf16`` is taken if the self-test keeps ``min_agreement``,
        ``auto`` only where the processor is fast at it too; else fp32.
    min_agreement : float
        Least share of first places that bf16 must have in common with what is stored.
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
    unknown: Policy = "features"
    max_candidates: int = 20_000
    max_events: int = 10_000
    micro_batch: int = 4096
    coalesce: int = 16_384
    cache_bytes: int = 256 << 20
    cache_ttl_s: float = 60.0
    margin: float = 0.1

    def __post_init__(self) -> None:
        for name in ("max_candidates", "max_events", "micro_batch", "coalesce"):
            if getattr(self, name) < 1:
                raise InputError(f"engine: {name} is {getattr(self, name)}; expected 1 or more")
        for name in ("cache_bytes", "cache_ttl_s"):
            if getattr(self, name) < 0:
                raise InputError(f"engine: {name} is {getattr(self, name)}; expected 0 or more")
        for name in ("margin", "min_agreement"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"engine: {name} is {getattr(self, name)}; expected 0 to 1")
