"""A bounded queue before one engine thread.

What waits is handed over in the order of arrival, together where requests are small. The rule for
what may wait, said to clients in ``docs/serving-http.md``:

1. With ``max_queue`` requests waiting there is no room: 503 at once.
2. A request's patience is ``patience`` times its own budget, at least ``min_wait_ms`` and at most
   ``max_wait_ms``; without a budget it is ``max_wait_ms``. If the requests before it are expected
   to take longer than that, 503 at once.
3. One whose budget runs out while it waits is answered with the light order, marked degraded
   (the engine does that); one whose patience runs out gets a 503 and costs no computing.
4. One whose client has gone is dropped.

``Retry-After`` is what the queue takes to empty at the pace of the last requests.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from prerank.serving.messages import RankAnswer, RankRequest
from prerank.serving.server.config import ServerConfig
from prerank.serving.server.protocol import Refusal

__all__ = ["EngineQueue", "Ranker", "Ticket"]

_SMOOTHING = 0.1
_LEAST_RETRY_S = 0.05


class Ranker(Protocol):
    """What the queue needs of an engine."""

    version: str

    def rank(self, request: RankRequest, *, started: float | None = None) -> RankAnswer:
        """Rank one request."""
        ...

    def rank_many(
        self, requests: Sequence[RankRequest], *, started: Sequence[float] | None = None
    ) -> list[RankAnswer | Exception]:
        """Rank several."""
        ...


class Ticket:
    """A request that waits; ``future`` gets its answer or the reason why there is none."""

    __slots__ = ("future", "is_dropped", "patience_s", "request", "size", "started", "taken")

    def __init__(
        self,
        request: RankRequest,
        started: float,
        patience_s: float,
        future: asyncio.Future[RankAnswer],
    ) -> None:
        ids = request.candidates.ids
        self.request, self.started, self.patience_s = request, started, patience_s
        self.size = len(ids) // 8 if isinstance(ids, bytes) else len(ids)
        self.future = future
        self.is_dropped = False
        self.taken = started

    def drop(self) -> None:
        """Nobody waits for the answer any more."""
        self.is_dropped = True
        self.future.cancel()


class EngineQueue:
    """Requests of an event loop to an engine in a thread.

    Parameters
    ----------
    engine : Ranker
        Who answers.
    config : ServerConfig
        Limits.
    on_error : callable, optional
        Called in the engine's thread with every error that no request should cause.
    """

    def __init__(
        self,
        engine: Ranker,
        config: ServerConfig,
        on_error: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        self.engine, self.config = engine, config
        self._on_error = on_error
        self._waiting: deque[Ticket] = deque()
        self._wake = threading.Condition()
        self._stop = False
        self._running = 0
        # Seconds that one request takes the engine; 0 until the first was answered.
        self.pace_s = 0.0
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits or is being ranked."""
        return not self._waiting and not self._running

    def submit(self, requests: Sequence[RankRequest], started: float) -> list[Ticket]:
        """Put requests that came together into the queue: all or none of them.

        Parameters
        ----------
        requests : sequence of RankRequest
        started : float
            When they came, on ``time.perf_counter``.

        Raises
        ------
        Refusal
            503, by the rule above.
        """
        room = self.config.max_queue - len(self._waiting)
        if len(requests) > room and (self._waiting or self._running or len(requests) == 1):
            raise self._refuse("the queue is full")
        now = time.perf_counter()
        tickets = []
        for before, request in enumerate(requests):
            patience = self._patience(request)
            expected = (len(self._waiting) + before) * self.pace_s
            if len(self._waiting) and now - started + expected > patience:
                raise self._refuse("the queue is longer than the request can wait")
            tickets.append(Ticket(request, started, patience, self._loop.create_future()))
        with self._wake:
            self._waiting.extend(tickets)
            self._wake.notify()
        return tickets

    def switch(self, engine: Ranker) -> Ranker:
        """Let another engine answer from the next hand-over on; return the one before."""
        with self._wake:
            before, self.engine = self.engine, engine
        return before

    def close(self, timeout_s: float = 5.0) -> None:
        """Stop the thread; what waits is refused."""
        with self._wake:
            self._stop = True
            self._wake.notify()
        self._thread.join(timeout_s)

    def retry_after_s(self) -> float:
        """Return when the queue will be empty at the present pace."""
        return max(_LEAST_RETRY_S, (len(self._waiting) + self._running) * self.pace_s)

    def _patience(self, request: RankRequest) -> float:
        most = self.config.max_wait_ms
        if request.budget_ms is None:
            return most / 1e3
        wanted = max(self.config.patience * request.budget_ms, self.config.min_wait_ms)
        return min(most, wanted) / 1e3

    def _refuse(self, why: str) -> Refusal:
        return Refusal(503, "overloaded", why, retry_after_s=self.retry_after_s())

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._waiting and not self._stop:
                    self._wake.wait()
                batch, late = self._take()
                engine, stop = self.engine, self._stop
                self._running = len(batch)
            began = time.perf_counter()
            found = [] if stop else self._rank(engine, batch)
            if batch and not stop:
                each = (time.perf_counter() - began) / len(batch)
                self.pace_s += (each - self.pace_s) * (_SMOOTHING if self.pace_s else 1.0)
            refusals = [self._refuse("the request waited too long") for _ in late]
            if stop:
                found = [self._refuse("the server is stopping") for _ in batch]
            self._running = 0
            pairs = [*zip(batch, found, strict=True), *zip(late, refusals, strict=True)]
            # The loop may be closed while a process ends.
            if pairs and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(_deliver, pairs)
            # An idle thread must not keep an engine, or requests, alive.
            del engine, batch, late, found, refusals, pairs
            if stop and not self._waiting:
                return

    def _take(self) -> tuple[list[Ticket], list[Ticket]]:
        """Return what is ranked next and what waited too long; call with the lock held."""
        batch: list[Ticket] = []
        late: list[Ticket] = []
        now, size = time.perf_counter(), 0
        while self._waiting and len(batch) < self.config.coalesce_requests:
            ticket = self._waiting[0]
            if ticket.is_dropped:
                self._waiting.popleft()
            elif now - ticket.started > ticket.patience_s:
                late.append(self._waiting.popleft())
            elif batch and size + ticket.size > self.config.coalesce:
                break
            else:
                ticket.taken = now
                batch.append(self._waiting.popleft())
                size += ticket.size
        return batch, late

    def _rank(self, engine: Ranker, batch: list[Ticket]) -> list[RankAnswer | Exception]:
        if not batch:
            return []
        try:
            return engine.rank_many(
                [ticket.request for ticket in batch], started=[ticket.started for ticket in batch]
            )
        except Exception as error:
            self._on_error(error)
        # One request must not spoil those beside it.
        return [self._rank_alone(engine, ticket) for ticket in batch]

    def _rank_alone(self, engine: Ranker, ticket: Ticket) -> RankAnswer | Exception:
        try:
            return engine.rank(ticket.request, started=ticket.started)
        except Exception as error:
            return error


def _deliver(pairs: Sequence[tuple[Ticket, RankAnswer | Exception]]) -> None:
    for ticket, found in pairs:
        if ticket.future.done():
            continue
        if isinstance(found, Exception):
            ticket.future.set_exception(found)
        else:
            ticket.future.set_result(found)
