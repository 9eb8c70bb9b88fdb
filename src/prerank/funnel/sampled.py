"""Training requests of the funnel's own models: real exposures and random negatives.

Shapes: ``R`` requests, ``Q`` negatives of a request.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from prerank import rng
from prerank.funnel.exposures import exposed_only
from prerank.log import Columns, Log, Part, RowRanges
from prerank.log.format.columns import CANDIDATES, Group

__all__ = ["SampledPart", "with_candidates"]

Index = npt.NDArray[np.int64]


def with_candidates(columns: Columns, group: Group) -> Columns:
    """Return the same requests with other candidates."""
    return Columns(columns.scalars, {**columns.groups, CANDIDATES: group})


class SampledPart(Part):
    """Requests whose candidates are the real exposures and fresh random negatives.

    Half of the negatives are drawn evenly from the items, half in proportion to the square root
    of their events; drawn anew every epoch, as a function of (seed, epoch, request row).

    Parameters
    ----------
    log : Log
        From ``view_of``.
    rows : ndarray int64
        Requests.
    name : str
        What to call the part.
    popularity : ndarray ``[N]``
        Events of each item; items without any are not drawn.
    num_negatives : int
        Per request, before those that were really shown are left out.
    seed : int
        Of the negatives.
    """

    def __init__(
        self,
        log: Log,
        rows: Index,
        name: str,
        *,
        popularity: npt.NDArray[np.float32],
        num_negatives: int,
        seed: int,
    ) -> None:
        super().__init__(log, RowRanges.of(rows), name)
        self.num_negatives = num_negatives
        self.seed = seed
        self._known = np.flatnonzero(popularity > 0)
        weights = np.sqrt(popularity[self._known].astype(np.float64))
        self._ends = np.cumsum(weights) / weights.sum()
        negatives = (s for stages in log.schema.sources.values() for s in stages)
        last = log.schema.stages[-1]
        self._stage = next(log.schema.stages.index(s) for s in negatives if s != last)

    def columns(self, batch_size: int, **options: Any) -> Iterator[Columns]:
        """Yield batches as :meth:`Part.columns` does, with the sampled candidates."""
        epoch = options.get("epoch", 0)
        for columns in super().columns(batch_size, **options):
            yield with_candidates(columns, self._sampled(columns, epoch))

    def _sampled(self, columns: Columns, epoch: int) -> Group:
        shown = exposed_only(columns, self.log.schema)
        rows = columns.scalars["row"].astype(np.int64)[:, None]
        number = np.arange(self.num_negatives)
        draw = rng.uniform(self.seed, rng.stream("funnel/negatives"), epoch, rows, number)
        by_events = np.minimum(np.searchsorted(self._ends, draw), len(self._known) - 1)
        evenly = (draw * len(self._known)).astype(np.int64)
        item = self._known[np.where(number % 2 == 0, by_events, evenly)]
        request = np.repeat(np.arange(len(rows)), self.num_negatives)
        size = self.log.schema.size("item")
        of_shown = np.repeat(np.arange(len(rows)), np.diff(shown.offsets))
        codes, first = np.unique(request * size + item.ravel(), return_index=True)
        fresh = first[~np.isin(codes, of_shown * size + shown.values["item"])]
        order = np.argsort(np.concatenate([of_shown, request[fresh]]), kind="stable")
        counts = np.diff(shown.offsets) + np.bincount(request[fresh], minlength=len(rows))
        values = {}
        for name, column in shown.values.items():
            if name == "item":
                extra = item.ravel()[fresh].astype(column.dtype)
            elif name == "stage":
                extra = np.full(len(fresh), self._stage, dtype=column.dtype)
            else:
                extra = np.full(len(fresh), np.nan, dtype=column.dtype)
            values[name] = np.concatenate([column, extra])[order]
        return Group(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), values)
