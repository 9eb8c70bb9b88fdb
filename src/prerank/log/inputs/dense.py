"""Dense transforms: fitted on training rows only, applied alike by reader and server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from prerank.log.format.columns import CANDIDATES, Columns, history_key
from prerank.log.format.items import ItemTable
from prerank.rng import hash64, stream
from prerank.schema import ITEM_STATS_FEATURE, Feature, Owner, Schema

__all__ = ["DenseFit", "DenseStatistics", "apply_dense", "dense_features", "raw_dense"]

Floats = npt.NDArray[np.float64]
MS_PER_DAY = 86_400_000.0
_NUM_QUANTILES = 255
_SKETCH_SIZE = 1 << 16
_SKETCH = stream("transform/quantile")


class DenseFit(msgspec.Struct, frozen=True):
    """What was fitted for one dense feature."""

    mean: float = 0.0
    std: float = 1.0
    quantiles: tuple[float, ...] = ()


def dense_features(schema: Schema) -> Iterator[Feature]:
    """Yield every model-visible dense feature."""
    owners: tuple[Owner, ...] = ("user", "context", "item", "candidate")
    for owner in owners:
        yield from schema.of(owner, "dense")
    for name in schema.streams:
        yield from schema.of("history", "dense", name)


def raw_dense(feature: Feature, columns: Columns, items: ItemTable) -> Floats:
    """Return a dense feature's values before any fitted transform; NaN for missing.

    ``age_of`` gives days from the item's time to the request, at least 0.
    """
    if feature.of is not None:
        group = columns.groups[CANDIDATES]
        if feature.of == ITEM_STATS_FEATURE:
            assert items.stats is not None
            moment = np.repeat(columns.scalars["time"], np.diff(group.offsets))
            return items.stats.lookup(feature.name, group.values["item"], moment)
        born = items.scalars[feature.of][group.values["item"]]
        now = np.repeat(columns.scalars["time"], np.diff(group.offsets))
        days: Floats = np.maximum((now - born) / MS_PER_DAY, 0.0)
        return days
    values: npt.NDArray[Any]
    match feature.owner:
        case "item":
            values = items.scalars[feature.column]
        case "candidate":
            values = columns.groups[CANDIDATES].values[feature.name]
        case "history":
            values = columns.groups[history_key(feature.stream)].values[feature.name]
        case _:
            values = columns.scalars[feature.column]
    floats: Floats = values.astype(np.float64)
    return floats


def _before_fit(feature: Feature, values: Floats) -> Floats:
    if "log1p" in feature.transforms:
        return np.sign(values) * np.log1p(np.abs(values))
    return values


def apply_dense(feature: Feature, fit: DenseFit, values: Floats) -> Floats:
    """Transform raw values ``[N]``; NaN stays NaN.

    ``log1p`` keeps the sign; ``standard`` subtracts the mean and divides by the standard
    deviation; ``quantile`` gives the share of training values below, in [0, 1].

    Examples
    --------
    >>> f = Feature(name="price", owner="item", kind="dense", transforms=("standard",))
    >>> apply_dense(f, DenseFit(mean=2.0, std=4.0), np.array([10.0, np.nan]))
    array([ 2., nan])
    """
    values = _before_fit(feature, values)
    if "standard" in feature.transforms:
        return (values - fit.mean) / fit.std
    if "quantile" in feature.transforms and fit.quantiles:
        grid = np.linspace(0.0, 1.0, len(fit.quantiles))
        ranks: Floats = np.interp(values, fit.quantiles, grid)
        return np.where(np.isnan(values), np.nan, ranks)
    return values


class DenseStatistics:
    """Running mean, deviation and a fixed-size sample of one feature's training values.

    The sample keeps the values whose hashes are smallest, so it does not depend on how the rows
    were cut into batches.
    """

    def __init__(self, feature: Feature) -> None:
        self.feature = feature
        self._count, self._mean, self._m2 = 0, 0.0, 0.0
        self._hashes = np.zeros(0, dtype=np.uint64)
        self._sample = np.zeros(0)
        self._seen = 0

    def add(self, values: Floats) -> None:
        """Take in values ``[N]`` (NaN is left out)."""
        values = _before_fit(self.feature, values)
        positions = self._seen + np.arange(len(values))
        self._seen += len(values)
        observed = ~np.isnan(values)
        values, positions = values[observed], positions[observed]
        if not len(values):
            return
        count, mean = len(values), float(values.mean())
        m2 = float(((values - mean) ** 2).sum())
        total = self._count + count
        gap = mean - self._mean
        self._mean += gap * count / total
        self._m2 += m2 + gap * gap * self._count * count / total
        self._count = total
        if "quantile" in self.feature.transforms:
            hashes = np.concatenate([self._hashes, hash64(_SKETCH, positions)])
            sample = np.concatenate([self._sample, values])
            if len(hashes) > _SKETCH_SIZE:
                keep = np.argpartition(hashes, _SKETCH_SIZE)[:_SKETCH_SIZE]
                hashes, sample = hashes[keep], sample[keep]
            self._hashes, self._sample = hashes, sample

    def result(self) -> DenseFit:
        """Return the fit; a feature without values keeps the identity."""
        if not self._count:
            return DenseFit()
        std = float(np.sqrt(self._m2 / self._count))
        quantiles: tuple[float, ...] = ()
        if len(self._sample):
            grid = np.linspace(0.0, 1.0, _NUM_QUANTILES)
            quantiles = tuple(np.quantile(self._sample, grid).tolist())
        return DenseFit(self._mean, std if std > 0 else 1.0, quantiles)
