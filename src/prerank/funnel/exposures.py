"""What really happened in a log: who was shown what, when, and what was engaged with.

Held in memory as flat arrays, about 20 bytes an exposure. Shapes: ``R`` requests, ``N`` exposures,
``E`` events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from prerank import expression
from prerank.log import Columns, Log, open_log
from prerank.log.format.columns import CANDIDATES, Group, history_key
from prerank.log.inputs.evidence import label_columns
from prerank.schema import Schema

__all__ = ["Exposures", "events_of", "exposed_only", "history_items", "view_of"]

Index = npt.NDArray[np.int64]


def view_of(log: Log) -> Log:
    """Return the log as the funnel reads it: without what only logged candidates can have.

    Stored candidate features, item statistics, logged ranks, scores, channels, weights and
    propensities exist for the candidates of the log alone; a funnel brings candidates of its own,
    and a feature that only some of them have would tell them apart.
    """
    view = open_log(log.path)
    features = tuple(
        f
        for f in view.schema.features
        if f.owner != "candidate" or (not f.stored and "age_of" in f.transforms)
    )
    view.schema = msgspec.structs.replace(
        view.schema,
        features=features,
        ranks=(),
        scores=(),
        channels=(),
        has_weight=False,
        has_propensity=False,
        has_sample_prob=False,
        has_scored_online=False,
    )
    return view


def exposed_only(columns: Columns, schema: Schema) -> Group:
    """Return the shown candidates of every request."""
    group = columns.groups[CANDIDATES]
    shown = group.values["stage"] == len(schema.stages) - 1
    if shown.all():
        return group
    before = np.concatenate([[0], np.cumsum(shown)])
    values = {name: column[shown] for name, column in group.values.items()}
    return Group(before[group.offsets], values)


def history_items(columns: Columns, schema: Schema, length: int) -> Group:
    """Return the last items of all streams together, oldest first, ``item`` and ``time``."""
    parts = [columns.groups[history_key(stream)].tail(length) for stream in schema.streams]
    num_requests = columns.num_requests
    if not parts:
        nothing = np.zeros(0, dtype=np.int64)
        return Group(np.zeros(num_requests + 1, np.int64), {"item": nothing, "time": nothing})
    row = np.concatenate([np.repeat(np.arange(num_requests), np.diff(p.offsets)) for p in parts])
    item = np.concatenate([p.values["item"] for p in parts]).astype(np.int64)
    time = np.concatenate([p.values["time"] for p in parts])
    order = np.lexsort((time, row))
    counts = np.bincount(row, minlength=num_requests)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Group(offsets, {"item": item[order], "time": time[order]}).tail(length)


@dataclass(frozen=True, slots=True, eq=False)
class Exposures:
    """The real exposures of a log, and what users did before it begins.

    Parameters
    ----------
    user, time : ndarray ``[R]`` int64
        Of every request.
    offsets : ndarray ``[R + 1]`` int64
        Exposures of each request.
    item : ndarray ``[N]`` int32
        Item index.
    engaged : ndarray ``[N]`` bool
        Known to be engaged.
    early_user, early_item : ndarray ``[E]``
        History of each user's first request: what happened before the log.
    repeats : float
        Share of the exposures whose item is in the history of their request.
    """

    user: Index
    time: Index
    offsets: Index
    item: npt.NDArray[np.int32]
    engaged: npt.NDArray[np.bool_]
    early_user: Index
    early_item: npt.NDArray[np.int32]
    early_row: Index
    repeats: float
    _by_user: dict[str, Index]

    @classmethod
    def read(
        cls, log: Log, *, max_history: int, progress: Callable[[int], None] | None = None
    ) -> Exposures:
        """Read a log once.

        Parameters
        ----------
        log : Log
            From :func:`view_of`.
        max_history : int
            Longest history to take of a user's first request.
        progress : callable, optional
            Called with the number of requests just read.
        """
        schema = log.schema
        users, times, lengths, items, engaged = [], [], [], [], []
        early: list[tuple[Index, Index, Index]] = []
        seen_users = np.zeros(schema.size("user"), dtype=np.bool_)
        num_repeats = 0
        for columns in _read(log):
            shown = exposed_only(columns, schema)
            only = Columns(columns.scalars, {CANDIDATES: shown})
            user = columns.scalars["user"].astype(np.int64)
            row = columns.scalars["row"]
            value = expression.evaluate(schema.engaged, label_columns(only, schema))
            length = np.diff(shown.offsets)
            users.append(user)
            times.append(columns.scalars["time"])
            lengths.append(length)
            items.append(shown.values["item"].astype(np.int32))
            engaged.append(np.broadcast_to(value, (len(items[-1]),)) == 1)
            history = history_items(columns, schema, max_history)
            num_items = schema.size("item")
            of_history = np.repeat(np.arange(len(user)), np.diff(history.offsets))
            of_shown = np.repeat(np.arange(len(user)), length)
            num_repeats += int(
                np.isin(
                    of_shown * num_items + items[-1],
                    of_history * num_items + history.values["item"],
                ).sum()
            )
            first = np.unique(user, return_index=True)[1]
            first = first[~seen_users[user[first]]]
            seen_users[user[first]] = True
            begun = history.take(np.sort(first))
            repeated = np.diff(begun.offsets)
            early.append(
                (
                    np.repeat(user[np.sort(first)], repeated),
                    begun.values["item"],
                    np.repeat(row[np.sort(first)], repeated),
                )
            )
            if progress is not None:
                progress(columns.num_requests)
        user = np.concatenate(users)
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
        item = np.concatenate(items)
        per_exposure = np.repeat(user, np.diff(offsets))
        order = np.argsort(per_exposure, kind="stable")
        starts = np.searchsorted(per_exposure[order], np.arange(schema.size("user") + 1))
        row_of = np.repeat(np.arange(len(user)), np.diff(offsets))
        return cls(
            user=user,
            time=np.concatenate(times),
            offsets=offsets,
            item=item,
            engaged=np.concatenate(engaged),
            early_user=np.concatenate([e[0] for e in early]),
            early_item=np.concatenate([e[1] for e in early]).astype(np.int32),
            early_row=np.concatenate([e[2] for e in early]),
            repeats=num_repeats / max(len(item), 1),
            _by_user={"order": order, "starts": starts, "row": row_of[order]},
        )

    @property
    def num_requests(self) -> int:
        """Number of requests ``R``."""
        return len(self.user)

    @property
    def row_of(self) -> Index:
        """Request of each exposure ``[N]``."""
        return np.repeat(np.arange(self.num_requests), np.diff(self.offsets))

    def shown_before(self, row: int) -> npt.NDArray[np.int32]:
        """Return the items that the user of a request was shown in earlier requests."""
        start, stop = self._by_user["starts"][self.user[row] : self.user[row] + 2]
        stop = start + np.searchsorted(self._by_user["row"][start:stop], row)
        return self.item[self._by_user["order"][start:stop]]


def events_of(exposures: Exposures, rows: Index) -> tuple[Index, npt.NDArray[np.int32]]:
    """Return user and item ``[E]`` of what happened in some requests, by user, oldest first.

    Events are the engaged exposures of the requests, and before them the history of the user's
    first request if that is one of them.
    """
    chosen = np.zeros(exposures.num_requests, dtype=np.bool_)
    chosen[rows] = True
    row_of = exposures.row_of
    late = chosen[row_of] & exposures.engaged
    early = chosen[exposures.early_row]
    user = np.concatenate([exposures.early_user[early], exposures.user[row_of[late]]])
    item = np.concatenate([exposures.early_item[early], exposures.item[late]])
    order = np.argsort(user, kind="stable")
    return user[order], item[order]


def _read(log: Log) -> Iterator[Columns]:
    return log.read(range(log.num_groups))
