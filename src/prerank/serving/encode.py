"""Raw requests to the columns that the reader of a log makes: vocabulary rows, floats, lists.

From there on reader and engine share their code (:class:`prerank.log.inputs.assemble.Assembler`).
Values are refused where a log's writer would refuse them and become missing where it makes them
missing: not finite, absent, None.

Shapes: ``R`` requests, ``N`` values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from prerank.errors import InputError, did_you_mean
from prerank.log.format.columns import CANDIDATES, Array, Columns, Group, goes_back, history_key
from prerank.log.format.items import ItemTable
from prerank.log.format.vocab import Vocabulary
from prerank.schema import Feature, Owner, Schema
from prerank.serving.errors import BadRequestError, UnknownFeatureError
from prerank.serving.messages import Events, Value

__all__ = ["Encoder", "Find", "Numbered"]

Find = Callable[[Sequence[Any]], npt.NDArray[np.int64]]
"""Raw item ids to rows of the item table, 1 for an unknown one."""

_NUMBERS = {int, float, bool, type(None)}
_VERSION = "version"


class Encoder:
    """Encodes raw values with the vocabularies of a bundle.

    Parameters
    ----------
    schema : Schema
        Of the log that the bundle was made with.
    vocabularies : dict of str to Vocabulary
        Of its categorical features, but for items.
    max_history : int
        Events kept of each stream, the most recent ones.

    Examples
    --------
    >>> from prerank.schema import Feature, Label
    >>> age = Feature(name="age", owner="user", kind="dense")
    >>> encoder = Encoder(Schema(features=(age,), labels=(Label(name="click"),)), {}, max_history=9)
    >>> encoder.values("user", [{"age": 30}, {}])[0]["age"]
    array([30., nan], dtype=float32)
    """

    def __init__(
        self, schema: Schema, vocabularies: Mapping[str, Vocabulary], *, max_history: int
    ) -> None:
        self.schema = schema
        self.vocabularies = vocabularies
        self.max_history = max_history
        owners: tuple[Owner, ...] = ("user", "context", "item", "candidate")
        self._stored = {owner: schema.stored(owner) for owner in owners}
        self._names = {owner: {f.name for f in fs} for owner, fs in self._stored.items()}
        self._events = {
            stream: tuple(f for f in schema.stored("history") if f.stream == stream)
            for stream in schema.streams
        }
        self._carriers = {f.of for f in schema.features if f.of}
        self._reads_user = any(f.owner == "user" and f.name == "user" for f in schema.features)

    def users(self, ids: Sequence[Any]) -> npt.NDArray[np.int32]:
        """Return the vocabulary rows of raw user ids; zeros if no model reads them."""
        if not self._reads_user:
            return np.zeros(len(ids), dtype=np.int32)
        return self._rows("user", ids, "user.id")

    def values(
        self, owner: Owner, rows: Sequence[Mapping[str, Value]], where: str = ""
    ) -> tuple[dict[str, Array], dict[str, Group]]:
        """Encode features of users, contexts or items, one mapping per row.

        Returns
        -------
        scalars : dict of str to ndarray ``[N]`` (vectors ``[N, dim]``)
        groups : dict of str to Group
            Multi-valued ones.
        """
        where = where or f"{owner}.features"
        for row in rows:
            if not row.keys() <= self._names[owner]:
                self._refuse(row.keys() - self._names[owner], self._names[owner], where)
        scalars: dict[str, Array] = {}
        groups: dict[str, Group] = {}
        for f in self._stored[owner]:
            column = [row.get(f.name) for row in rows]
            at = f"{where}.{f.name}"
            match f.kind:
                case "multi":
                    groups[f.column] = self._lists(f, column, at)
                case "vector":
                    scalars[f.column] = _vectors(f, column, at)
                case _:
                    scalars[f.column] = self._column(f, column, at)
        return scalars, groups

    def items(self, rows: Sequence[Mapping[str, Value]], where: str) -> ItemTable:
        """Encode item features as an item table without ids (rows number from 0)."""
        scalars, groups = self.values("item", rows, where)
        return ItemTable(Numbered(len(rows)), scalars, groups)

    def candidates(self, features: Mapping[str, Sequence[Any]], num: int) -> dict[str, Array]:
        """Encode candidate features, one list of ``num`` values each."""
        names = self._names["candidate"] | ({"channel"} if self.schema.channels else set())
        if not features.keys() <= names:
            self._refuse(features.keys() - names, names, "candidates.features")
        encoded: dict[str, Array] = {}
        for f in self._stored["candidate"]:
            column = features.get(f.name)
            if column is None:
                encoded[f.name] = _missing(f, num)
                continue
            at = f"candidates.features.{f.name}"
            _check_length(column, num, at)
            encoded[f.name] = self._column(f, column, at)
        if "channel" in features:
            encoded["channel"] = self._channels(features["channel"], num)
        return encoded

    def history(
        self,
        histories: Sequence[Mapping[str, Events | str | int]],
        times: Sequence[int],
        find: Find,
    ) -> dict[str, Group]:
        """Encode the histories of ``R`` requests at these times (ms), a group per stream."""
        for history in histories:
            unknown = history.keys() - self._events.keys() - {_VERSION}
            if unknown:
                self._refuse(unknown, self._events.keys(), "history", "stream")
        groups = {}
        for stream, features in self._events.items():
            parts = [
                self._stream(history.get(stream), features, time, stream, find)
                for history, time in zip(histories, times, strict=True)
            ]
            groups[history_key(stream)] = Group.cat(parts)
        return groups

    def request_side(
        self,
        users: Sequence[tuple[Any, Mapping[str, Value]]],
        histories: Sequence[Mapping[str, Events | str | int]],
        times: Sequence[int],
        find: Find,
    ) -> Columns:
        """Encode users and histories; the context is missing and there are no candidates."""
        num = len(users)
        scalars, groups = self.values("user", [features for _, features in users])
        blank, blank_groups = self.values("context", [{}] * num)
        scalars |= blank | {
            "row": np.zeros(num, dtype=np.int64),
            "user": self.users([id_ for id_, _ in users]),
            "time": np.array(times, dtype=np.int64),
        }
        none = {"item": np.zeros(0, dtype=np.int64), **self.candidates({}, 0)}
        groups |= blank_groups | self.history(histories, times, find)
        groups[CANDIDATES] = Group(np.zeros(num + 1, dtype=np.int64), none)
        return Columns(scalars, groups)

    def candidate_side(
        self,
        contexts: Sequence[Mapping[str, Value]],
        times: Sequence[int],
        candidates: Group,
    ) -> Columns:
        """Put contexts and encoded candidates together."""
        scalars, groups = self.values("context", contexts, "context")
        scalars["row"] = np.zeros(len(contexts), dtype=np.int64)
        scalars["time"] = np.array(times, dtype=np.int64)
        return Columns(scalars, {**groups, CANDIDATES: candidates})

    def _stream(
        self, events: Any, features: tuple[Feature, ...], time: int, stream: str, find: Find
    ) -> Group:
        at = f"history.{stream}"
        names = {"item", "time", *(f.name for f in features)}
        columns = _event_columns(events, names, at)
        num = len(columns["time"])
        when = _times(columns["time"], at)
        if (when >= time).any():
            late = int((when >= time).argmax())
            raise BadRequestError(
                f"{at}: event {late} is at {int(when[late])}, not before the request ({time}); "
                "send earlier events only"
            )
        ends = np.array([0, num], dtype=np.int64)
        if goes_back(when, ends).any():
            raise BadRequestError(f"{at}: events are not sorted by time; send the oldest first")
        skip = max(0, num - self.max_history)
        columns = {name: column[skip:] for name, column in columns.items()}
        values: dict[str, Array] = {"item": find(columns["item"]), "time": when[skip:]}
        for f in features:
            values[f.name] = self._column(f, columns[f.name], f"{at}.{f.name}")
        return Group(np.array([0, num - skip], dtype=np.int64), values)

    def _column(self, f: Feature, values: Sequence[Any], at: str) -> Array:
        if f.kind == "categorical":
            return self._rows(f.vocab, values, at)
        wide = f.owner == "item" and f.name in self._carriers
        return _floats(values, at, np.float64 if wide else np.float32)

    def _rows(self, vocab: str, values: Sequence[Any], at: str) -> npt.NDArray[np.int32]:
        try:
            return self.vocabularies[vocab].find(values)
        except InputError as error:
            raise BadRequestError(f"{at}: {error}") from None

    def _lists(self, f: Feature, column: Sequence[Any], at: str) -> Group:
        flat: list[Any] = []
        ends = np.zeros(len(column) + 1, dtype=np.int64)
        for k, value in enumerate(column):
            if value is not None and not isinstance(value, list):
                raise BadRequestError(
                    f"{at}: {value!r:.60} is no list; the feature has many values"
                )
            flat += value or ()
            ends[k + 1] = len(flat)
        return Group(ends, {"": self._rows(f.vocab, flat, at)})

    def _channels(self, column: Sequence[Any], num: int) -> npt.NDArray[np.int8]:
        at = "candidates.features.channel"
        _check_length(column, num, at)
        known: dict[Any, int] = {name: k for k, name in enumerate(self.schema.channels)}
        known[None] = -1
        try:
            return np.fromiter((known[name] for name in column), np.int8, num)
        except (KeyError, TypeError):
            found = next(
                n for n in column if not (n is None or (isinstance(n, str) and n in known))
            )
            hint = did_you_mean(str(found), self.schema.channels)
            raise BadRequestError(f"{at}: no channel {found!r:.60}; {hint}") from None

    def _refuse(self, unknown: Any, known: Any, where: str, what: str = "feature") -> None:
        name = min(map(str, unknown))
        raise UnknownFeatureError(f"{where}: no {what} '{name:.80}'; {did_you_mean(name, known)}")


class Numbered(Vocabulary):
    """Rows without ids of their own."""

    def __init__(self, num: int) -> None:
        super().__init__("item")
        self._num = num

    def __len__(self) -> int:
        return self._num


def _event_columns(events: Any, names: set[str], at: str) -> dict[str, Sequence[Any]]:
    """Return one list per name, whichever way the events came."""
    if events is None:
        return dict.fromkeys(names, ())
    if isinstance(events, dict):
        found, num = set(events), max(map(len, events.values()), default=0)
        columns = {name: events.get(name, [None] * num) for name in names}
    elif isinstance(events, list):
        found, num = set().union(*events), len(events)
        columns = {name: [event.get(name) for event in events] for name in names}
    else:
        raise BadRequestError(f"{at}: {events!r:.60} is no list of events")
    if not found <= names:
        name = min(found - names)
        raise UnknownFeatureError(f"{at}: no feature '{name:.80}'; {did_you_mean(name, names)}")
    for name, column in columns.items():
        _check_length(column, num, f"{at}.{name}")
    return columns


def _times(column: Sequence[Any], at: str) -> npt.NDArray[np.int64]:
    if set(map(type, column)) - {int}:
        found = next(v for v in column if type(v) is not int)
        raise BadRequestError(f"{at}.time: {found!r:.60}; every event needs its time in ms")
    try:
        return np.array(column, dtype=np.int64)
    except OverflowError:
        raise BadRequestError(f"{at}.time: a time is too large; expected ms since 1970") from None


def _check_length(column: Sequence[Any], num: int, at: str) -> None:
    if len(column) != num:
        raise BadRequestError(f"{at}: {len(column)} values, expected {num}")


def _floats(values: Sequence[Any], at: str, dtype: Any = np.float32) -> Array:
    if set(map(type, values)) - _NUMBERS:
        found = next(v for v in values if type(v) not in _NUMBERS)
        raise BadRequestError(f"{at}: {found!r:.60} is {type(found).__name__}, not a number")
    try:
        wide = np.array(values, dtype=np.float64)
    except OverflowError:
        raise BadRequestError(f"{at}: a number is too large") from None
    with np.errstate(over="ignore"):
        floats = wide.astype(dtype)
    floats[~np.isfinite(floats)] = np.nan
    return floats


def _vectors(f: Feature, column: Sequence[Any], at: str) -> Array:
    out = np.full((len(column), f.dim), np.nan, dtype=np.float32)
    for k, value in enumerate(column):
        if value is None:
            continue
        if not isinstance(value, list) or len(value) != f.dim:
            size = len(value) if isinstance(value, list) else "no"
            raise BadRequestError(f"{at}: {size} numbers, expected a list of {f.dim}")
        out[k] = _floats(value, at)
    return out


def _missing(f: Feature, num: int) -> Array:
    if f.kind == "categorical":
        return np.zeros(num, dtype=np.int32)
    return np.full(num, np.nan, dtype=np.float32)
