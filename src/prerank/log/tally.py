"""Running counts of a log's contents: stages, sources, labels, parts; what stands out in them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from prerank import expression
from prerank.batch import POSITIVE, UNKNOWN
from prerank.log.format.columns import Columns
from prerank.log.format.files import REQUESTS, SPLITS
from prerank.log.inputs.evidence import label_columns, source_codes
from prerank.log.split import NO_PARTS, RowRanges
from prerank.schema import Schema

__all__ = ["Tally"]

Floats = npt.NDArray[np.float32]
Index = npt.NDArray[np.int64]


class _PartTally:
    """Counts of one part; bitmaps over users and items, so memory does not grow with requests."""

    def __init__(self, schema: Schema) -> None:
        self.num_requests = 0
        self.num_positives = 0
        self.times: tuple[int, int] | None = None
        self.users = np.zeros(schema.size("user"), dtype=np.bool_)
        self.items = np.zeros(schema.size("item"), dtype=np.bool_)

    def add(self, columns: Columns, inside: Index, engaged: Floats) -> None:
        if not len(inside):
            return
        marked = np.zeros(columns.num_requests, dtype=np.bool_)
        marked[inside] = True
        of_part = np.repeat(marked, np.diff(columns.candidates.offsets))
        self.num_requests += len(inside)
        self.num_positives += int(np.count_nonzero(engaged[of_part] == 1))
        self.users[columns.scalars["user"][inside]] = True
        self.items[columns.candidates.values["item"][of_part]] = True
        time = columns.scalars["time"][inside]
        first = int(time[0]) if self.times is None else self.times[0]
        self.times = (first, int(time[-1]))


class Tally:
    """Counts what a log holds, one row group after another.

    Parameters
    ----------
    schema : Schema
        Of the log.
    parts : mapping of str to RowRanges
        The named parts in their order; the first is what the others are cold against.
    rule : str
        What the parts say of how they were made.
    """

    def __init__(self, schema: Schema, parts: Mapping[str, RowRanges], rule: str) -> None:
        self.schema = schema
        self.rule = rule
        self.ranges = dict(parts)
        self.parts = {name: _PartTally(schema) for name in parts}
        self.requests = self.candidates = 0
        self.without_candidates = self.without_positive = self.in_no_part = 0
        self.shown_known = self.shown_positive = self.not_shown_labelled = self.future = 0
        self.stages = np.zeros(len(schema.stages), dtype=np.int64)
        self.sources = np.zeros(len(schema.sources) - UNKNOWN, dtype=np.int64)
        self.labels = {label.name: [0, 0] for label in schema.labels}
        self.events = dict.fromkeys(schema.streams, 0)
        self.users = np.zeros(schema.size("user"), dtype=np.bool_)
        self.items = np.zeros(schema.size("item"), dtype=np.bool_)
        self._latest_part = np.full(schema.size("user"), -1, dtype=np.int64)

    def add(self, columns: Columns) -> Floats:
        """Take in the next row group; returns what is engaged ``[I]`` (1, 0, NaN = unknown)."""
        group = columns.candidates
        stage = group.values["stage"].astype(np.int64)
        labels = label_columns(columns, self.schema)
        engaged = np.broadcast_to(expression.evaluate(self.schema.engaged, labels), stage.shape)
        self.requests += columns.num_requests
        self.candidates += len(stage)
        lengths = np.diff(group.offsets)
        request = np.repeat(np.arange(columns.num_requests), lengths)
        positives = np.bincount(request[engaged == 1], minlength=columns.num_requests)
        self.without_candidates += int(np.count_nonzero(lengths == 0))
        self.without_positive += int(np.count_nonzero(positives == 0))
        self.stages += np.bincount(stage, minlength=len(self.stages))
        source = source_codes(stage, engaged, self.schema)
        self.sources += np.bincount(source - UNKNOWN, minlength=len(self.sources))
        shown = stage == len(self.schema.stages) - 1
        self.shown_known += int(np.count_nonzero(shown & ~np.isnan(engaged)))
        self.shown_positive += int(np.count_nonzero(shown & (engaged == 1)))
        observed = np.zeros(len(stage), dtype=np.bool_)
        for name, count in self.labels.items():
            values = group.values[f"labels.{name}"]
            observed |= ~np.isnan(values)
            count[0] += int(np.count_nonzero(~np.isnan(labels[name])))
            count[1] += int(np.count_nonzero(labels[name] > 0))
        self.not_shown_labelled += int(np.count_nonzero(observed & ~shown))
        for stream in self.events:
            self.events[stream] += int(columns.groups[f"history.{stream}"].offsets[-1])
        self.users[columns.scalars["user"]] = True
        self.items[group.values["item"]] = True
        self._add_parts(columns, engaged)
        return engaged

    def _add_parts(self, columns: Columns, engaged: Floats) -> None:
        row = columns.scalars["row"]
        part_of = np.full(len(row), -1, dtype=np.int64)
        for k, (name, part) in enumerate(self.parts.items()):
            inside = self.ranges[name].within(int(row[0]), int(row[-1]) + 1) - row[0]
            part_of[inside] = k
            part.add(columns, inside, engaged)
        self.in_no_part += int(np.count_nonzero(part_of < 0))
        user = columns.scalars["user"].astype(np.int64)
        before = latest_before(user, part_of, self._latest_part)
        self.future += int(np.count_nonzero((part_of >= 0) & (part_of < before)))
        np.maximum.at(self._latest_part, user, part_of)

    def counts(self) -> dict[str, int | float]:
        """Return all counts under stable names."""
        schema = self.schema
        counts: dict[str, int | float] = {
            "requests": self.requests,
            "candidates": self.candidates,
            "users": int(self.users.sum()),
            "items": int(self.items.sum()),
            "requests_without_candidates": self.without_candidates,
            "requests_without_positive": self.without_positive,
            "positives": int(self.sources[POSITIVE - UNKNOWN]),
            "exposed": int(self.stages[-1]),
            "engaged_rate_exposed": _share(self.shown_positive, self.shown_known),
            "labelled_not_shown": self.not_shown_labelled,
        }
        counts |= {f"stage:{name}": int(self.stages[k]) for k, name in enumerate(schema.stages)}
        for k, name in enumerate(schema.source_names):
            counts[f"source:{name}"] = int(self.sources[k - UNKNOWN])
        counts["source:unknown"] = int(self.sources[0])
        for name, (observed, positive) in self.labels.items():
            counts |= {f"label:{name}:observed": observed, f"label:{name}:positive": positive}
        counts |= {f"history:{name}:events": number for name, number in self.events.items()}
        first = next(iter(self.parts.values()), None)
        for name, part in self.parts.items():
            counts[f"part:{name}:requests"] = part.num_requests
            counts[f"part:{name}:positives"] = part.num_positives
            if first is not None and part is not first:
                counts[f"part:{name}:cold_users"] = _cold(part.users, first.users)
                counts[f"part:{name}:cold_items"] = _cold(part.items, first.items)
        if self.parts:
            counts["requests_in_no_part"] = self.in_no_part
            counts["requests_before_own_past"] = self.future
        return counts

    def warnings(self) -> Iterator[tuple[str, str]]:
        """Yield what stands out, with the file it is in."""
        if self.not_shown_labelled:
            yield (
                REQUESTS,
                f"{self.not_shown_labelled} candidates have labels but were not shown "
                f"(stage below '{self.schema.stages[-1]}'); labels are feedback to exposures",
            )
        if self.requests and not self.sources[POSITIVE - UNKNOWN]:
            text = self.schema.engaged
            yield REQUESTS, f"no candidate is engaged ('{text}'); there is nothing to learn from"
        if not self.parts:
            if self.rule == NO_PARTS:
                yield SPLITS, "the log has no parts; run: prerank data split LOG"
            return
        where = f"(rule '{self.rule}')"
        for name, part in self.parts.items():
            if not part.num_requests:
                yield SPLITS, f"part '{name}' has no requests {where}"
            elif not part.num_positives and self.sources[POSITIVE - UNKNOWN]:
                yield SPLITS, f"part '{name}' has no engaged candidate {where}"
        if self.in_no_part:
            yield SPLITS, f"{self.in_no_part} requests are in no part {where}"
        if self.future:
            yield (
                SPLITS,
                f"{self.future} requests come after one of the same user in a later part {where}: "
                "training on the future",
            )
        if not self.rule.startswith("user"):
            yield from self._time_overlaps(where)

    def _time_overlaps(self, where: str) -> Iterator[tuple[str, str]]:
        spans = [(name, p.times) for name, p in self.parts.items() if p.times is not None]
        for (early, before), (late, after) in itertools.pairwise(spans):
            if before[1] > after[0]:
                yield (
                    SPLITS,
                    f"part '{early}' reaches time {before[1]} but part '{late}' starts at "
                    f"{after[0]} {where}: training on the future",
                )


def latest_before(user: Index, part: Index, latest: Index) -> Index:
    """Return the latest part of each request's user so far ``[R]``, -1 for none.

    Parameters
    ----------
    user, part : ndarray ``[R]`` int64
        User and part of consecutive requests.
    latest : ndarray ``[num_users]`` int64
        Latest part of every user in earlier requests.

    Examples
    --------
    >>> latest_before(np.array([0, 1, 0]), np.array([2, 0, 0]), np.array([-1, 1]))
    array([-1,  1,  2])
    """
    order = np.argsort(user, kind="stable")
    user, part = user[order], part[order]
    starts = np.diff(user, prepend=-1) != 0
    segment = np.cumsum(starts)
    height = int(part.max(initial=-1)) + 2  # so that a later segment outweighs an earlier one
    highest = np.maximum.accumulate(segment * height + part + 1) - segment * height - 1
    inside = np.empty_like(highest)
    inside[1:] = highest[:-1]
    inside[starts] = -1
    result: Index = np.empty_like(inside)
    result[order] = np.maximum(inside, latest[user])
    return result


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _cold(mine: npt.NDArray[Any], known: npt.NDArray[Any]) -> float:
    return _share(int(np.count_nonzero(mine & ~known)), int(np.count_nonzero(mine)))
