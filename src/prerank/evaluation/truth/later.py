"""Passes over a whole log: who engaged with what later, and what training has seen how often."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prerank import expression
from prerank.log import Columns, Log, Part
from prerank.log.format.columns import history_key
from prerank.log.inputs.evidence import label_columns

__all__ = ["LaterEngagement", "Seen"]

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class LaterEngagement:
    """The last time each user engaged with each item, over all requests of a log.

    Parameters
    ----------
    key : ndarray ``[N]`` int64
        ``user * num_items + item``, ascending.
    latest : ndarray ``[N]`` int64
        Request time in ms of the last engaged exposure.
    num_items : int
        Rows of the item vocabulary.
    """

    key: Ints
    latest: Ints
    num_items: int

    @classmethod
    def of(cls, log: Log) -> LaterEngagement:
        """Read the engaged exposures of all parts."""
        schema = log.schema
        num_items, last = schema.size("item"), len(schema.stages) - 1
        keys: list[Ints] = [np.zeros(0, np.int64)]
        times: list[Ints] = [np.zeros(0, np.int64)]
        labels = [f"labels.{label.name}" for label in schema.labels]
        wanted = ["user", "time", "observed_until", "candidates.item", "candidates.stage", *labels]
        for columns in log.read(range(log.num_groups), wanted):
            values = columns.candidates.values
            engaged = expression.evaluate(schema.engaged, label_columns(columns, schema))
            chosen = (values["stage"] == last) & (engaged == 1)
            lengths = np.diff(columns.candidates.offsets)
            user = np.repeat(columns.scalars["user"].astype(np.int64), lengths)[chosen]
            keys.append(user * num_items + values["item"][chosen])
            times.append(np.repeat(columns.scalars["time"], lengths)[chosen])
        key, time = np.concatenate(keys), np.concatenate(times)
        order = np.lexsort((time, key))
        key, time = key[order], time[order]
        is_last = np.append(key[1:] != key[:-1], True)[: len(key)]
        return cls(key[is_last], time[is_last], num_items)

    def after(self, user: Ints, item: Ints, time: Ints) -> Bools:
        """Return whether the user engaged with the item in a request after ``time``, ``[I]``."""
        if not len(self.key):
            return np.zeros(len(item), dtype=np.bool_)
        wanted = user * self.num_items + item
        at = np.minimum(np.searchsorted(self.key, wanted), len(self.key) - 1)
        found: Bools = (self.key[at] == wanted) & (self.latest[at] > time)
        return found


@dataclass(frozen=True, slots=True)
class Seen:
    """How often training saw each item and each user.

    Parameters
    ----------
    items : ndarray int64, by item index
        As candidate or in a history.
    users : ndarray int64, by user index
        Requests.
    """

    items: Ints
    users: Ints

    @classmethod
    def of(cls, train: Part) -> Seen:
        """Count one part."""
        schema = train.log.schema
        items = np.zeros(schema.size("item"), dtype=np.int64)
        users = np.zeros(schema.size("user"), dtype=np.int64)
        for columns in _only(train, ["user", "candidates.item"], schema.streams):
            groups = [columns.candidates, *(columns.groups[history_key(s)] for s in schema.streams)]
            for group in groups:
                items += np.bincount(group.values["item"], minlength=len(items))
            users += np.bincount(columns.scalars["user"], minlength=len(users))
        return cls(items, users)


def _only(part: Part, names: list[str], streams: tuple[str, ...]) -> Iterator[Columns]:
    """Read few columns of a part's requests."""
    log = part.log
    wanted = [*names, *(f"history.{s}.{what}" for s in streams for what in ("item", "time"))]
    for columns in log.read(range(log.num_groups), ["time", *wanted]):
        first = int(columns.scalars["row"][0])
        rows = part.rows.within(first, first + columns.num_requests) - first
        if len(rows):
            yield columns if len(rows) == columns.num_requests else columns.take(rows)
