"""One pass over a part: what happened, and what every scorer says of it.

Shapes: ``R`` requests, ``I`` candidates, ``T`` tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from prerank.batch import Evidence
from prerank.cascade import Cascade
from prerank.errors import InputError
from prerank.log import Columns, Log, Part
from prerank.log.columns import CANDIDATES
from prerank.log.evidence import build_evidence
from prerank.models.base import Model

__all__ = ["CascadeScorer", "Collected", "ModelScorer", "Scorer", "collect"]

Kind = Literal["logit", "score", "order"]
Scores = npt.NDArray[np.float64]


class Scorer(Protocol):
    """Anything that scores candidates.

    Its ``kind`` is ``logit`` (comparable between requests, a probability), ``score`` (comparable
    between requests) or ``order`` (only within a request).
    """

    @property
    def kind(self) -> Kind:
        """What the numbers mean."""
        ...

    def __call__(self, columns: Columns, log: Log, evidence: Evidence) -> Scores:
        """Return ``[I, T]`` logits, or ``[I, 1]`` values."""
        ...


class ModelScorer:
    """Scores with a model in eval mode."""

    kind: Kind = "logit"

    def __init__(self, model: Model, device: str = "cpu") -> None:
        if model.transforms is None:
            raise InputError("evaluate: the model was not trained; fit it or load a run first")
        self.model = model.to(device).eval()
        self.device = device

    @torch.inference_mode()
    def __call__(self, columns: Columns, log: Log, evidence: Evidence) -> Scores:
        """Return the logits ``[I, T]``."""
        assert self.model.transforms is not None
        batch = self.model.transforms.batch(columns, log)
        logits = self.model(batch.inputs.to(self.device)).logits
        return np.asarray(logits.double().cpu().numpy())


class CascadeScorer:
    """Scores with a cascade: minus the place in the request's order."""

    kind: Kind = "order"

    def __init__(self, cascade: Cascade, device: str = "cpu") -> None:
        self.scorers = [ModelScorer(model, device) for model in cascade.models]
        self.cascade = cascade
        self.device = device

    def __call__(self, columns: Columns, log: Log, evidence: Evidence) -> Scores:
        """Return minus the positions ``[I, 1]``."""
        inputs = []
        for model in self.cascade.models:
            assert model.transforms is not None
            inputs.append(model.transforms.batch(columns, log).inputs.to(self.device))
        position = self.cascade.rank(inputs).position
        return -position.double().cpu().numpy()[:, None]


@dataclass(frozen=True, slots=True)
class Collected:
    """A part with the scores of every scorer.

    Parameters
    ----------
    row, user : ndarray ``[R]`` int64
        Log row and user index of each request.
    offsets : ndarray ``[R + 1]`` int64
        Where each request's candidates begin.
    item, stage, source : ndarray ``[I]`` int64
        Item index, stage code, source code.
    engaged : ndarray ``[I]`` float32
        1, 0, NaN.
    targets : ndarray ``[I, T]`` float32
        Tasks.
    scores : dict of str to ndarray ``[I, T]`` or ``[I, 1]``
        By scorer.
    kinds : dict of str to str
        What each scorer's numbers mean.
    """

    row: npt.NDArray[np.int64]
    user: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    item: npt.NDArray[np.int64]
    stage: npt.NDArray[np.int64]
    source: npt.NDArray[np.int64]
    engaged: npt.NDArray[np.float32]
    targets: npt.NDArray[np.float32]
    scores: dict[str, Scores]
    kinds: dict[str, Kind]
    source_names: tuple[str, ...]

    @property
    def request_of(self) -> npt.NDArray[np.int64]:
        """Request of each candidate ``[I]``."""
        return np.repeat(np.arange(len(self.row)), np.diff(self.offsets))

    def offsets_of(self, chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """Return the offsets ``[R + 1]`` of a subset of the candidates ``[I]``."""
        before = np.concatenate([[0], np.cumsum(chosen)])
        return before[self.offsets].astype(np.int64)


def collect(
    part: Part,
    scorers: Mapping[str, Scorer],
    *,
    batch_size: int = 256,
    progress: Callable[[int], None] | None = None,
) -> Collected:
    """Read a part once and score it with every scorer.

    Raises
    ------
    InputError
        The part is empty, or a score is not finite (the scorer and request are named).
    """
    log = part.log
    pieces: dict[str, list[npt.NDArray[Any]]] = {}
    scores: dict[str, list[Scores]] = {name: [] for name in scorers}
    lengths: list[npt.NDArray[np.int64]] = []
    for columns in part.columns(batch_size):
        evidence = build_evidence(columns, log.schema, log.schema)
        for name in ("row", "user", "item", "stage", "source", "engaged", "targets"):
            pieces.setdefault(name, []).append(getattr(evidence, name).numpy())
        lengths.append(np.diff(columns.groups[CANDIDATES].offsets))
        for name, scorer in scorers.items():
            values = scorer(columns, log, evidence)
            if not np.isfinite(values).all():
                bad = np.flatnonzero(~np.isfinite(values).all(axis=1))[0]
                request = np.searchsorted(np.cumsum(lengths[-1]), bad, side="right")
                row = columns.scalars["row"][request]
                raise InputError(
                    f"evaluate: '{name}' gives a score that is not finite for request row {row}; "
                    "the run diverged or its weights are damaged"
                )
            scores[name].append(values)
        if progress is not None:
            progress(columns.num_requests)
    if not lengths:
        raise InputError(f"{log.path}: part '{part.name}' has no request to evaluate")
    joined = {name: np.concatenate(parts) for name, parts in pieces.items()}
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
    return Collected(
        offsets=offsets,
        scores={name: np.concatenate(parts) for name, parts in scores.items()},
        kinds={name: scorer.kind for name, scorer in scorers.items()},
        source_names=log.schema.source_names,
        **joined,
    )
