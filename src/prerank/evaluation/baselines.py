"""Scorers that learn nothing beyond counts: the rows every table of results needs.

Counted on the training part: ``popularity`` (exposures with known engagement), ``item_mean``
(smoothed rate of engagement of exposures), ``item_mean:LABEL`` (smoothed mean of a label over
exposures), ``item_mean+user_mean`` (that of the user added). Not counted: ``random``, ``retrieval``
(the logged rank or score of the stage ``retrieval``; what it did not order comes last, unless
every candidate of a request has the score, which then decides), ``slot``
(the log's own order: what was shown by slot, then the rest as listed), ``slate_size`` (requests of
fewer candidates first, which says nothing within one).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prerank.batch import Evidence
from prerank.errors import InputError, did_you_mean
from prerank.evaluation.collect import Kind, Scorer, Scores
from prerank.log import Columns, Log, Part
from prerank.log.inputs.evidence import build_evidence
from prerank.rng import stream, uniform

__all__ = ["DEFAULT_BASELINES", "make_baselines", "why_no_baseline"]

DEFAULT_BASELINES = ("random", "popularity", "retrieval", "item_mean", "item_mean+user_mean")
_SIMPLE = (*DEFAULT_BASELINES, "slot", "slate_size")
_RETRIEVAL = "retrieval"
_PRIOR = 10.0
_RANDOM = stream("baseline/random")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Means:
    """Smoothed means by index: ``(sum + 10 * overall mean) / (count + 10)``."""

    value: Floats
    count: Floats

    @classmethod
    def of(cls, index: npt.NDArray[np.int64], values: Floats, size: int) -> _Means:
        count = np.bincount(index, minlength=size).astype(np.float64)
        total = np.bincount(index, weights=values, minlength=size)
        mean = float(values.mean()) if len(values) else 0.0
        return cls((total + _PRIOR * mean) / (count + _PRIOR), count)


@dataclass(frozen=True, slots=True)
class _Random:
    seed: int
    kind: Kind = "score"

    def __call__(self, columns: Columns, log: Log, evidence: Evidence) -> Scores:
        lengths = np.diff(columns.candidates.offsets)
        row = np.repeat(columns.scalars["row"], lengths)
        return uniform(self.seed, _RANDOM, row, evidence.item.numpy())[:, None]


@dataclass(frozen=True, slots=True)
class _Lookup:
    item: Floats
    user: Floats | None = None
    kind: Kind = "score"

    def __call__(self, columns: Columns, log: Log, evidence: Evidence) -> Scores:
        scores = self.item[evidence.item.numpy()]
        if self.user is not None:
            lengths = np.diff(columns.candidates.offsets)
            scores = scores + np.repeat(self.user[evidence.user.numpy()], lengths)
        return np.asarray(scores[:, None])


@dataclass(frozen=True, slots=True)
class _Place:
    """Minus the place in the log's own order, or the length of the list."""

    size: bool
    kind: Kind = "score"

    def __call__(self, columns: Columns, log: Log, evidence: Evidence) -> Scores:
        offsets = columns.candidates.offsets
        lengths = np.diff(offsets)
        if self.size:
            return -np.repeat(lengths, lengths).astype(np.float64)[:, None]
        place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        if "exposed" in evidence.ranks:
            slot = evidence.ranks["exposed"].numpy()
            place = np.where(slot >= 0, slot, place + np.repeat(lengths, lengths))
        return -place.astype(np.float64)[:, None]


@dataclass(frozen=True, slots=True)
class _Retrieval:
    """The order in which retrieval found the candidates, as far as it is logged."""

    kind: Kind = "order"

    def __call__(self, columns: Columns, log: Log, evidence: Evidence) -> Scores:
        score = rank = None
        if _RETRIEVAL in evidence.scores:
            known = evidence.scores[_RETRIEVAL].double().numpy()
            score = np.where(np.isnan(known), np.finfo(np.float64).min, known)
        if _RETRIEVAL in evidence.ranks:
            place = evidence.ranks[_RETRIEVAL].numpy().astype(np.float64)
            rank = np.where(place >= 0, -place, -float(len(place)) - 1)
        if score is None or rank is None:
            value = score if rank is None else rank
        else:
            # Ranks stop at the list; scores of all go on beyond it, among what nobody retrieved.
            lengths = np.diff(columns.candidates.offsets)
            request_of = np.repeat(np.arange(len(lengths)), lengths)
            missing = np.bincount(request_of[np.isnan(known)], minlength=len(lengths))
            value = np.where(missing[request_of] == 0, score, rank)
        return np.asarray(value)[:, None]


def why_no_baseline(name: str, log: Log) -> str | None:
    """Return why a log cannot have a baseline, None where it can."""
    schema = log.schema
    if name == _RETRIEVAL and _RETRIEVAL not in (*schema.ranks, *schema.scores):
        return "the order of retrieval is not logged (candidates.rank.retrieval)"
    return None


def make_baselines(
    names: Iterable[str], train: Part | None, log: Log, seed: int
) -> dict[str, Scorer]:
    """Return the named baselines.

    Parameters
    ----------
    names : iterable of str
        See the top of this file.
    train : Part or None
        What to count on; whoever evaluates these rows too sees their labels twice.
    log : Log
        The log of that part and of the part to score.
    seed : int
        Of ``random``.

    Raises
    ------
    InputError
        An unknown name; a counted baseline without a training part.
    """
    names = tuple(names)
    labels = [label.name for label in log.schema.labels]
    known = (*_SIMPLE, *(f"item_mean:{label}" for label in labels))
    for name in names:
        if name not in known:
            raise InputError(f"baseline '{name}' is not known; {did_you_mean(name, known)}")
    scorers: dict[str, Scorer] = {}
    counted = [n for n in names if n.startswith("item_mean") or n == "popularity"]
    means: dict[str, tuple[_Means, _Means]] = {}
    if counted:
        if train is None:
            raise InputError(
                f"{log.path}: baseline '{counted[0]}' needs a part 'train' to count on; make one "
                "(prerank data split), or choose others: random, slot, slate_size"
            )
        wanted = {n.partition(":")[2] for n in counted}
        means = _count(train, log, wanted)
    for name in names:
        match name:
            case "random":
                scorers[name] = _Random(seed)
            case "slot" | "slate_size":
                scorers[name] = _Place(size=name == "slate_size")
            case "retrieval":
                if (why := why_no_baseline(name, log)) is not None:
                    raise InputError(f"{log.path}: baseline 'retrieval': {why}; leave it out")
                scorers[name] = _Retrieval()
            case "popularity":
                scorers[name] = _Lookup(means[""][0].count)
            case "item_mean+user_mean":
                scorers[name] = _Lookup(means[""][0].value, means[""][1].value)
            case _:
                scorers[name] = _Lookup(means[name.partition(":")[2]][0].value)
    return scorers


def _count(train: Part, log: Log, labels: Iterable[str]) -> dict[str, tuple[_Means, _Means]]:
    collected: dict[str, list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats]]] = {
        label: [] for label in labels
    }
    collected.setdefault("", [])
    last_stage = len(log.schema.stages) - 1
    for columns in train.columns(4096):
        evidence = build_evidence(columns, log.schema, log.schema)
        lengths = np.diff(columns.candidates.offsets)
        user = np.repeat(evidence.user.numpy(), lengths)
        item = evidence.item.numpy()
        shown = (evidence.stage == last_stage).numpy()
        for label, rows in collected.items():
            values = evidence.labels[label] if label else evidence.engaged
            y = values.numpy().astype(np.float64)
            known = shown & ~np.isnan(y)
            rows.append((item[known], user[known], y[known]))
    result = {}
    for label, rows in collected.items():
        item, user, y = (np.concatenate([r[k] for r in rows]) for k in range(3))
        result[label] = (
            _Means.of(item, y, log.schema.size("item")),
            _Means.of(user, y, log.schema.size("user")),
        )
    return result
