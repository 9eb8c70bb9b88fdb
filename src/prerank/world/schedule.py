"""When requests happen, by whom, on which device: one row per request, in time order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prerank.world.config import DAY_MS, WorldConfig
from prerank.world.draws import Draws, Floats, Ints
from prerank.world.population import Users

__all__ = ["Schedule"]

_OWN_DEVICE = 0.8


@dataclass(frozen=True, slots=True)
class Schedule:
    """Requests in time order, every field ``[num_requests]``.

    Parameters
    ----------
    user, device, day : ndarray of int64
        Indices from 0.
    time : ndarray of int64
        Milliseconds since the epoch.
    """

    user: Ints
    device: Ints
    day: Ints
    time: Ints

    @classmethod
    def draw(cls, config: WorldConfig, users: Users) -> Schedule:
        """Draw the requests of a world."""
        draws = Draws(config.seed)
        row = np.arange(config.num_requests)
        day = row * config.num_days // config.num_requests
        hour = draws.weighted("request/hour", _hour_weights(), row)
        within = draws.index("request/ms", DAY_MS // 24, row)
        time = config.start_ms + day * DAY_MS + hour * (DAY_MS // 24) + within
        time = np.sort(time, kind="stable")
        user = draws.weighted("request/user", users.activity, row)
        other = draws.index("request/device", config.num_devices, row)
        at_home = draws.uniform("request/own_device", row) < _OWN_DEVICE
        return cls(user, np.where(at_home, users.device[user], other), day, time)

    @property
    def hour(self) -> Ints:
        """Hour of the day (UTC)."""
        return self.time % DAY_MS // (DAY_MS // 24)

    def rows_of(self, first_day: int, last_day: int) -> Ints:
        """Return the rows of the days from ``first_day`` up to, not including, ``last_day``."""
        start, stop = np.searchsorted(self.day, [first_day, last_day])
        return np.arange(start, stop)


def _hour_weights() -> Floats:
    """Return the load of each hour: a quiet night, an evening peak."""
    hour = np.arange(24)
    load: Floats = 1.0 + 0.8 * np.cos(2 * np.pi * (hour - 20) / 24)
    return load
