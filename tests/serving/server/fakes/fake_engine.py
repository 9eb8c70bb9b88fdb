"""An engine without models: its bundle is a folder with ``fake.json`` that says how it behaves."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from prerank.errors import CheckFailedError, InputError
from prerank.serving.errors import BadRequestError, HistoryRequiredError, UnknownFeatureError
from prerank.serving.messages import RankAnswer, RankRequest, Timings
from prerank.serving.server.config import ServerConfig


class FakeStats(msgspec.Struct):
    """The counters that metrics read."""

    requests: int = 0
    degraded: int = 0
    candidates: int = 0
    unknown: int = 0
    scored: list[int] = msgspec.field(default_factory=lambda: [0, 0])
    cache_hits: int = 0
    cache_misses: int = 0
    cache_evictions: int = 0
    cache_entries: int = 0
    cache_bytes: int = 0
    items: int = 0


class FakeEngine:
    """Orders candidates by id, the largest first; ids below 0 are unknown."""

    def __init__(self, bundle: Path, config: ServerConfig) -> None:
        self.path, self.config = bundle, config
        try:
            self.facts: dict[str, Any] = json.loads((bundle / "fake.json").read_text())
        except (OSError, ValueError):
            raise InputError(f"{bundle.name}/fake.json: no bundle; export it again") from None
        time.sleep(self.facts.get("open_s", 0.0))
        if self.facts.get("fails"):
            raise CheckFailedError(f"{bundle.name}: the self-test failed")
        if self.facts.get("breaks"):
            raise ZeroDivisionError("secret")
        # So that a test sees whether engines that were replaced are freed.
        self.ballast = bytearray(self.facts.get("ballast", 0))
        self.counted = FakeStats()
        self._lock = threading.Lock()
        self.items: set[Any] = set()
        self.num_segments = 0
        self.refresh()

    @property
    def version(self) -> str:
        return self.facts["version"] + (f"+{self.num_segments}" if self.num_segments else "")

    def rank(self, request: RankRequest, *, started: float | None = None) -> RankAnswer:
        (answer,) = self.rank_many([request], started=None if started is None else [started])
        if isinstance(answer, Exception):
            raise answer
        return answer

    def rank_many(self, requests: Any, *, started: Any = None) -> list[Any]:
        began = time.perf_counter()
        starts = started or [began] * len(requests)
        time.sleep(self.facts.get("ms", 0.0) * len(requests) / 1e3)
        return [self._one(r, s, began) for r, s in zip(requests, starts, strict=True)]

    def _one(self, request: RankRequest, started: float, began: float) -> Any:
        features = request.user.features
        if "unknown" in features:
            return UnknownFeatureError("user.features: no feature 'unknown'; known: age")
        if features.get("age") == "old":
            return BadRequestError("user.features.age: 'old' is str, not a number")
        if features.get("age") == "bomb":
            raise ZeroDivisionError("secret")
        if list(request.history) == ["version"]:
            return HistoryRequiredError("history: version is not held here; send the events")
        ids: Any = request.candidates.ids
        if isinstance(ids, bytes):
            ids = [
                int.from_bytes(ids[k : k + 8], "little", signed=True) for k in range(0, len(ids), 8)
            ]
        unknown = [i for i in ids if isinstance(i, int) and i < 0 and i not in self.items]
        known = sorted((i for i in ids if i not in unknown), key=lambda i: (str(type(i)), i))[::-1]
        degraded = request.budget_ms is not None and (
            (time.perf_counter() - started) * 1e3 > request.budget_ms
        )
        with self._lock:
            counted = self.counted
            counted.requests += 1
            counted.degraded += degraded
            counted.candidates += len(ids)
            counted.unknown += len(unknown)
            counted.scored[0] += len(known)
            counted.scored[1] += len(known) // 2
        order = (known + unknown)[: request.k]
        took = (time.perf_counter() - began) * 1e3
        return RankAnswer(
            model=self.version,
            request_id=request.request_id,
            ids=order,
            tier=[-1 if i in unknown else 1 for i in order],
            degraded=degraded,
            done="light order" if degraded else None,
            unknown=unknown,
            history_version="v1",
            timings=Timings(took, 0.0, 0.0, [took]),
        )

    def stats(self) -> FakeStats:
        return self.counted

    def describe(self) -> dict[str, Any]:
        return {"version": self.version, "tiers": []}

    def add_items(self, items: Any = (), *, removed: Any = (), stats: Any = ()) -> str:
        for _, features in items:
            if "unknown" in features:
                raise UnknownFeatureError("items: no feature 'unknown'; known: price")
        folder = self.path / "segments"
        folder.mkdir(exist_ok=True)
        number = len(list(folder.iterdir())) + 1
        (folder / f"{number}.json").write_text(json.dumps([i for i, _ in items]))
        self.refresh()
        return self.version

    def refresh(self) -> bool:
        found = sorted((self.path / "segments").glob("*.json"))
        for path in found:
            self.items.update(json.loads(path.read_text()))
        changed = len(found) != self.num_segments
        self.num_segments = len(found)
        return changed


def open_fake(bundle: Path, config: ServerConfig) -> FakeEngine:
    return FakeEngine(bundle, config)


class Hook:
    """Writes the model of every answered request to a file."""

    def __init__(self, worker: int, options: dict[str, Any]) -> None:
        self.file = Path(options["file"]).open("a")  # noqa: SIM115
        self.worker = worker

    def __call__(self, request: RankRequest, answer: RankAnswer) -> None:
        self.file.write(json.dumps([self.worker, request.request_id, answer.ids]) + "\n")

    def close(self) -> None:
        self.file.close()
