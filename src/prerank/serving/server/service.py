"""What the routes of one process share: the queue, who is asked for changes, what is counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol

from prerank.serving.messages import RankAnswer, RankRequest
from prerank.serving.server.board import Meter
from prerank.serving.server.body import Intake
from prerank.serving.server.config import ServerConfig
from prerank.serving.server.gate import Facts
from prerank.serving.server.logs import AccessLog, Background, event, place_of
from prerank.serving.server.metrics import Carry
from prerank.serving.server.protocol import ReloadAnswer
from prerank.serving.server.queue import EngineQueue

__all__ = ["Answered", "Control", "Service"]

Answered = Callable[[RankRequest, RankAnswer], None]
"""Called with every answered request, off the way of its answer, in one thread."""


class Control(Protocol):
    """Who brings about what concerns all workers."""

    async def reload(self, name: str | None) -> ReloadAnswer:
        """Go over to another bundle everywhere, or raise ``Refusal`` and change nothing."""
        ...

    async def refresh(self) -> None:
        """Let every other worker take up new items."""
        ...


class Service:
    """State of one worker, used on its event loop.

    Parameters
    ----------
    engine : Engine
        Who answers.
    config : ServerConfig
    control : Control
        Who is asked for what concerns all workers.
    meter : Meter
        Where it is counted.
    answered : callable, optional
        Called with every answered request.
    access : AccessLog, optional
        Default: none.
    """

    def __init__(
        self,
        engine: Any,
        config: ServerConfig,
        control: Control,
        meter: Meter,
        *,
        answered: Answered | None = None,
        access: AccessLog | None = None,
    ) -> None:
        self.config, self.control, self.meter = config, control, meter
        self.access = access or AccessLog("")
        self.intake = Intake(config)
        self.queue = EngineQueue(engine, config, on_error=self.note)
        self.changing = asyncio.Lock()
        self.is_ready, self.reason = True, ""
        self._carry = Carry(meter)
        self._carry.restart(engine.stats())
        self._answered: Background[tuple[RankRequest, RankAnswer]] | None = None
        if answered is not None:
            hook = answered
            self._answered = Background(lambda pairs: [hook(*pair) for pair in pairs], limit=1024)
        self._hook = answered

    @property
    def engine(self) -> Any:
        """The engine that answers now."""
        return self.queue.engine

    def switch(self, engine: Any) -> None:
        """Let another engine answer; counters go on."""
        self._carry.take(self.engine.stats())
        self.queue.switch(engine)
        self._carry.restart(engine.stats())

    def count(self) -> None:
        """Bring the counters of this worker up to date."""
        self._carry.take(self.engine.stats())
        self.meter.set("queue_length", value=len(self.queue))
        for name, dropped in (("access", self.access), ("answered", self._answered)):
            if dropped is not None:
                self.meter.set("dropped_log_lines", name, value=dropped.dropped)

    def served(self, request: RankRequest, answer: RankAnswer, waited_s: float) -> None:
        """Count an answer and hand it to whoever logs it."""
        self.meter.observe("queue_seconds", value=waited_s)
        for tier, ms in enumerate(answer.timings.tiers):
            self.meter.observe("tier_seconds", str(tier), value=ms / 1e3)
        if self._answered is not None:
            self._answered.put((request, answer))

    def done(self, facts: Facts) -> None:
        """Write down a request whose response has been sent."""
        seconds = time.perf_counter() - facts.started
        meter, status = self.meter, str(facts.status)
        key = ("requests", facts.route, status)
        meter.add(*(key if meter.knows(*key) else (*key[:2], "other")))
        if facts.code:
            code = ("errors", facts.code)
            meter.add(*(code if meter.knows(*code) else ("errors", "other")))
        if facts.status == 200:
            meter.observe("request_seconds", facts.route, value=seconds)
        line: dict[str, Any] = {
            "route": facts.route,
            "status": facts.status,
            "ms": round(seconds * 1e3, 3),
        }
        for name in ("code", "requests", "candidates", "degraded", "model"):
            value = getattr(facts, name)
            if value not in (None, ""):
                line[name] = value
        self.access.put(line, facts.request_id)

    def note(self, error: Exception) -> None:
        """Say where something broke, and nothing of what was sent."""
        event("unexpected", error=type(error).__name__, at=place_of(error))

    def close(self) -> None:
        """Stop the threads; what waits in the logs is written."""
        self.queue.close()
        if self._answered is not None:
            self._answered.close()
        close = getattr(self._hook, "close", None)
        if close is not None:
            close()
        self.access.close()
