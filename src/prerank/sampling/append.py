"""Candidates that a request keeps, and drawn ones behind them, as columns.

Shapes: ``R`` requests, ``K`` kept candidates, ``M`` drawn ones.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from prerank.log.format.columns import CANDIDATES, Columns, Group
from prerank.rng import stream, uniform
from prerank.sampling.draw import Drawn
from prerank.schema import Schema

__all__ = ["CandidateFeatures", "with_drawn"]

CandidateFeatures = Literal["borrow", "missing"]

Index = npt.NDArray[np.int64]

_BORROW = stream("sampling/borrow")
_NULL = -1


def with_drawn(
    columns: Columns,
    kept: Index,
    chance: npt.NDArray[np.float32],
    drawn: Drawn,
    *,
    schema: Schema,
    stage: str,
    keys: Index,
    features: CandidateFeatures,
) -> Columns:
    """Return the requests with the kept candidates, in their order, then the drawn ones.

    A drawn item has no labels, ranks, scores or channel, and was not scored online.

    Parameters
    ----------
    columns : Columns
        The requests.
    kept : ndarray ``[K]`` int64
        Positions of the candidates to keep, ascending.
    chance : ndarray ``[K]`` float32
        Their ``sample_prob``.
    drawn : Drawn
        From the item pool.
    schema : Schema
        Of the log.
    stage : str
        That of drawn items.
    keys : ndarray ``[R]`` int64
        Of the draws of each request.
    features : {"borrow", "missing"}
        Where the candidate features of drawn items come from.
    """
    group, num = columns.candidates, columns.num_requests
    of_kept = np.searchsorted(group.offsets, kept, side="right") - 1
    num_kept = np.bincount(of_kept, minlength=num)
    num_drawn = np.bincount(drawn.request, minlength=num)
    before = np.cumsum(num_drawn) - num_drawn
    offsets = np.concatenate([[0], np.cumsum(num_kept + num_drawn)]).astype(np.int64)
    to_kept = np.arange(len(kept)) + before[of_kept]
    to_drawn = np.arange(len(drawn.request)) + np.cumsum(num_kept)[drawn.request]
    donor = None
    if features == "borrow":
        donor = _donors(group, drawn, keys, schema.stages.index(stage))
    code = schema.stages.index(stage)
    given: dict[str, Any] = {"item": drawn.item, "stage": code, "channel": _NULL}
    given |= {f"rank.{name}": _NULL for name in schema.ranks}
    given |= {"weight": 1.0, "sample_prob": np.nan, "scored_online": False}
    candidate_features = {f.name for f in schema.stored("candidate")}
    values: dict[str, npt.NDArray[Any]] = {}
    for name, column in group.values.items():
        out = np.empty(offsets[-1], dtype=column.dtype)
        out[to_kept] = column[kept]
        if name in candidate_features:
            out[to_drawn] = _borrowed(column, donor)
        else:
            out[to_drawn] = given.get(name, np.nan)
        values[name] = out
    values["sample_prob"] = np.empty(offsets[-1], dtype=np.float32)
    values["sample_prob"][to_kept] = chance
    values["sample_prob"][to_drawn] = drawn.chance
    return Columns(columns.scalars, {**columns.groups, CANDIDATES: Group(offsets, values)})


def _donors(group: Group, drawn: Drawn, keys: Index, code: int) -> Index:
    """Return a uniformly drawn retrieved candidate of the same request ``[M]``; -1: it has none."""
    retrieved = np.flatnonzero(group.values["stage"] != code)
    offsets = np.searchsorted(retrieved, group.offsets)
    first, length = offsets[drawn.request], np.diff(offsets)[drawn.request]
    at = first + (uniform(keys[drawn.request], _BORROW, drawn.item) * length).astype(np.int64)
    donor: Index = np.full(len(at), -1, dtype=np.int64)
    found = length > 0
    donor[found] = retrieved[at[found]]
    return donor


def _borrowed(column: npt.NDArray[Any], donor: Index | None) -> npt.NDArray[Any] | float:
    missing = np.nan if np.issubdtype(column.dtype, np.floating) else 0
    if donor is None or not len(column):
        return missing
    return np.where(donor >= 0, column[donor], np.asarray(missing, dtype=column.dtype))
