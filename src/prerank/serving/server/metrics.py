"""What ``/metrics`` says, in Prometheus' text format, added up over workers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from prerank.serving.server.board import BOUNDS_S, Board, Key, Meter, histogram_keys, make_layout

if TYPE_CHECKING:
    from prerank.serving.stats import Stats

__all__ = ["LAYOUT", "ROUTES", "Carry", "clear", "make_board", "make_meter", "render"]

_GETS = ("model", "metrics", "healthz", "readyz", "openapi")
ROUTES = ("rank", "batch", "items", "reload", *_GETS, "other")
_REFUSED = ("400", "401", "403", "404", "405", "408", "409", "413", "415", "422")
_STATUSES = ("200", *_REFUSED, "499", "503", "other")
_BODIES = ("malformed", "too_large", "unsupported_media_type", "compressed", "timeout")
_VALUES = ("bad_request", "unknown_feature", "history_required", "bundle_refused")
_CODES = (*_BODIES, *_VALUES, "overloaded", "unauthorized", "internal", "other")
_TIERS = tuple(map(str, range(8)))

_COUNTERS: dict[str, tuple[str, tuple[str, ...], Sequence[Key]]] = {
    "requests": (
        "Responses by route and status (499: the client left first).",
        ("route", "status"),
        [(route, status) for route in ROUTES for status in _STATUSES],
    ),
    "errors": ("Refused requests by reason.", ("code",), [(code,) for code in _CODES]),
    "ranked": ("Requests that the engine answered.", (), [()]),
    "degraded": ("Answers with less computed than the cascade asks for.", (), [()]),
    "candidates": ("Candidates of answered requests.", (), [()]),
    "unknown_candidates": ("Of these, those that the bundle does not know.", (), [()]),
    "scored": ("Candidates scored by each tier.", ("tier",), [(tier,) for tier in _TIERS]),
    "cache_hits": ("Request states found in the cache.", (), [()]),
    "cache_misses": ("Request states that were computed.", (), [()]),
    "cache_evictions": ("Request states pushed out.", (), [()]),
    "dropped_log_lines": (
        "Lines that a log could not take in time.",
        ("log",),
        [("access",), ("answered",)],
    ),
    "worker_restarts": ("Workers that were replaced.", (), [()]),
    "reloads": ("Reloads by result.", ("result",), [("done",), ("rolled_back",)]),
}
_GAUGES = {
    "queue_length": "Requests waiting for an engine.",
    "cache_entries": "Request states held.",
    "cache_bytes": "Their bytes.",
    "connections": "Open connections.",
    "workers_ready": "Workers that answer.",
    "generation": "Number of the active generation.",
    "items": "Rows of the catalogue.",
}
# Of these each worker says the same.
_SAME = ("generation", "items")
_HISTOGRAMS: dict[str, tuple[str, Sequence[Key], tuple[str, ...]]] = {
    "request_seconds": (
        "From a request's headers to its response.",
        [("rank",), ("batch",)],
        ("route",),
    ),
    "queue_seconds": ("Waiting for the engine.", [()], ()),
    "tier_seconds": ("Scoring of one batch by each tier.", [(t,) for t in _TIERS], ("tier",)),
}
LAYOUT = make_layout(
    [
        *((name, *labels) for name, (_, _, keys) in _COUNTERS.items() for labels in keys),
        *((name,) for name in _GAUGES),
    ],
    [(name, *labels) for name, (_, keys, _) in _HISTOGRAMS.items() for labels in keys],
)
"""Place of every number in a row."""


def make_board(num_workers: int) -> Board:
    """Return a board with a row per worker and one for who looks after them."""
    return Board(num_workers + 1, len(LAYOUT))


def make_meter(board: Board, row: int) -> Meter:
    """Return what writes a worker's row."""
    return Meter(board, LAYOUT, row)


def clear(meter: Meter) -> None:
    """Say that nothing is there any more where a worker was; what it counted stays."""
    for name in _GAUGES:
        meter.set(name, value=0)


class Carry:
    """Turns the counters of engines that come and go into ones that only grow.

    Parameters
    ----------
    meter : Meter
        Where they go.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._seen: dict[Key, float] = {}

    def restart(self, stats: Stats) -> None:
        """Begin with another engine; what it counted so far (its self-test) is left out."""
        self._seen = self._counts(stats)

    def take(self, stats: Stats) -> None:
        """Add what an engine counted since the last time."""
        found = self._counts(stats)
        for key, value in found.items():
            more = value - self._seen.get(key, 0)
            if more > 0:
                self._meter.add(*key, amount=more)
        self._seen = found
        for name in ("cache_entries", "cache_bytes", "items"):
            self._meter.set(name, value=getattr(stats, name))

    def _counts(self, stats: Stats) -> dict[Key, float]:
        found: dict[Key, float] = {
            ("ranked",): stats.requests,
            ("degraded",): stats.degraded,
            ("candidates",): stats.candidates,
            ("unknown_candidates",): stats.unknown,
            ("cache_hits",): stats.cache_hits,
            ("cache_misses",): stats.cache_misses,
            ("cache_evictions",): stats.cache_evictions,
        }
        return found | {("scored", str(k)): num for k, num in enumerate(stats.scored)}


class _Rows(Collector):
    def __init__(self, board: Board, model: str) -> None:
        self._board, self._model = board, model

    def collect(self) -> Iterator[Metric]:
        board = self._board
        for name, (text, labels, keys) in _COUNTERS.items():
            family = CounterMetricFamily(f"prerank_{name}", text, labels=labels)
            for key in keys:
                value = board.total(LAYOUT[name, *key])
                if value or not labels:
                    family.add_metric(key, value)
            yield family
        for name, text in _GAUGES.items():
            places = [board.get(row, LAYOUT[(name,)]) for row in range(board.num_rows)]
            value = max(places) if name in _SAME else sum(places)
            yield GaugeMetricFamily(f"prerank_{name}", text, value=value)
        for name, (text, keys, labels) in _HISTOGRAMS.items():
            histogram = HistogramMetricFamily(f"prerank_{name}", text, labels=labels)
            for key in keys:
                self._add_histogram(histogram, (name, *key), key)
            yield histogram
        yield self._forwarded()
        info = {"model": self._model}
        yield InfoMetricFamily("prerank_model", "What the worker that was asked serves.", info)
        yield GaugeMetricFamily(
            "prerank_worker_resident_bytes", "Memory of the worker that was asked.", _resident()
        )

    def _add_histogram(self, family: HistogramMetricFamily, name: Key, labels: Key) -> None:
        *counts, total = [self._board.total(LAYOUT[key]) for key in histogram_keys(name)]
        if not sum(counts):
            return
        buckets, seen = [], 0.0
        for bound, count in zip(BOUNDS_S, counts, strict=True):
            seen += count
            buckets.append((str(bound) if bound != float("inf") else "+Inf", seen))
        family.add_metric(labels, buckets=buckets, sum_value=total)

    def _forwarded(self) -> Metric:
        family = GaugeMetricFamily(
            "prerank_forwarded_share",
            "Share of all candidates that each tier after the first scored, since the start.",
            labels=("tier",),
        )
        scored = [self._board.total(LAYOUT["scored", tier]) for tier in _TIERS]
        for tier, num in zip(_TIERS[1:], scored[1:], strict=True):
            if num and scored[0]:
                family.add_metric((tier,), num / scored[0])
        return family


def _resident() -> float:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0.0
    return float(pages * os.sysconf("SC_PAGE_SIZE"))


def render(board: Board, model: str) -> tuple[bytes, str]:
    """Return the text for a scraper and its content type."""
    registry = CollectorRegistry()
    registry.register(_Rows(board, model))
    return generate_latest(registry), CONTENT_TYPE_LATEST
