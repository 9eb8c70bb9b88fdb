"""How new requests differ from those that a run was trained on."""

from __future__ import annotations

import math

import msgspec
import numpy as np

from prerank import expression
from prerank.log import Part, RowRanges, Transforms
from prerank.log.format.vocab import UNKNOWN_ROW
from prerank.log.inputs.evidence import label_columns
from prerank.models.base import Model
from prerank.objectives.base import Objective
from prerank.schema import NUM_RESERVED
from prerank.training.combine import Combine
from prerank.training.run import TrainedRows
from prerank.training.validate import validate

__all__ = ["Drift", "VocabularyDrift", "measure_drift"]


class VocabularyDrift(msgspec.Struct, frozen=True):
    """Ids of one vocabulary in the new requests.

    Parameters
    ----------
    ids, new_ids : int
        Distinct ids, and those that the run scores as unknown.
    new_share : float
        Share of occurrences that are of such ids.
    """

    ids: int
    new_ids: int
    new_share: float


class Drift(msgspec.Struct, frozen=True):
    """A drift report.

    Parameters
    ----------
    vocabularies : dict of str to VocabularyDrift
        By vocabulary.
    dense : dict of str to float
        By column: mean of the new values minus the mean in training, in standard deviations of
        training (after ``log1p`` where the feature has it).
    engaged_rate_before, engaged_rate : float, optional
        Share engaged of the exposures whose engagement is known, in the run's training rows (None
        where they are of another log) and in the new requests.
    before_training : dict of str to float
        ``loss``, ``auc``, ``gauc`` of the run on the new requests.
    """

    vocabularies: dict[str, VocabularyDrift]
    dense: dict[str, float]
    engaged_rate_before: float | None
    engaged_rate: float | None
    before_training: dict[str, float]


def measure_drift(
    model: Model,
    part: Part,
    fresh: Transforms,
    objective: Objective,
    combine: Combine,
    *,
    trained: TrainedRows,
    batch_size: int,
) -> Drift:
    """Compare new requests with what a model was trained on.

    Parameters
    ----------
    model : Model
        Trained.
    part : Part
        The new requests.
    fresh : Transforms
        Fitted on them.
    objective, combine
        What the loss is of.
    trained : TrainedRows
        What the model was trained on.
    batch_size : int
        Requests per batch.
    """
    old = model.transforms
    assert old is not None
    maps = old.assembler(part.log).maps
    vocabularies = {}
    for name in old.vocabularies:
        counts = fresh.counts[name].copy()
        counts[:NUM_RESERVED] = 0
        new = maps[name][: len(counts)] == UNKNOWN_ROW
        total = max(int(counts.sum()), 1)
        vocabularies[name] = VocabularyDrift(
            int((counts > 0).sum()), int((counts[new] > 0).sum()), float(counts[new].sum() / total)
        )
    dense = {c: (fresh.dense[c].mean - fit.mean) / fit.std for c, fit in old.dense.items()}
    before = None
    if trained.log_id == part.log.schema.lineage.log_id:
        rows = RowRanges(np.array(trained.rows, dtype=np.int64))
        before = _engaged_rate(Part(part.log, rows, trained.part))
    metrics = validate(model, part, objective, combine, batch_size=batch_size)
    return Drift(
        vocabularies,
        dense,
        before,
        _engaged_rate(part),
        {k: v for k, v in metrics.items() if "/" not in k and math.isfinite(v)},
    )


def _engaged_rate(part: Part) -> float | None:
    schema, engaged, known = part.log.schema, 0, 0
    for columns in part.columns(4096):
        stage = columns.candidates.values["stage"]
        value = expression.evaluate(schema.engaged, label_columns(columns, schema))
        value = np.broadcast_to(value, len(stage))[stage == len(schema.stages) - 1]
        engaged += int((value == 1).sum())
        known += int((~np.isnan(value)).sum())
    return engaged / known if known else None
