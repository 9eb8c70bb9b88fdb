"""Leaks that a log or a model shows when it is asked: evidence read as input, undated statistics.

The log's own order in time, histories and item statistics are checked when it is written and by
``prerank data check``; here is what only an evaluation can see.
"""

from __future__ import annotations

import numpy as np

from prerank.errors import InputError
from prerank.evaluation.collect import ModelScorer
from prerank.log import Columns, Log, Part
from prerank.log.format.columns import CANDIDATES, Group
from prerank.log.inputs.evidence import build_evidence
from prerank.schema import ITEM_STATS_FEATURE, Schema

__all__ = ["evidence_columns", "refuse_evidence_readers", "undated_statistics"]

_PLAIN = ("stage", "weight", "propensity", "sample_prob", "scored_online")


def undated_statistics(schema: Schema) -> tuple[str, ...]:
    """Return item features tagged ``statistic`` that have one value for all time.

    A value counted over the whole log knows the labels of every part. Item statistics with dates
    are candidate features ``of: item_stats``, joined strictly before the request.

    Examples
    --------
    >>> from prerank.schema import Feature, Label
    >>> ctr = Feature(name="ctr", owner="item", kind="dense", tags=("statistic",))
    >>> undated_statistics(Schema(features=(ctr,), labels=(Label(name="click"),)))
    ('item.ctr',)
    """
    return tuple(
        f"{f.owner}.{f.name}"
        for f in schema.features
        if "statistic" in f.tags and f.owner == "item" and f.of != ITEM_STATS_FEATURE
    )


def evidence_columns(group: Group) -> list[str]:
    """Return the candidate columns that hold evidence."""
    starts = ("labels.", "rank.", "score.")
    return [name for name in group.values if name in _PLAIN or name.startswith(starts)]


def refuse_evidence_readers(scorers: dict[str, ModelScorer], part: Part, *, size: int = 32) -> None:
    """Score a few requests again with their evidence turned round; logits must not move.

    Raises
    ------
    InputError
        A model whose logits change; it and the column are named.
    """
    columns = next(part.columns(size), None)
    if columns is None:
        return
    log = part.log
    names = evidence_columns(columns.candidates)
    for name, scorer in scorers.items():
        before = _score(scorer, columns, log)
        if np.array_equal(before, _score(scorer, _reversed(columns, names), log), equal_nan=True):
            continue
        for one in names:
            if not np.array_equal(
                before, _score(scorer, _reversed(columns, [one]), log), equal_nan=True
            ):
                raise InputError(
                    f"evaluate: '{name}' reads '{one}', which is evidence: what happened after "
                    "the request; no model may read it"
                )
        raise InputError(f"evaluate: '{name}' does not repeat its logits; it draws when it scores")


def _score(scorer: ModelScorer, columns: Columns, log: Log) -> np.ndarray:
    return scorer(columns, log, build_evidence(columns, log.schema, log.schema))


def _reversed(columns: Columns, names: list[str]) -> Columns:
    """Return the requests with some candidate columns in reverse order."""
    group = columns.candidates
    values = {n: v[::-1].copy() if n in names else v for n, v in group.values.items()}
    return Columns(columns.scalars, {**columns.groups, CANDIDATES: Group(group.offsets, values)})
