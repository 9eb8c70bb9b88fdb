"""Running statistics of a log's features: null rates, constants, and values that give labels away.

A feature that alone tells engaged from not engaged candidates was most likely written down after
the fact. It is looked for in a fixed-size sample of candidates, chosen by hash.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from prerank.log.format.columns import CANDIDATES, Columns, history_key
from prerank.log.format.files import ITEMS, REQUESTS
from prerank.log.format.items import ItemTable
from prerank.log.inputs.dense import raw_dense
from prerank.rng import hash64, stream
from prerank.schema import NUM_RESERVED, Feature, Owner, Schema

__all__ = ["FeatureTally", "auc"]

Floats = npt.NDArray[np.float64]
_SAMPLE = stream("check/leak")
_SAMPLE_SIZE = 1 << 16
_MIN_EACH = 20  # engaged and not engaged candidates below which an AUC says nothing
_MAX_CATEGORIES = 256
_MIN_PER_CATEGORY = 20
_LEAK = 0.98
_OWNERS: tuple[Owner, ...] = ("user", "context", "item", "candidate", "history")


class _Range:
    """How many rows, how many of them missing, smallest and largest value (per dimension)."""

    def __init__(self) -> None:
        self.rows = self.missing = 0
        self.low: npt.NDArray[Any] = np.array(np.inf)
        self.high: npt.NDArray[Any] = np.array(-np.inf)

    def add(self, values: npt.NDArray[Any] | None, missing: npt.NDArray[np.bool_]) -> None:
        self.rows += len(missing)
        self.missing += int(np.count_nonzero(missing))
        if values is not None and not missing.all():
            known = values[~missing]
            self.low = np.fmin(self.low, np.fmin.reduce(known, axis=0))
            self.high = np.fmax(self.high, np.fmax.reduce(known, axis=0))

    @property
    def constant(self) -> bool:
        return self.rows > 1 and not self.missing and bool(np.all(self.low == self.high))


class FeatureTally:
    """Statistics of every stored feature and a sample to look for leaks in.

    Parameters
    ----------
    schema : Schema
        Of the log.
    items : ItemTable or None
        The log's items; None where they cannot be read.
    """

    def __init__(self, schema: Schema, items: ItemTable | None) -> None:
        self.schema = schema
        self.items = items
        self.ranges = {_name(f): _Range() for f in schema.stored(*_OWNERS)}
        self.suspects = [f for f in schema.features if _can_leak(f, schema, items)]
        self._hashes = np.zeros(0, dtype=np.uint64)
        self._engaged = np.zeros(0)
        self._values = np.zeros((0, len(self.suspects)))
        if items is not None:
            rows = Columns(items.scalars, items.groups)
            for f in schema.stored("item"):
                values, missing = _column(f, rows)
                known = None if values is None else values[NUM_RESERVED:]
                self.ranges[_name(f)].add(known, missing[NUM_RESERVED:])

    def add(self, columns: Columns, engaged: npt.NDArray[np.float32]) -> None:
        """Take in the next row group and what is engaged in it ``[I]``."""
        for f in self.schema.stored("user", "context", "candidate", "history"):
            self.ranges[_name(f)].add(*_column(f, columns))
        known = np.flatnonzero(~np.isnan(engaged))
        request = np.repeat(np.arange(columns.num_requests), np.diff(columns.candidates.offsets))
        row = columns.scalars["row"][request[known]]
        hashes = hash64(_SAMPLE, row, known - columns.candidates.offsets[request[known]])
        if len(self._hashes) == _SAMPLE_SIZE:
            few = hashes < self._hashes.max()
            known, hashes = known[few], hashes[few]
        drawn = [self._suspect(f, columns, request, known) for f in self.suspects]
        values = np.stack(drawn, axis=1) if drawn else np.zeros((len(known), 0))
        hashes = np.concatenate([self._hashes, hashes])
        keep = np.arange(len(hashes))
        if len(hashes) > _SAMPLE_SIZE:
            keep = np.argpartition(hashes, _SAMPLE_SIZE)[:_SAMPLE_SIZE]
        self._hashes = hashes[keep]
        self._engaged = np.concatenate([self._engaged, engaged[known]])[keep]
        self._values = np.concatenate([self._values, values])[keep]

    def _suspect(
        self, f: Feature, columns: Columns, request: npt.NDArray[Any], known: npt.NDArray[Any]
    ) -> Floats:
        """Return a feature's values of the candidates ``known``; NaN for missing."""
        values: npt.NDArray[Any]
        if f.owner == "candidate" and f.stored:
            values = columns.candidates.values[f.name][known]
            if f.kind == "categorical":
                values = np.where(values == 0, np.nan, values)
        elif f.owner in ("user", "context"):
            values = columns.scalars[f.column][request[known]]
        else:
            assert self.items is not None, "see _can_leak"
            if f.owner == "candidate":
                values = raw_dense(f, columns, self.items)[known]
            else:
                values = self.items.scalars[f.column][columns.candidates.values["item"][known]]
        floats: Floats = values.astype(np.float64)
        return floats

    def counts(self) -> dict[str, int | float]:
        """Return the null rate of every stored feature."""
        return {
            f"null_rate:{name}": r.missing / r.rows if r.rows else 0.0
            for name, r in self.ranges.items()
        }

    def warnings(self) -> Iterator[tuple[str, str]]:
        """Yield features without a value, with one value only, or that give the label away."""
        for f in self.schema.stored(*_OWNERS):
            r = self.ranges[_name(f)]
            where = ITEMS if f.owner == "item" else REQUESTS
            if r.rows and r.missing == r.rows:
                yield where, f"feature '{_name(f)}' is missing in all {r.rows} rows"
            elif r.constant:
                yield where, f"feature '{_name(f)}' is constant in all {r.rows} rows"
        num_positive = int(np.count_nonzero(self._engaged == 1))
        if min(num_positive, len(self._engaged) - num_positive) < _MIN_EACH:
            return
        for k, f in enumerate(self.suspects):
            score = self._predicts(f, self._values[:, k])
            if score > _LEAK:
                yield (
                    ITEMS if f.owner == "item" else REQUESTS,
                    f"feature '{_name(f)}' alone predicts engaged (AUC {score:.3f}): possible "
                    "leak; is it known when the request is served?",
                )

    def _predicts(self, f: Feature, values: Floats) -> float:
        if f.kind == "categorical":
            _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
            if len(values) < _MIN_PER_CATEGORY * len(counts):
                return 0.5
            values = (np.bincount(inverse, self._engaged) / counts)[inverse]
        score = 0.5
        for missing in (-np.inf, np.inf):  # a value can also give away by being there
            area = auc(np.where(np.isnan(values), missing, values), self._engaged == 1)
            score = max(score, area, 1.0 - area)
        return score


def _name(f: Feature) -> str:
    return f.column if f.owner == "history" else f"{f.owner}.{f.name}"


def _can_leak(f: Feature, schema: Schema, items: ItemTable | None) -> bool:
    if f.owner == "candidate" and f.stored:
        return f.kind == "dense" or schema.size(f.vocab) <= _MAX_CATEGORIES
    if f.owner in ("item", "candidate"):
        return f.kind == "dense" and items is not None
    return f.kind == "dense" and f.owner != "history"


def _column(f: Feature, columns: Columns) -> tuple[npt.NDArray[Any] | None, npt.NDArray[np.bool_]]:
    """Return a stored feature's values (None where a row has several) and which are missing."""
    if f.kind == "multi":
        return None, np.diff(columns.groups[f.column].offsets) == 0
    match f.owner:
        case "candidate":
            values = columns.groups[CANDIDATES].values[f.name]
        case "history":
            values = columns.groups[history_key(f.stream)].values[f.name]
        case _:
            values = columns.scalars[f.column]
    if f.kind == "categorical":
        return values, values == 0
    missing = np.isnan(values)
    return values, np.asarray(missing.all(axis=1) if f.kind == "vector" else missing)


def auc(scores: Floats, positive: npt.NDArray[np.bool_]) -> float:
    """Return the chance that a positive outscores a negative, ties counting half.

    Examples
    --------
    >>> auc(np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, False, True, True]))
    0.875
    """
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = np.cumsum(counts) - (counts - 1) / 2
    num_positive = int(np.count_nonzero(positive))
    wins = float(rank[inverse][positive].sum()) - num_positive * (num_positive + 1) / 2
    return wins / (num_positive * (len(scores) - num_positive))
