"""One pass over a part: what happened, and what every scorer says of it.

Shapes: ``R`` requests, ``I`` candidates, ``T`` tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from prerank.batch import Evidence
from prerank.errors import InputError
from prerank.evaluation.truth.ranker import LoggedRanker
from prerank.log import Columns, Log, Part
from prerank.log.inputs.evidence import build_evidence
from prerank.models.base import Model
from prerank.schema import Schema
from prerank.world import World

__all__ = [
    "Batch",
    "Collected",
    "ModelScorer",
    "Ranker",
    "Scorer",
    "check_scores",
    "collect",
    "score_batches",
]

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
        """Return logits ``[I, T]`` of the log's tasks, or ``[I, 1]`` values."""
        ...


class ModelScorer:
    """Scores with a model in eval mode.

    Raises
    ------
    InputError
        The model has no transforms, so it was not trained.
    """

    kind: Kind = "logit"

    def __init__(self, model: Model, device: str = "cpu") -> None:
        if model.transforms is None:
            raise InputError(
                f"evaluate: the {type(model).__name__} was not trained; fit it or load a run first"
            )
        self.model = model.to(device).eval()
        self.transforms = model.transforms
        self.device = device

    @torch.inference_mode()
    def __call__(self, columns: Columns, log: Log, evidence: Evidence) -> Scores:
        """Return the logits ``[I, T]``."""
        inputs = self.transforms.batch(columns, log).inputs.to(self.device)
        return np.asarray(self.model(inputs).logits.double().cpu().numpy())


Ranker = LoggedRanker | Scorer
Batch = tuple[Columns, Evidence]


@dataclass(frozen=True, slots=True)
class Collected:
    """A part with the scores of every scorer.

    Parameters
    ----------
    schema : Schema
        Of the evaluated log: sources and tasks.
    row, user, time : ndarray ``[R]`` int64
        Log row, user index and time (ms) of each request.
    offsets : ndarray ``[R + 1]`` int64
        Where each request's candidates begin.
    item, stage : ndarray ``[I]`` int64
        Item index; code of the deepest stage.
    shown : ndarray ``[I]`` bool
        Whether the candidate reached the last stage, exposure.
    source : ndarray ``[I]`` int64
        Code in ``schema.source_names``; negative for positives and unknowns.
    engaged : ndarray ``[I]`` float32
        1, 0, NaN.
    targets : ndarray ``[I, T]`` float32
        Tasks.
    scores : dict of str to ndarray ``[I, T]`` or ``[I, 1]``
        By scorer.
    kinds : dict of str to str
        What each scorer's numbers mean.
    ranker : ndarray ``[I]`` float64, optional
        What the ranker behind says, NaN where it was not asked.
    utility : ndarray ``[I]`` float64, optional
        True utility, known to simulated worlds only.
    propensity : ndarray ``[I]`` float32, optional
        Logged probability of having been shown, where the log has it.
    """

    schema: Schema
    row: npt.NDArray[np.int64]
    user: npt.NDArray[np.int64]
    time: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    item: npt.NDArray[np.int64]
    stage: npt.NDArray[np.int64]
    shown: npt.NDArray[np.bool_]
    source: npt.NDArray[np.int64]
    engaged: npt.NDArray[np.float32]
    targets: npt.NDArray[np.float32]
    scores: dict[str, Scores]
    kinds: dict[str, Kind]
    ranker: npt.NDArray[np.float64] | None = None
    utility: npt.NDArray[np.float64] | None = None
    propensity: npt.NDArray[np.float32] | None = None

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Number of candidates of each request ``[R]``."""
        return np.diff(self.offsets)

    @property
    def positive(self) -> npt.NDArray[np.bool_]:
        """The truth T1, engaged exposures ``[I]``."""
        positive: npt.NDArray[np.bool_] = self.shown & (self.engaged == 1)
        return positive

    @property
    def has_positive(self) -> npt.NDArray[np.bool_]:
        """Whether a request has an engaged exposure ``[R]``."""
        has: npt.NDArray[np.bool_] = np.diff(self.offsets_of(self.positive)) > 0
        return has

    def offsets_of(self, chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """Return the offsets ``[R + 1]`` of a subset of the candidates ``[I]``."""
        before = np.concatenate([[0], np.cumsum(chosen)])
        return before[self.offsets].astype(np.int64)


def collect(
    part: Part,
    scorers: Mapping[str, Scorer],
    *,
    batch_size: int = 256,
    ranker: Ranker | None = None,
    world: World | None = None,
    keep: list[Batch] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Collected:
    """Read a part once and score it with every scorer.

    Parameters
    ----------
    part : Part
        The requests.
    scorers : mapping of str to Scorer
        What to score them with.
    batch_size : int
        Requests scored at once.
    ranker : LoggedRanker or Scorer, optional
        The ranker behind.
    world : World, optional
        The world that made the log.
    keep : list, optional
        The requests are added to it as they are read.
    progress : callable, optional
        Called with the number of requests just scored.

    Raises
    ------
    InputError
        The part is empty, or scores are not finite or not as many as candidates and tasks (the
        scorer is named).
    """
    log = part.log
    last_stage = len(log.schema.stages) - 1
    pieces: dict[str, list[npt.NDArray[Any]]] = {}
    scores: dict[str, list[Scores]] = {name: [] for name in scorers}
    lengths: list[npt.NDArray[np.int64]] = []
    raw_items = None if world is None else np.asarray(log.items.ids.values.fill_null(-1))
    for columns in part.columns(batch_size, with_ids=world is not None):
        evidence = build_evidence(columns, log.schema, log.schema)
        for name in ("row", "user", "time", "item", "stage", "source", "engaged", "targets"):
            pieces.setdefault(name, []).append(getattr(evidence, name).numpy())
        if log.schema.has_propensity:
            pieces.setdefault("propensity", []).append(evidence.propensity.numpy())
        pieces.setdefault("shown", []).append((evidence.stage == last_stage).numpy())
        lengths.append(np.diff(columns.candidates.offsets))
        for name, scorer in scorers.items():
            scores[name].append(_scores(name, scorer, (columns, evidence), log))
        if ranker is not None:
            pieces.setdefault("ranker", []).append(_ranker_says(ranker, columns, log, evidence))
        if world is not None and raw_items is not None:
            request = np.repeat(columns.scalars["request_id"], lengths[-1])
            utility = world.utility(request, raw_items[evidence.item.numpy()])
            pieces.setdefault("utility", []).append(utility)
        if keep is not None:
            keep.append((columns, evidence))
        if progress is not None:
            progress(columns.num_requests)
    if not lengths:
        raise InputError(f"{log.path}: part '{part.name}' has no request to evaluate")
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
    return Collected(
        schema=log.schema,
        offsets=offsets,
        scores={name: np.concatenate(parts) for name, parts in scores.items()},
        kinds={name: scorer.kind for name, scorer in scorers.items()},
        **{name: np.concatenate(parts) for name, parts in pieces.items()},
    )


def score_batches(
    batches: Sequence[Batch],
    scorers: Mapping[str, Scorer],
    log: Log,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Scores]:
    """Return the scores of requests that :func:`collect` kept.

    Raises
    ------
    InputError
        As :func:`collect`.
    """
    scores: dict[str, list[Scores]] = {name: [] for name in scorers}
    for batch in batches:
        for name, scorer in scorers.items():
            scores[name].append(_scores(name, scorer, batch, log))
        if progress is not None:
            progress(batch[0].num_requests)
    return {name: np.concatenate(parts) for name, parts in scores.items()}


def _scores(name: str, scorer: Scorer, batch: Batch, log: Log) -> Scores:
    columns, evidence = batch
    values = scorer(columns, log, evidence)
    width = len(log.schema.task_names) if scorer.kind == "logit" else 1
    check_scores(values, width, name, columns, dropping=scorer.kind == "order")
    return values


def _ranker_says(
    ranker: Ranker, columns: Columns, log: Log, evidence: Evidence
) -> npt.NDArray[np.float64]:
    if isinstance(ranker, LoggedRanker):
        return ranker(evidence)
    return ranker(columns, log, evidence)[:, 0]


def check_scores(
    values: Scores, width: int, name: str, columns: Columns, *, dropping: bool = False
) -> None:
    """Raise unless the scores of a batch are finite and ``[I, width]``.

    ``dropping``: -inf is allowed too, for candidates that have no place.

    Raises
    ------
    InputError
        They are not; the scorer is named, and the request of the first one that is not finite.
    """
    offsets = columns.candidates.offsets
    if values.shape != (offsets[-1], width):
        raise InputError(
            f"'{name}' gives scores of shape {values.shape}; expected ({offsets[-1]}, {width}): "
            "one row per candidate, and for logits one column per task"
        )
    bad = ~(np.isfinite(values) | (dropping & (values == -np.inf))).all(axis=1)
    if bad.any():
        request = np.searchsorted(offsets, int(bad.argmax()), side="right") - 1
        raise InputError(
            f"'{name}' gives a score that is not finite for request row "
            f"{columns.scalars['row'][request]}; the run diverged or its weights are damaged"
        )
