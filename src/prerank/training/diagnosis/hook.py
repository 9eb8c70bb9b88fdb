"""Diagnosis in training, every so many updates."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from prerank.batch import RequestBatch
from prerank.training import distributed
from prerank.training.diagnosis.batch import diagnose

if TYPE_CHECKING:
    from prerank.training.combine.base import Combine
    from prerank.training.loop import Trainer

__all__ = ["KIND", "diagnose_if_due", "weights_of"]

KIND = "diagnosis"
"""``kind`` of the lines in ``metrics.jsonl``."""


def diagnose_if_due(trainer: Trainer, batch: RequestBatch) -> float:
    """Diagnose the batch of the coming update where it is due; return the seconds it took.

    Due are updates 1, 1 + n, 1 + 2n, ... for ``diagnose_every`` = n: the weights are those before
    the update, which have not seen the batch. The line carries the update's number, so that a
    resumed run, which does the update again, writes it once. Of several processes the first one
    diagnoses its share of the batch.

    Training goes on as if nothing had happened: weights, optimisers and random generators are not
    touched.

    Cost, measured on one CPU core with four sources, 128 requests of 31 candidates, models of 28k,
    176k and 615k dense weights: as much as 5 to 6.5 updates with GHCL (two backward passes per
    source), 3.5 to 4 with BCE (one per source and one for the positives). Every 50 updates that is
    10 to 13 % and 7 to 8 % of the training time; every 200, about 3 % and 2 %.
    """
    every, done = trainer.config.diagnose_every, trainer.state.step
    if every is None or done % every or distributed.rank() or not batch.num_candidates:
        return 0.0
    began = perf_counter()
    values = diagnose(
        trainer.model,
        trainer.objective,
        batch.to(trainer.device),
        weights=weights_of(trainer.combine),
        precision=trainer.config.precision,
    )
    seconds = perf_counter() - began
    trainer.log.append(done + 1, kind=KIND, epoch=trainer.epochs, seconds=seconds, **values)
    return perf_counter() - began


def weights_of(combine: Combine) -> dict[str, float] | None:
    """Return what a combine rule multiplies parts or sources by now, None where it does not.

    Examples
    --------
    >>> from prerank.training.combine import Sum
    >>> weights_of(Sum(Sum.Config(weights={"bce/click": 0.5})))
    {'bce/click': 0.5}
    """
    found = getattr(combine, "weights", None)
    if found is None:
        found = getattr(getattr(combine, "config", None), "weights", None)
    return dict(found) if found else None
