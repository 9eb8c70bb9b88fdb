"""How the columns of a flat table (one row per impression) map to a request log."""

from __future__ import annotations

from typing import Literal

import msgspec

from prerank import expression
from prerank.config import Config
from prerank.errors import InputError
from prerank.schema import Feature, Kind, Label, Lineage, Owner, Schema, Task, Transform

__all__ = ["ColumnMap", "HistoryRule", "ImpressionMap", "LabelMap"]

_USUAL = Schema(labels=(Label(name="click"),))

TimeUnit = Literal["s", "ms", "us", "ns"]


class ColumnMap(Config, frozen=True):
    """Where a feature's value stands and what it is.

    Parameters
    ----------
    column : str
        Column of the table.
    kind : {"categorical", "multi", "dense", "vector"}
        A ``multi`` is a list column, or text with ``separator``; a ``vector`` is a list column
        whose lists all have one length.
    separator : str, optional
        What separates the values of a ``multi`` in text.
    vocabulary, transforms, tags
        As in `Feature`.
    """

    column: str
    kind: Kind = "categorical"
    separator: str | None = None
    vocabulary: str | None = None
    transforms: tuple[Transform, ...] = ()
    tags: tuple[str, ...] = ()


class LabelMap(Config, frozen=True):
    """A label read from a column of events or grades: 1 where it holds one of the given values.

    Parameters
    ----------
    column : str
        A column of text or integers; null = not observed.
    values : tuple of str or int
        What counts as 1; everything else is 0.
    """

    column: str
    values: tuple[str | int, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise InputError(f"mapping: label of column '{self.column}': give at least one value")


class HistoryRule(Config, frozen=True):
    """A history stream made from the impressions themselves.

    An event counts from the time of its impression on. Labels that arrive much later (a purchase
    the next day) would be seen too early this way; leave them out of ``where`` and ``features``.

    Parameters
    ----------
    where : str, optional
        Expression over labels that selects the events (``click``); None: every impression.
    max_len : int
        Keep this many most recent events per request.
    features : dict of str to ColumnMap
        What an event carries besides item and time; categorical or dense.
    """

    where: str | None = None
    max_len: int = 100
    features: dict[str, ColumnMap] = msgspec.field(default_factory=dict)


class ImpressionMap(Config, frozen=True):
    """Which column of a flat table plays which role.

    A request is all rows of one ``request_id``, or the impressions of one user closer than
    ``window_ms`` to the first of them. Its time is that of its earliest impression.

    Parameters
    ----------
    user, item, time : str
        Columns; rows where one is null are dropped and counted.
    request_id, window_ms : str, int
        One of the two. With ``window_ms``, ``max_candidates`` limits the size of a group.
    time_unit : {"s", "ms", "us", "ns"}
        Unit of a numeric ``time`` (and ``observed_until``); timestamps, dates and ISO 8601 text
        need none. Times without a zone are UTC.
    labels : dict of str to str or LabelMap
        Label name -> numeric or boolean column (null = not observed), or which values of a column
        of events count (``buy: {column: event, values: [buy]}``).
    label_windows_ms : dict of str to int
        Observation windows of delayed labels, judged by the column ``observed_until``.
    engaged, tasks
        As in `Schema`.
    features : dict of owner to dict of str to ColumnMap
        Owners ``user``, ``context``, ``item``, ``candidate``. History features stand in
        ``history``; clock and age features, which have no column, in ``derived``.
    ids : tuple of {"user", "item"}
        Ids that are features themselves.
    position : str, optional
        Slot in which the item was shown, becomes ``rank.exposed`` counted from ``first_position``.
    ranks : dict of str to str
        Other logged ranks: stage -> column, counted from 0.
    stage, channel : str, optional
        Columns of words; without ``stage`` every row was in the last of ``stages``.
    stages, sources
        As in `Schema`, for a cascade of other stages.
    propensity, weight : str, optional
        Numeric columns.
    scores : dict of str to str
        Score name -> column.
    history : dict of str to HistoryRule
        Streams of past events of the same user, strictly before the request's time.
    header : tuple of str
        Names of the columns of a text file that has no header line.

    Examples
    --------
    >>> mapping = ImpressionMap(
    ...     user="uid", item="vid", time="ts", time_unit="s", window_ms=600_000,
    ...     labels={"click": "is_click"}, history={"clicked": HistoryRule(where="click")},
    ...     features={"item": {"category": ColumnMap(column="cate")}},
    ... )
    >>> [feature.column for feature in mapping.schema().features]
    ['user', 'item', 'category']
    """

    user: str
    item: str
    time: str
    request_id: str | None = None
    window_ms: int | None = None
    max_candidates: int | None = None
    time_unit: TimeUnit = "ms"
    observed_until: str | None = None
    labels: dict[str, str | LabelMap] = msgspec.field(default_factory=dict)
    label_windows_ms: dict[str, int] = msgspec.field(default_factory=dict)
    engaged: str = "click"
    tasks: dict[str, str] = msgspec.field(default_factory=dict)
    features: dict[Owner, dict[str, ColumnMap]] = msgspec.field(default_factory=dict)
    derived: tuple[Feature, ...] = ()
    ids: tuple[Literal["user", "item"], ...] = ("user", "item")
    position: str | None = None
    first_position: int = 0
    ranks: dict[str, str] = msgspec.field(default_factory=dict)
    stage: str | None = None
    channel: str | None = None
    stages: tuple[str, ...] = _USUAL.stages
    sources: dict[str, tuple[str, ...]] = msgspec.field(default_factory=_USUAL.sources.copy)
    propensity: str | None = None
    weight: str | None = None
    scores: dict[str, str] = msgspec.field(default_factory=dict)
    history: dict[str, HistoryRule] = msgspec.field(default_factory=dict)
    header: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.request_id is None) == (self.window_ms is None):
            raise InputError("mapping: give either request_id (a column) or window_ms, not both")
        if self.max_candidates is not None and (self.window_ms is None or self.max_candidates < 1):
            raise InputError("mapping: max_candidates (1 or more) goes with window_ms only")
        if self.window_ms is not None and self.window_ms < 1:
            raise InputError(f"mapping: window_ms is {self.window_ms}; expected 1 or more")
        if "history" in self.features:
            raise InputError("mapping: history features go under history: STREAM: features")
        if self.stages[-1:] and self.stages[-1] in self.ranks and self.position is not None:
            raise InputError(
                f"mapping: 'position' is the rank of stage '{self.stages[-1]}'; give one of them"
            )
        for name in self.label_windows_ms:
            if name not in self.labels or self.observed_until is None:
                raise InputError(
                    f"mapping: label_windows_ms of '{name}' needs a label of that name and the "
                    "column observed_until"
                )
        for stream, rule in self.history.items():
            if rule.max_len < 1:
                raise InputError(f"mapping: history '{stream}': max_len must be 1 or more")
            for label in expression.names(rule.where) if rule.where else ():
                if label not in self.labels:
                    raise InputError(
                        f"mapping: history '{stream}' reads label '{label}'; labels here: "
                        f"{', '.join(sorted(self.labels)) or 'none'}"
                    )
        for feature in self.derived:
            if feature.stored:
                raise InputError(
                    f"mapping: feature '{feature.name}' of 'derived' needs a column; name it under "
                    f"features: {feature.owner}"
                )

    def columns(self) -> tuple[str, ...]:
        """Return every column of the table that the mapping reads, each once."""
        wanted = [self.user, self.item, self.time, self.request_id, self.observed_until]
        wanted += [self.position, self.stage, self.channel, self.propensity, self.weight]
        for group in (self.ranks, self.scores):
            wanted += group.values()
        wanted += [m if isinstance(m, str) else m.column for m in self.labels.values()]
        for maps in self.features.values():
            wanted += [m.column for m in maps.values()]
        for rule in self.history.values():
            wanted += [m.column for m in rule.features.values()]
        return tuple(dict.fromkeys(name for name in wanted if name is not None))

    def rank_columns(self) -> dict[str, str]:
        """Return stage -> column of every logged rank."""
        shown = {self.stages[-1]: self.position} if self.position is not None else {}
        return {**self.ranks, **shown}

    def schema(
        self,
        *,
        dims: dict[tuple[str, str], int] | None = None,
        channels: tuple[str, ...] = (),
    ) -> Schema:
        """Return the schema of the log, vocabularies still empty.

        Parameters
        ----------
        dims : dict, optional
            (owner, name) -> width of the vectors that the table holds.
        channels : tuple of str
            Words found in the ``channel`` column.
        """
        ids = [Feature(name=name, owner=name, kind="categorical") for name in self.ids]
        given = [
            _feature(name, owner, m, dim=(dims or {}).get((owner, name), int(m.kind == "vector")))
            for owner, maps in self.features.items()
            for name, m in maps.items()
        ]
        past = [
            _feature(name, "history", m, stream=stream)
            for stream, rule in self.history.items()
            for name, m in rule.features.items()
        ]
        return Schema(
            features=(*ids, *given, *past, *self.derived),
            streams=tuple(self.history),
            stages=self.stages,
            sources=self.sources,
            channels=channels,
            labels=tuple(
                Label(name=name, window_ms=self.label_windows_ms.get(name)) for name in self.labels
            ),
            tasks=tuple(Task(name=name, positive=text) for name, text in self.tasks.items()),
            engaged=self.engaged,
            ranks=tuple(self.rank_columns()),
            scores=tuple(self.scores),
            has_weight=self.weight is not None,
            has_propensity=self.propensity is not None,
            lineage=Lineage(made_by="impressions", notes=self.notes),
        )


def _feature(name: str, owner: Owner, m: ColumnMap, *, stream: str = "", dim: int = 0) -> Feature:
    return Feature(
        name=name,
        owner=owner,
        kind=m.kind,
        transforms=m.transforms,
        vocabulary=m.vocabulary,
        tags=m.tags,
        stream=stream,
        dim=dim,
    )
