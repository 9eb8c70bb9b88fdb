"""A part whose equal requests are merged while it is read: for logs of single impressions.

Most of what reading such a log costs is moving histories that stand there many times. So rows are
compared as soon as a row group is decoded, and from then on only distinct request sides are moved;
what is ordered and cut into batches are row numbers.

Whoever can rewrite the log should import it as requests instead (``prerank data import parquet``):
nothing is left to be decoded twice, then.

Shapes: ``N`` stored rows, ``R`` distinct requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prerank.log.dedup import dedup_columns, distinct_requests
from prerank.log.format.columns import CANDIDATES, Columns, Group
from prerank.log.log import GROUPS_PER_WINDOW, Part
from prerank.log.order import Window, plan_windows, shuffled, skip_windows
from prerank.rng import hash64

__all__ = ["DedupedPart"]

Index = npt.NDArray[np.int64]


class DedupedPart(Part):
    """The requests of a part, equal ones of a batch merged; see ``Part.deduplicated``.

    A batch holds ``batch_size`` stored rows, so an epoch has as many batches as without merging,
    and skips to any of them as quickly. In a shuffled epoch the place of a row is a hash of its
    user and time, so that the rows of a request meet in a batch.
    """

    def columns(
        self,
        batch_size: int,
        *,
        seed: int = 0,
        epoch: int = 0,
        shuffle: bool = False,
        start: int = 0,
        with_ids: bool = False,
        logged: frozenset[str] | None = None,
    ) -> Iterator[Columns]:
        """Yield batches of ``batch_size`` stored rows each, as few requests as they make.

        See :meth:`prerank.log.log.Part.columns`.
        """
        windows = plan_windows(
            self.rows,
            self.log._starts,
            seed,
            epoch,
            shuffle=shuffle,
            groups_per_window=GROUPS_PER_WINDOW if shuffle else 1,
        )
        index, skip = skip_windows(windows, start * batch_size)
        begun: list[Columns] = []
        missing = batch_size
        for window in windows[index:]:
            rows = _Rows.cat([_Rows.of(c) for c in self._pieces(window, with_ids, logged)])
            order = np.arange(len(rows.request))
            if shuffle:
                order = shuffled(rows.moment, seed, epoch)
            at, skip = skip, 0
            while at < len(order):
                taken = order[at : at + missing]
                at += len(taken)
                missing -= len(taken)
                begun.append(rows.take(taken))
                if not missing:
                    yield dedup_columns(Columns.cat(begun))
                    begun, missing = [], batch_size
        if begun:
            yield dedup_columns(Columns.cat(begun))

    def _pieces(
        self, window: Window, with_ids: bool, logged: frozenset[str] | None
    ) -> Iterator[Columns]:
        starts = self.log._starts
        groups = sorted(window.groups)  # the first row of a request is then the same every epoch
        read = self.log.read(groups, with_ids=with_ids, logged=logged)
        for group, columns in zip(groups, read, strict=True):
            first, stop = int(starts[group]), int(starts[group + 1])
            rows = self.rows.within(first, stop) - first
            yield columns if len(rows) == stop - first else columns.take(rows)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Stored rows: distinct request sides, whose each row's is, and the rows' own candidates.

    Parameters
    ----------
    sides : Columns, ``R`` rows
        Without candidates.
    request, moment : ndarray ``[N]`` int64
        Row of ``sides``; a number that rows of one user and time share.
    candidates : Group, ``N`` rows
        Of each stored row.
    """

    sides: Columns
    request: Index
    moment: Index
    candidates: Group

    @classmethod
    def of(cls, columns: Columns) -> _Rows:
        rest = {name: group for name, group in columns.groups.items() if name != CANDIDATES}
        sides = Columns(columns.scalars, rest)
        request = np.arange(columns.num_requests)
        found = distinct_requests(columns)
        if found is not None:
            sides, request = sides.take(found[0]), found[1]
        moment = hash64(columns.scalars["user"], columns.scalars["time"]).view(np.int64)
        return cls(sides, request, moment, columns.candidates)

    @staticmethod
    def cat(parts: Sequence[_Rows]) -> _Rows:
        ends = np.cumsum([0, *(part.sides.num_requests for part in parts)])
        request = [part.request + end for part, end in zip(parts, ends, strict=False)]
        return _Rows(
            Columns.cat([part.sides for part in parts]),
            np.concatenate(request),
            np.concatenate([part.moment for part in parts]),
            Group.cat([part.candidates for part in parts]),
        )

    def take(self, rows: Index) -> Columns:
        """Return the given rows ``[n]`` as requests, in order of first appearance."""
        distinct, first, of = np.unique(self.request[rows], return_index=True, return_inverse=True)
        by_first = np.argsort(first, kind="stable")
        place = np.argsort(by_first, kind="stable")[of]
        result = self.sides.take(distinct[by_first])
        candidates = self.candidates.take(rows[np.argsort(place, kind="stable")])
        num_rows = np.bincount(place, minlength=len(distinct))
        ends = candidates.offsets[np.concatenate([[0], np.cumsum(num_rows)])]
        result.groups[CANDIDATES] = Group(ends, candidates.values)
        return result
