"""The schema of a request log: features, stages, sources, labels and tasks."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import msgspec

from prerank import expression
from prerank.config import Config
from prerank.errors import InputError, did_you_mean

__all__ = [
    "ITEM_STATS_FEATURE",
    "NUM_RESERVED",
    "Feature",
    "Kind",
    "Label",
    "Lineage",
    "Owner",
    "Schema",
    "Task",
    "Transform",
]

Owner = Literal["user", "context", "item", "candidate", "history"]
Kind = Literal["categorical", "multi", "dense", "vector"]
Transform = Literal["log1p", "standard", "quantile", "hour", "weekday", "age_of"]

ITEM_STATS_FEATURE = "item_stats"
"""``of`` of a candidate feature that is looked up in the item statistics."""

NUM_RESERVED = 2
"""Rows 0 (missing) and 1 (unknown) of every vocabulary."""

_CLOCK_SIZE = {"hour": 24, "weekday": 7}
_ID_FEATURES = {"user": "user", "item": "item"}
_TAKEN: dict[str, tuple[str, ...]] = {
    "user": ("request_id", "user", "time", "observed_until"),
    "context": ("request_id", "user", "time", "observed_until"),
    "item": ("item_id", "first_seen_ms"),
    "history": ("item", "time"),
    "candidate": (
        "item",
        "stage",
        "channel",
        "weight",
        "propensity",
        "sample_prob",
        "scored_online",
    ),
}


class Feature(Config, frozen=True):
    """One model-visible feature.

    Parameters
    ----------
    name : str
        Unique per owner (and stream). The item feature ``item`` is the item's own id, the user
        feature ``user`` the user's own id; neither has a column of its own.
    owner : {"user", "context", "item", "candidate", "history"}
        What the value belongs to; decides how often it is stored and computed.
    kind : {"categorical", "multi", "dense", "vector"}
        ``multi`` is a multi-valued categorical; ``dense`` gets a missing indicator.
    transforms : tuple of str
        Applied in order: ``log1p``, ``standard``, ``quantile`` to dense values; ``hour``,
        ``weekday`` make a categorical context feature from the request time (UTC); ``age_of``
        makes a dense candidate feature: days from the item's time ``of`` to the request.
    of : str, optional
        For ``age_of``: a dense item feature that holds milliseconds since the epoch. Or
        ``item_stats``: the item's value of that name as of the request.
    vocabulary : str, optional
        Name of the vocabulary; features may share one. Default: the feature's name.
    dim : int
        Width of a ``vector``.
    stream : str
        For owner ``history``: the stream whose events carry the feature.
    tags : tuple of str
        Free words, for example ``statistic`` for values that were computed from data.
    """

    name: str
    owner: Owner
    kind: Kind
    transforms: tuple[Transform, ...] = ()
    of: str | None = None
    vocabulary: str | None = None
    dim: int = 0
    stream: str = ""
    tags: tuple[str, ...] = ()

    @property
    def vocab(self) -> str:
        """Name of the vocabulary of a categorical feature."""
        return self.vocabulary or self.name

    @property
    def clock(self) -> str | None:
        """``hour`` or ``weekday`` when the value comes from the request time, else None."""
        return next((t for t in self.transforms if t in _CLOCK_SIZE), None)

    @property
    def stored(self) -> bool:
        """Whether requests or items have a column for it (derived features have none)."""
        is_id = _ID_FEATURES.get(self.owner) == self.name
        derived = self.clock is not None or "age_of" in self.transforms
        return not (is_id or derived or self.of == ITEM_STATS_FEATURE)

    @property
    def column(self) -> str:
        """Name of its column in ``requests`` or ``items.parquet``."""
        match self.owner:
            case "history":
                return f"history.{self.stream}.{self.name}"
            case "candidate":
                return f"candidates.{self.name}"
            case _:
                return self.name


class Label(Config, frozen=True):
    """One kind of feedback, a list column ``labels.NAME``; null = not observed.

    Parameters
    ----------
    name : str
        The label, for example ``click``.
    window_ms : int, optional
        For delayed labels: a null is negative once this long has passed since the request
        (judged by ``observed_until``), unknown before. None: a null stays unknown.
    """

    name: str
    window_ms: int | None = None


class Task(Config, frozen=True):
    """One output of a model: an expression over labels, read into {1, 0, unknown}."""

    name: str
    positive: str


class Lineage(Config, frozen=True):
    """Where a log came from.

    ``log_id`` names it: indices are comparable within it only, and stay so when the log grows,
    which counts ``revision`` up.
    """

    log_id: str = ""
    revision: int = 0
    made_by: str = ""
    parent: str | None = None
    seed: int | None = None
    notes: tuple[str, ...] = ()


_STAGES = ("pool", "retrieval", "prerank", "rank", "exposed")
_SOURCES: dict[str, tuple[str, ...]] = {
    "random": ("pool",),
    "prerank": ("retrieval",),
    "rank": ("prerank", "rank"),
    "exposed": ("exposed",),
}


class Schema(Config, frozen=True):
    """What a request log holds and what it means.

    Parameters
    ----------
    features : tuple of Feature
        The model-visible features.
    streams : tuple of str
        History streams, each with ``item`` and ``time`` lists.
    stages : tuple of str
        The logged cascade from its entrance to exposure; a candidate's ``stage`` is the deepest
        list it was kept in. The last one means "shown".
    sources : dict of str to tuple of str
        Groups of negatives, easy to hard, each with the stages its members ended in. Those of the
        last stage count as negatives only where they are known not to be engaged.
    channels : tuple of str
        Retrievals that produce candidates.
    labels, tasks : tuple of Label, tuple of Task
        Feedback columns and what models predict from them. No tasks: one task ``engaged``.
    engaged : str
        The positive of the whole log, an expression over labels.
    ranks, scores : tuple of str
        Stages with a logged ``candidates.rank.STAGE``; logged ``candidates.score.NAME``.
    vocabularies : dict of str to int
        Rows of every vocabulary including the two reserved ones.

    Raises
    ------
    InputError
        Two features of one name, an unknown stage, label or stream, an impossible transform.

    Examples
    --------
    >>> schema = Schema(
    ...     features=(
    ...         Feature(name="item", owner="item", kind="categorical"),
    ...         Feature(name="hour", owner="context", kind="categorical", transforms=("hour",)),
    ...     ),
    ...     labels=(Label(name="click"),),
    ...     engaged="click",
    ... )
    >>> [f.name for f in schema.of("context", "categorical")], schema.size("hour")
    (['hour'], 26)
    """

    features: tuple[Feature, ...] = ()
    streams: tuple[str, ...] = ()
    stages: tuple[str, ...] = _STAGES
    sources: dict[str, tuple[str, ...]] = msgspec.field(default_factory=_SOURCES.copy)
    channels: tuple[str, ...] = ()
    labels: tuple[Label, ...] = ()
    tasks: tuple[Task, ...] = ()
    engaged: str = "click"
    ranks: tuple[str, ...] = ()
    scores: tuple[str, ...] = ()
    has_weight: bool = False
    has_propensity: bool = False
    has_sample_prob: bool = False
    has_scored_online: bool = False
    vocabularies: dict[str, int] = msgspec.field(default_factory=dict)
    lineage: Lineage = Lineage()
    time_unit: Literal["ms"] = "ms"
    version: Literal[1] = 1

    def __post_init__(self) -> None:
        _check_features(self)
        _check_stages(self)
        known = [label.name for label in self.labels]
        for text in (self.engaged, *(task.positive for task in self.tasks)):
            for name in expression.names(text):
                if name not in known:
                    raise InputError(
                        f"schema: expression '{text}' reads label '{name}', which is not declared; "
                        f"{did_you_mean(name, known)}"
                    )

    def of(self, owner: Owner, kind: Kind, stream: str = "") -> tuple[Feature, ...]:
        """Return the model-visible features of one owner, kind and stream, in batch order.

        An item time that only carries an ``age_of`` feature is stored but not visible.
        """
        carriers = {f.of for f in self.features if f.of} if owner == "item" else set()
        return tuple(
            f
            for f in self.features
            if f.owner == owner
            and f.kind == kind
            and (owner != "history" or f.stream == stream)
            and f.name not in carriers
        )

    def stored(self, *owners: Owner) -> tuple[Feature, ...]:
        """Return the features of the given owners that have a column of their own."""
        return tuple(f for f in self.features if f.owner in owners and f.stored)

    def size(self, vocab: str) -> int:
        """Return the rows of a vocabulary, including the two reserved ones."""
        if vocab in self.vocabularies:
            return self.vocabularies[vocab]
        for feature in self.features:
            if feature.clock and feature.vocab == vocab:
                return NUM_RESERVED + _CLOCK_SIZE[feature.clock]
        return NUM_RESERVED

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the model outputs, in the order of ``Scores.logits``' columns."""
        return tuple(task.name for task in self.tasks) or ("engaged",)

    @property
    def task_expressions(self) -> tuple[str, ...]:
        """Expressions of the model outputs, in the same order."""
        return tuple(task.positive for task in self.tasks) or (self.engaged,)

    @property
    def source_names(self) -> tuple[str, ...]:
        """Sources from easy to hard; their order is the code in ``evidence.source``."""
        return tuple(self.sources)


def _check_features(schema: Schema) -> None:
    names = Counter((f.owner, f.stream, f.name) for f in schema.features)
    for (owner, _, name), count in names.items():
        if count > 1:
            raise InputError(f"schema: {count} {owner} features are named '{name}'; rename one")
    columns = Counter(f.column for f in schema.features if f.stored and f.owner != "item")
    for f in schema.features:
        dotted = f.owner == "candidate" and f.name.startswith(("rank.", "score."))
        if f.stored and (f.name in _TAKEN[f.owner] or dotted):
            raise InputError(
                f"schema: {f.owner} feature '{f.name}': the log has a column of that "
                "name already; rename the feature"
            )
        if f.stored and f.owner != "item" and columns[f.column] > 1:
            raise InputError(f"schema: two features share column '{f.column}'; rename one")
    items = {f.name for f in schema.features if f.owner == "item" and f.kind == "dense"}
    for f in schema.features:
        where = f"schema: feature '{f.name}'"
        if f.owner == "history" and f.stream not in schema.streams:
            raise InputError(
                f"{where}: no history stream '{f.stream}'; {did_you_mean(f.stream, schema.streams)}"
            )
        if f.owner != "history" and f.stream:
            raise InputError(f"{where}: only history features name a stream")
        if f.clock and not (f.owner == "context" and f.kind == "categorical"):
            raise InputError(f"{where}: {f.clock} makes a categorical context feature")
        if "age_of" in f.transforms:
            if not (f.owner == "candidate" and f.kind == "dense" and f.transforms[0] == "age_of"):
                raise InputError(
                    f"{where}: age_of makes a dense candidate feature and is its first transform"
                )
            if f.of not in items:
                raise InputError(
                    f"{where}: age_of needs 'of', a dense item feature in ms; "
                    f"{did_you_mean(str(f.of), items)}"
                )
        elif f.of is not None and (f.of, f.owner, f.kind) != (
            ITEM_STATS_FEATURE,
            "candidate",
            "dense",
        ):
            raise InputError(
                f"{where}: 'of' belongs to age_of, or is {ITEM_STATS_FEATURE} for a dense "
                "candidate feature"
            )
        elif f.transforms and not f.clock and f.kind != "dense":
            raise InputError(f"{where}: {f.transforms[0]} applies to dense features, not {f.kind}")
        if "standard" in f.transforms and "quantile" in f.transforms:
            raise InputError(f"{where}: standard and quantile exclude each other; choose one")
        if f.owner in ("candidate", "history") and f.kind not in ("categorical", "dense"):
            raise InputError(
                f"{where}: a {f.owner} feature is categorical or dense, not {f.kind}; "
                "multi-valued ones and vectors belong to the item, the user or the context"
            )
        if (f.kind == "vector") != (f.dim > 0):
            raise InputError(f"{where}: 'dim' is given for a vector, and only for one")


def _check_stages(schema: Schema) -> None:
    for what, words in (
        ("stream", schema.streams),
        ("channel", schema.channels),
        ("label", [label.name for label in schema.labels]),
        ("task", [task.name for task in schema.tasks]),
        ("rank", schema.ranks),
        ("score", schema.scores),
    ):
        twice = [word for word, count in Counter(words).items() if count > 1]
        if twice:
            raise InputError(f"schema: {what} '{twice[0]}' is declared twice")
    if not schema.stages or len(set(schema.stages)) != len(schema.stages):
        raise InputError(f"schema: stages must be distinct and not empty, got {schema.stages}")
    owner_of: dict[str, str] = {}
    for source, stages in schema.sources.items():
        for stage in stages:
            if stage not in schema.stages:
                raise InputError(
                    f"schema: source '{source}' names stage '{stage}'; "
                    f"{did_you_mean(stage, schema.stages)}"
                )
            if owner_of.setdefault(stage, source) != source:
                raise InputError(
                    f"schema: stage '{stage}' is in two sources, '{owner_of[stage]}' and '{source}'"
                )
    for stage in schema.ranks:
        if stage not in schema.stages:
            raise InputError(
                f"schema: rank of stage '{stage}'; {did_you_mean(stage, schema.stages)}"
            )
