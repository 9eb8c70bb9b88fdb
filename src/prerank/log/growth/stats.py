"""Counting item statistics: impressions and engagement of the past only, per window."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from prerank import expression
from prerank.errors import InputError
from prerank.log.format.columns import CANDIDATES, Columns
from prerank.log.format.files import ITEM_STATS
from prerank.log.growth.revise import revise
from prerank.log.inputs.evidence import label_columns
from prerank.schema import ITEM_STATS_FEATURE, Feature, Schema

__all__ = ["StatsReport", "compute_stats", "parse_window"]

_KINDS: dict[str, Any] = {"item": np.int32, "valid_from_ms": np.int64}
_UNITS = {"h": 3_600_000, "d": 86_400_000}


def parse_window(text: str) -> int:
    """Return the milliseconds of a window such as ``7d`` or ``12h``.

    Examples
    --------
    >>> parse_window("7d")
    604800000
    """
    match = re.fullmatch(r"([1-9]\d*)([hd])", text.strip())
    if not match:
        raise InputError(f"window '{text}': expected a number of hours or days, like 12h or 7d")
    return int(match[1]) * _UNITS[match[2]]


class StatsReport(msgspec.Struct, frozen=True):
    """What was computed: rows, moments, features, impressions counted."""

    num_rows: int
    num_moments: int
    num_impressions: int
    features: tuple[str, ...]


def compute_stats(
    path: str | Path,
    windows: Sequence[str] = ("1d", "7d"),
    *,
    every: str = "1d",
    prior: float = 20.0,
    progress: Callable[[int], None] | None = None,
) -> StatsReport:
    """Count impressions and engagement of items in the past and add them as features.

    At every multiple of ``every`` (UTC) the windows that end there are counted: exposures whose
    engagement is known, left out while a delayed label's window could still be open. The rate is
    ``(engaged + prior * mean) / (impressions + prior)`` with the window's own mean. Statistics that
    the log has already are replaced, so run it again after appending.

    Parameters
    ----------
    path : path
        The log.
    windows : sequence of str
        Lengths, whole multiples of ``every``.
    every : str
        How often the values change.
    prior : float
        Impressions' worth of the mean, 0 or more.

    Returns
    -------
    StatsReport
        Features ``impressions_W`` and ``engaged_rate_W``, tagged ``statistic``.

    Raises
    ------
    InputError
        A window that is no multiple of ``every``, or given twice; a negative prior.

    Examples
    --------
    >>> import tempfile
    >>> from prerank.log import open_log, write_log
    >>> from prerank.schema import Label, Schema
    >>> def day(start):
    ...     return pa.table({
    ...         "request_id": [start, start + 1],
    ...         "user": [start, 7],
    ...         "time": [start * 86_400_000, start * 86_400_000 + 1],
    ...         "candidates.item": [[1, start + 2]] * 2,
    ...         "candidates.stage": [["exposed", "exposed"]] * 2,
    ...         "labels.click": [[1.0, 0.0]] * 2,
    ...     })
    >>> path = tempfile.mkdtemp() + "/log"
    >>> _ = write_log(path, Schema(labels=(Label(name="click"),)), [day(1)])
    >>> compute_stats(path, ["1d"]).features
    ('impressions_1d', 'engaged_rate_1d')
    >>> item = open_log(path).items.ids.encode(pa.array([1, 1]))
    >>> times = np.array([2 * 86_400_000, 2 * 86_400_000 + 1])  # at midnight, and after it
    >>> open_log(path).items.stats.lookup("impressions_1d", item, times)
    array([nan,  2.])
    """
    if not 0 <= prior < float("inf"):
        raise InputError(f"--prior {prior}: expected a number of impressions, 0 or more")
    if not windows or len({parse_window(w) for w in windows}) < len(windows):
        raise InputError(f"windows {', '.join(windows) or '(none)'}: expected different ones")
    step = parse_window(every)
    steps = {w: parse_window(w) // step for w in windows}
    for window in windows:
        if parse_window(window) % step:
            raise InputError(f"window {window} is no multiple of {every}; change --every")
    with revise(path) as revision:
        log = revision.log
        names = tuple(f"{kind}_{w}" for w in windows for kind in ("impressions", "engaged_rate"))
        delay = max((label.window_ms or 0 for label in log.schema.labels), default=0)
        counter = _Counter(log.schema.size("item"), steps, step, delay, prior)
        for columns in log.read(range(log.num_groups)):
            counter.add(columns, log.schema)
            if progress is not None:
                progress(columns.num_requests)
        table = counter.finish()
        target = revision.replace(f"{ITEM_STATS}/part-00000.parquet")
        pq.write_table(table, target, compression="zstd", write_page_checksum=True)
        revision.schema = _with_features(log.schema, names)
    moments = len(np.unique(table["valid_from_ms"].to_numpy()))
    return StatsReport(table.num_rows, moments, counter.num_impressions, names)


def _with_features(schema: Schema, names: Sequence[str]) -> Schema:
    kept = [f for f in schema.features if f.of != ITEM_STATS_FEATURE]
    added = [
        Feature(
            name=name,
            owner="candidate",
            kind="dense",
            transforms=("log1p", "standard") if name.startswith("impressions") else ("standard",),
            of=ITEM_STATS_FEATURE,
            tags=("statistic",),
        )
        for name in names
    ]
    return msgspec.structs.replace(schema, features=(*kept, *added))


class _Counter:
    """Rolling sums per item over the last steps; requests come in time order."""

    def __init__(
        self, num_items: int, steps: dict[str, int], step: int, delay: int, prior: float
    ) -> None:
        self.steps, self.step, self.delay, self.prior = steps, step, delay, prior
        self.num_impressions = 0
        self.totals = {w: np.zeros((2, num_items)) for w in steps}
        self.recent: deque[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.float64]]] = deque()
        self.waiting: dict[int, npt.NDArray[np.float64]] = {}
        self.num_items = num_items
        self.shown = np.zeros(num_items, dtype=np.bool_)
        self.now: int | None = None
        self.rows: list[dict[str, npt.NDArray[Any]]] = []

    def add(self, columns: Columns, schema: Schema) -> None:
        """Count the exposures of one row group."""
        group = columns.groups[CANDIDATES]
        engaged = expression.evaluate(schema.engaged, label_columns(columns, schema))
        engaged = np.broadcast_to(engaged, int(group.offsets[-1]))
        known = (group.values["stage"] == len(schema.stages) - 1) & ~np.isnan(engaged)
        bucket = np.repeat(columns.scalars["time"] // self.step, np.diff(group.offsets))
        for at in np.unique(columns.scalars["time"] // self.step):
            self._advance(int(at))
            chosen = known & (bucket == at)
            item = group.values["item"][chosen]
            counts = self.waiting.setdefault(int(at), np.zeros((2, self.num_items)))
            counts[0] += np.bincount(item, minlength=self.num_items)
            counts[1] += np.bincount(item, engaged[chosen], minlength=self.num_items)
            self.num_impressions += int(chosen.sum())

    def _advance(self, bucket: int) -> None:
        """Emit the values at the start of every step up to a bucket."""
        if self.now is None or not (self.waiting or self.recent or self.shown.any()):
            self.now = bucket  # nothing to tell about the time before
        while self.now < bucket:
            self.now += 1
            self._emit(self.now)

    def _emit(self, now: int) -> None:
        lag = -(-self.delay // self.step)
        ready = now - 1 - lag
        if ready in self.waiting:
            dense = self.waiting.pop(ready)
            item = np.flatnonzero(dense[0])
            self.recent.append((ready, item, dense[:, item]))
            for total in self.totals.values():
                np.add(total, dense, out=total)
        changed = self.shown.copy()
        for window, length in self.steps.items():
            for at, item, counts in self.recent:
                if at == ready - length:
                    self.totals[window][:, item] -= counts
        longest = max(self.steps.values())
        while self.recent and self.recent[0][0] <= ready - longest:
            self.recent.popleft()
        for total in self.totals.values():
            changed |= total[0] > 0
        item = np.flatnonzero(changed)
        row: dict[str, npt.NDArray[Any]] = {
            "item": item.astype(np.int32),
            "valid_from_ms": np.full(len(item), now * self.step, dtype=np.int64),
        }
        self.shown[:] = False
        for window, (shown, engaged) in self.totals.items():
            mean = engaged.sum() / max(shown.sum(), 1.0)
            weight = shown + self.prior
            rate = np.full(len(weight), np.nan)  # no impression and no prior: no rate
            np.divide(engaged + self.prior * mean, weight, out=rate, where=weight > 0)
            row[f"impressions_{window}"] = shown[item].astype(np.float32)
            row[f"engaged_rate_{window}"] = rate[item].astype(np.float32)
            self.shown |= shown > 0
        self.rows.append(row)

    def finish(self) -> pa.Table:
        """Return all rows by item and time; the step after the last request is included."""
        if self.now is not None:
            self._advance(self.now + 1)
        names = ["item", "valid_from_ms"]
        names += [f"{kind}_{w}" for w in self.steps for kind in ("impressions", "engaged_rate")]
        columns = {n: np.concatenate([row[n] for row in self.rows]) for n in names}
        columns = {n: c.astype(_KINDS.get(n, np.float32)) for n, c in columns.items()}
        order = np.lexsort((columns["valid_from_ms"], columns["item"]))
        arrays = {n: column[order] for n, column in columns.items()}
        return pa.table(
            {n: pa.array(a, mask=np.isnan(a)) for n, a in arrays.items()}  # null: no rate
        )
