"""Runs the funnel over all requests in time order, feeding clicks back into histories.

Clicks reach histories at fixed times (every ``refresh_minutes``), as in systems whose feature store
lags behind. Between two of them no request depends on another, so a whole period is computed at
once, and blocks depend on the configuration only: whoever reads the result cannot change it.

Shapes: ``B`` requests of a block (all of one day), ``L`` history slots.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from prerank.world.clicks import ClickLog
from prerank.world.config import DAY_MS, WorldConfig
from prerank.world.draws import Draws, Ints
from prerank.world.funnel import Funnel, Outcome, sigmoid
from prerank.world.population import Items, Topics, Users
from prerank.world.retrieval import Retrieval
from prerank.world.schedule import Schedule
from prerank.world.utility import Moment, Utility

__all__ = ["BLOCK", "Block", "Simulation", "State", "Truth"]

BLOCK = 256
_WARM_DAYS = 14
_PILOT = 512
_MINUTE_MS = 60_000


@dataclass(frozen=True, slots=True)
class State:
    """What requests see: last clicks and their times ``[B, L]`` (-1: none), and their moment."""

    clicked: Ints
    times: Ints
    moment: Moment


@dataclass(frozen=True, slots=True)
class Truth:
    """All clicks, and the last one that each request can see, ``head [num_requests]`` int64."""

    clicks: ClickLog
    head: Ints


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive requests ``rows [B]``, what they saw, what the funnel did."""

    rows: Ints
    state: State
    outcome: Outcome


class Simulation:
    """The population of a world and the course of its days."""

    def __init__(self, config: WorldConfig) -> None:
        self.config = config
        topics = Topics.draw(config)
        self.items = Items.draw(config, topics)
        self.users = Users.draw(config, topics)
        self.schedule = Schedule.draw(config, self.users)
        self.utility = Utility(config, topics, self.items, self.users)
        self.retrieval = Retrieval(config, self.items)
        self.funnel = Funnel(config, self.items, self.utility, self.retrieval)

    def state(self, clicks: ClickLog, head: Ints, rows: Ints) -> State:
        """Return what requests ``rows [B]`` see whose last visible clicks are ``head [B]``."""
        length = max(self.config.max_history, self.config.match_window)
        clicked, times = clicks.history(head, length)
        return State(clicked, times, self.utility.moment(self.schedule, rows, clicked))

    def run(self, truth: Truth) -> Iterator[Block]:
        """Yield all requests in time order; ``truth`` starts as :meth:`start` and is filled."""
        config, schedule = self.config, self.schedule
        refresh = config.refresh_minutes * _MINUTE_MS
        period = schedule.time // refresh
        starts = np.flatnonzero(np.concatenate(([True], period[1:] != period[:-1])))
        pending: list[tuple[Ints, Ints, Ints]] = []
        for start, stop in zip(starts, [*starts[1:], config.num_requests], strict=True):
            pending = _deliver(truth.clicks, pending, int(period[start]) * refresh)
            for low in range(start, stop, BLOCK):
                rows = np.arange(low, min(low + BLOCK, stop))
                truth.head[rows] = truth.clicks.head(schedule.user[rows])
                state = self.state(truth.clicks, truth.head[rows], rows)
                day = int(schedule.day[low])
                outcome, _ = self.funnel.run(rows, day, state.moment, state.clicked, self.offset)
                request, slot = np.nonzero(outcome.click_time >= 0)
                user = schedule.user[rows[request]]
                pending.append(
                    (user, outcome.item[request, slot], outcome.click_time[request, slot])
                )
                yield Block(rows, state, outcome)

    def start(self) -> Truth:
        """Return the truth before the first request."""
        return Truth(self._warm_clicks(), np.full(self.config.num_requests, -1, dtype=np.int64))

    @cached_property
    def offset(self) -> float:
        """Utility at which a click has probability one half (without click noise).

        Set so that a pilot on evenly spread requests, with the clicks before the log only, has
        the configured click rate.
        """
        config, clicks = self.config, self._warm_clicks()
        pilot = np.unique(np.linspace(0, config.num_requests - 1, _PILOT).astype(np.int64))
        seen = []
        for day in np.unique(self.schedule.day[pilot]):
            rows = pilot[self.schedule.day[pilot] == day]
            state = self.state(clicks, clicks.head(self.schedule.user[rows]), rows)
            outcome, utility = self.funnel.run(rows, int(day), state.moment, state.clicked, 0.0)
            seen.append(utility[outcome.ranks["exposed"] >= 0])
        shown = np.concatenate(seen)
        low, high = float(shown.min()) - 100.0, float(shown.max()) + 100.0
        for _ in range(60):
            middle = (low + high) / 2
            too_many = sigmoid(config.beta * (shown - middle)).mean() > config.ctr
            low, high = (middle, high) if too_many else (low, middle)
        return (low + high) / 2

    def _warm_clicks(self) -> ClickLog:
        """Return the clicks of the two weeks before the log: items of topics that fit."""
        config, draws = self.config, Draws(self.config.seed)
        clicks = ClickLog(config.num_users)
        for low in range(0, config.num_users, BLOCK):
            user = np.arange(low, min(low + BLOCK, config.num_users))
            fit = self.utility.fit(user, np.zeros_like(user))
            item = self.retrieval.warm_clicks(user, fit)
            slot = np.arange(config.max_history)
            used = (slot < self.users.num_warm[user][:, None]) & (item >= 0)
            back = 1 + draws.index("warm/time", _WARM_DAYS * DAY_MS - 1, user[:, None], slot)
            owner = np.broadcast_to(user[:, None], item.shape)
            # An item younger than its click moves the click, still before the log starts.
            time = np.maximum(config.start_ms - back, self.items.published[item])
            clicks.add(owner[used], item[used], time[used])
        return clicks


def _deliver(
    clicks: ClickLog, pending: list[tuple[Ints, Ints, Ints]], until: int
) -> list[tuple[Ints, Ints, Ints]]:
    """Add the pending clicks before ``until`` (ms) to the log; return the others."""
    if not pending:
        return []
    user, item, time = (np.concatenate(column) for column in zip(*pending, strict=True))
    due = time < until
    clicks.add(user[due], item[due], time[due])
    return [(user[~due], item[~due], time[~due])]
