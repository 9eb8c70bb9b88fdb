"""The truths of a part, one value per candidate, and the reason where one does not exist.

==========  =====================================================================================
``T1``      engaged exposures
``T2``      exposed
``T3``      the ranker's own first ``m``, by its logged score or order (it rewards imitation)
``T4``      graded by depth: engaged 4, shown 3, the stage before 2, the one before that 1, else 0
``T5``      not shown here, but the same user engages with it in a later request of the log
``U``       true utility; only a simulated world knows it
==========  =====================================================================================

T5 reads requests after the evaluated part, so the last requests of a log have little of it.

Shapes: ``R`` requests, ``I`` candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt

from prerank import metrics
from prerank.errors import InputError, did_you_mean
from prerank.evaluation.collect import Collected
from prerank.evaluation.truth.later import LaterEngagement, Seen
from prerank.log import Log
from prerank.schema import Schema

__all__ = ["GROUPS", "TruthOptions", "Truths", "grades"]

GROUPS = ("T1", "T2", "T3", "T4", "T5", "U", "ranker", "macro", "cold")
"""What :func:`prerank.evaluate` can be asked for: truths, agreement with the ranker, the mean and
minimum over sources, cold slices."""

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


class TruthOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Which truths, and their numbers.

    Parameters
    ----------
    groups : tuple of str
        Of :data:`GROUPS`.
    quota : int, optional
        What pre-ranking keeps. Default: the median number it kept in the part.
    top_m : int, optional
        ``m`` of T3, and how many the frozen ranker shows. Default: the median number that the
        stage after pre-ranking kept.
    min_count : int
        Items and users that training saw less often are cold.
    """

    groups: tuple[str, ...] = GROUPS
    quota: int | None = None
    top_m: int | None = None
    min_count: int = 2

    def __post_init__(self) -> None:
        for name in self.groups:
            if name not in GROUPS:
                raise InputError(f"truth '{name}' is not known; {did_you_mean(name, GROUPS)}")
        for what in ("quota", "top_m", "min_count"):
            value = getattr(self, what)
            if value is not None and value < 1:
                raise InputError(f"evaluate: {what} is {value}; expected at least 1")


@dataclass(frozen=True, slots=True)
class Truths:
    """Truths of a part.

    Parameters
    ----------
    options : TruthOptions
        What was asked for.
    binary : dict of str to ndarray ``[I]`` bool
        ``T1``, ``T2``, ``T3``, ``T5``, ``U`` (the ``m`` of highest utility), and the cold slices
        ``T1:cold_item``, ``T1:cold_user`` of T1; those that exist.
    grade : ndarray ``[I]`` float64, optional
        T4.
    cold_item, cold_user : ndarray ``[I]`` bool, optional
        Seldom seen in training.
    missing : dict of str to str
        Reason by truth, ``ranker`` or ``cold``.
    quota, top_m : int, optional
        None where the log does not tell.
    """

    options: TruthOptions
    binary: dict[str, Bools] = field(default_factory=dict)
    grade: Floats | None = None
    cold_item: Bools | None = None
    cold_user: Bools | None = None
    missing: dict[str, str] = field(default_factory=dict)
    quota: int | None = None
    top_m: int | None = None

    @classmethod
    def of(cls, data: Collected, log: Log, options: TruthOptions, seed: int = 0) -> Truths:
        """Read what is needed and build the truths that were asked for."""
        groups, schema = options.groups, log.schema
        names = schema.stages
        binary, missing = {"T1": data.positive}, {}
        quota = options.quota or _kept(data, names, "prerank", 0)
        top_m = options.top_m or _kept(data, names, "prerank", 1)
        if data.shown.all():
            missing["T2"] = "every candidate was shown"
            missing["T4"] = "every candidate was shown, so depth tells no more than T1"
        else:
            binary["T2"] = data.shown
        if data.ranker is None:
            missing["ranker"] = "the log has no score or rank of a ranker"
        elif top_m is None:
            missing["T3"] = "the log has no stage 'prerank', so m must be given (top_m)"
        if data.ranker is not None and top_m is not None:
            binary["T3"] = _first(data.ranker, data, top_m, seed)
        missing.setdefault("T3", missing.get("ranker", ""))
        if "T5" in groups:
            user = np.repeat(data.user, data.lengths)
            time = np.repeat(data.time, data.lengths)
            later = LaterEngagement.of(log).after(user, data.item, time)
            binary["T5"] = later & ~data.shown
        if data.utility is None:
            missing["U"] = "only a simulated world knows the true utility"
        elif top_m is not None:
            binary["U"] = _first(data.utility, data, top_m, seed)
        cold_item = cold_user = None
        if "cold" in groups and "train" in log.parts:
            seen = Seen.of(log["train"])
            cold_item = seen.items[data.item] < options.min_count
            cold_user = np.repeat(seen.users[data.user] < options.min_count, data.lengths)
            binary["T1:cold_item"] = data.positive & cold_item
            binary["T1:cold_user"] = data.positive & cold_user
        else:
            missing["cold"] = "there is no part 'train' to count on"
        return cls(
            options=options,
            binary=binary,
            grade=None if "T4" in missing else grades(data, schema),
            cold_item=cold_item,
            cold_user=cold_user,
            missing={name: why for name, why in missing.items() if why},
            quota=quota,
            top_m=top_m,
        )


def grades(data: Collected, schema: Schema) -> Floats:
    """Return T4 ``[I]``: 4 engaged, 3 shown, 2 and 1 for the two stages before, else 0.

    The first stage (never retrieved) is 0 however few stages there are.
    """
    last = len(schema.stages) - 1
    grade = np.maximum(3.0 - (last - data.stage), 0.0)
    grade[(data.stage == 0) & (last > 0)] = 0.0
    grade[data.positive] = 4.0
    return np.asarray(grade)


def _kept(data: Collected, stages: tuple[str, ...], name: str, further: int) -> int | None:
    """Return the median number of candidates that a stage (or one after it) kept, at least 1."""
    if name not in stages or stages.index(name) + further >= len(stages):
        return None
    kept = data.stage >= stages.index(name) + further
    counts = np.diff(data.offsets_of(kept))
    counts = counts[data.lengths > 0]
    return max(1, int(np.median(counts))) if len(counts) else None


def _first(value: Floats, data: Collected, m: int, seed: int) -> Bools:
    """Return the ``m`` candidates of highest known value of each request, ``[I]``."""
    order = metrics.top_order(
        np.where(np.isnan(value), -np.inf, value), data.offsets, seed=seed, row=data.row
    )
    place = np.arange(len(order)) - np.repeat(data.offsets[:-1], data.lengths)
    first = np.zeros(len(order), dtype=np.bool_)
    first[order[place < m]] = True
    return first & ~np.isnan(value)
