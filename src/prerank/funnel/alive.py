"""Which items can be retrieved at a moment, from the past alone.

Shapes: ``N`` items.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from prerank.funnel.exposures import Exposures
from prerank.funnel.plan import Plan
from prerank.log import Log

__all__ = ["AliveItems"]

_HOUR_MS = 3_600_000.0


class AliveItems:
    """Answers which items can be retrieved for requests that start at a row.

    Without a usable clock: items that were shown in the requests a stint was fitted on. With one:
    items whose publishing time (what ``age_of`` reads) has come; where the log has none, items
    whose last exposure before the row is at most ``lifetime`` ago.

    Parameters
    ----------
    log : Log
        Items and their publishing times.
    exposures : Exposures
        Real exposures.
    plan : Plan
        Clock and first fit.
    alive_hours : float, optional
        Lifetime; see ``FunnelConfig``.
    """

    def __init__(
        self, log: Log, exposures: Exposures, plan: Plan, alive_hours: float | None
    ) -> None:
        self.exposures = exposures
        self.clock = plan.clock
        self.num_items = log.schema.size("item")
        carriers = [f.of for f in log.schema.features if "age_of" in f.transforms]
        self.published: npt.NDArray[np.float64] | None = None
        if carriers:
            self.published = log.items.scalars[str(carriers[0])].astype(np.float64)
        self.lifetime_ms = np.inf
        if plan.clock == "global" and self.published is None:
            hours = alive_hours
            first = len(plan.stints[0].rows)
            self.lifetime_ms = hours * _HOUR_MS if hours else _usual_gap(exposures, first)
        self._of_stint = [
            np.bincount(_shown(exposures, stint.rows), minlength=self.num_items) > 0
            for stint in (plan.stints if plan.clock == "user" else ())
        ]
        self._last = np.full(self.num_items, -np.inf)
        self._row = 0

    @property
    def rule(self) -> str:
        """The rule in words, for the manifest."""
        if self.clock == "user":
            return "shown to a user the models were fitted on"
        if self.published is not None:
            return "published before the request"
        if np.isinf(self.lifetime_ms):
            return "shown before the request"
        return f"shown in the {self.lifetime_ms / _HOUR_MS:.1f} hours before the request"

    def at(self, row: int, stint: int) -> npt.NDArray[np.bool_]:
        """Return ``[N]`` bool for requests from ``row`` on; rows must not go back."""
        if self.clock == "user":
            return self._of_stint[stint]
        time = self.exposures.time[row]
        alive: npt.NDArray[np.bool_]
        if self.published is not None:
            alive = self.published <= time  # unknown: not published
        else:
            assert row >= self._row, "rows must not go back"
            low, high = self.exposures.offsets[self._row], self.exposures.offsets[row]
            times = np.repeat(
                self.exposures.time[self._row : row],
                np.diff(self.exposures.offsets[self._row : row + 1]),
            )
            self._last[self.exposures.item[low:high]] = times  # in time order: the last one stays
            self._row = row
            alive = (self._last >= time - self.lifetime_ms) & (self._last > -np.inf)
        alive[:2] = False
        return alive


def _shown(exposures: Exposures, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    chosen = np.zeros(exposures.num_requests, dtype=np.bool_)
    chosen[rows] = True
    return exposures.item[np.repeat(chosen, np.diff(exposures.offsets))]


def _usual_gap(exposures: Exposures, num_rows: int) -> float:
    """Return 99 % of the gaps (ms) between exposures of an item in the first requests."""
    stop = exposures.offsets[num_rows]
    item = exposures.item[:stop]
    time = np.repeat(exposures.time[:num_rows], np.diff(exposures.offsets[: num_rows + 1]))
    order = np.lexsort((time, item))
    gaps = np.diff(time[order])[np.diff(item[order]) == 0]
    if not len(gaps):
        return np.inf
    usual = float(np.quantile(gaps, 0.99))
    return usual if usual <= (exposures.time[-1] - exposures.time[0]) / 2 else np.inf
