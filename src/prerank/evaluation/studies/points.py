"""The points of a frontier on one part: single models and cuts, from one pass over the requests.

Every model scores every candidate once; a cut is then the order that a cascade of two models would
give, put together from their scores. Its cost comes from the costs of its models, measured at the
size of the part's usual request (:func:`~prerank.evaluation.studies.frontier.tier_us`).

Shapes: ``I`` candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from prerank import metrics
from prerank.batch import Evidence
from prerank.cascade.rules import num_of_share
from prerank.evaluation.baselines import DEFAULT_BASELINES, make_baselines, why_no_baseline
from prerank.evaluation.collect import Kind, ModelScorer, Scorer, Scores, collect
from prerank.evaluation.cost import Cost, measure_cost
from prerank.evaluation.evaluate import DEFAULT_KS, as_scorer
from prerank.evaluation.measures import measure
from prerank.evaluation.studies.frontier import tier_us
from prerank.evaluation.studies.leaks import refuse_evidence_readers
from prerank.evaluation.truth.ranker import logged_ranker
from prerank.evaluation.truth.truths import TruthOptions, Truths
from prerank.log import Columns, Log, Part
from prerank.models.base import Model

__all__ = [
    "Cut",
    "PointValues",
    "cut_positions",
    "cut_us",
    "measure_points",
    "num_forwarded",
    "reordered",
]

_TRIALS = 5


class Cut(msgspec.Struct, frozen=True):
    """``light`` orders all, the first ``share`` of a request is ordered anew by ``heavy``."""

    light: str
    heavy: str
    share: float

    @property
    def name(self) -> str:
        """The point's name: ``two_tower -> 30 % mlp``."""
        return f"{self.light} -> {100 * self.share:g} % {self.heavy}"


class PointValues(msgspec.Struct, frozen=True):
    """Metrics of a point, and microseconds per usual request (None: a baseline, not timed)."""

    metrics: dict[str, float]
    us: float | None = None


def measure_points(
    models: Mapping[str, Model],
    cuts: Sequence[Cut],
    part: Part,
    *,
    seed: int = 0,
    truths: TruthOptions = TruthOptions(),  # noqa: B008 (frozen)
    ks: Sequence[int] = DEFAULT_KS,
    batch_size: int = 16,
    progress: Callable[[int], None] | None = None,
) -> dict[str, PointValues]:
    """Score a part once and return every point: models, cuts, baselines.

    Parameters
    ----------
    models : mapping of str to Model
        Trained.
    cuts : sequence of Cut
        Between two of the models.
    part : Part
        What to evaluate on.
    seed : int
        Of the order among equal scores, and of ``random``.
    truths, ks : TruthOptions, sequence of int
        As :func:`prerank.evaluate` takes them.
    batch_size : int
        Requests scored at once; a model that attends to histories for every candidate is faster
        when they are few.
    progress : callable, optional
        Called with the number of requests just scored.

    Raises
    ------
    InputError
        As :func:`prerank.evaluate`.
    """
    log = part.log
    named: dict[str, Scorer] = {n: as_scorer(n, m, log, "cpu", seed) for n, m in models.items()}
    own = {name: s for name, s in named.items() if isinstance(s, ModelScorer)}
    refuse_evidence_readers(own, part)
    once = {name: _Once(scorer) for name, scorer in named.items()}
    every: dict[str, Scorer] = {**once}
    for cut in cuts:
        every[cut.name] = _CutScorer(once[cut.light], once[cut.heavy], cut.share, seed)
    floors = [name for name in DEFAULT_BASELINES if why_no_baseline(name, log) is None]
    train = log["train"] if "train" in log.parts else None
    every |= make_baselines(floors if train else ["random"], train, log, seed)
    behind = logged_ranker(log.schema, None)
    data = collect(part, every, batch_size=batch_size, ranker=behind, progress=progress)
    found = Truths.of(data, log, truths, seed)
    usual = int(np.median(data.lengths[data.lengths > 0]))
    costs = {name: _cost(model, part, usual) for name, model in models.items()}
    us: dict[str, float] = {name: tier_us(cost, usual) for name, cost in costs.items()}
    us |= {cut.name: cut_us(cut, costs, usual) for cut in cuts}
    points = {}
    for name in every:
        measures, _ = measure(data, name, ks, seed, found)
        # Seeds tell the spread here, so no resamples are wanted.
        values = {key: float(m.estimate(0, seed).value) for key, m in measures.items()}
        finite = {key: value for key, value in values.items() if math.isfinite(value)}
        points[name] = PointValues(finite, us.get(name))
    return points


def cut_us(cut: Cut, costs: Mapping[str, Cost], num_candidates: int) -> float:
    """Return microseconds per request: the light model on all, the heavy one on what is left."""
    forwarded = int(num_forwarded(np.array([num_candidates]), cut.share)[0])
    return tier_us(costs[cut.light], num_candidates) + tier_us(costs[cut.heavy], forwarded)


def cut_positions(
    light: npt.NDArray[np.float64],
    heavy: npt.NDArray[np.float64],
    offsets: npt.NDArray[np.int64],
    share: float,
    tie: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Return the 0-based place ``[I]`` of each candidate in its request's final order.

    Parameters
    ----------
    light, heavy : ndarray ``[I]``
        Scores; ``heavy`` counts among the forwarded ones only.
    offsets : ndarray ``[R + 1]`` int64
        Where each request's candidates begin.
    share : float
        Of a request's candidates that goes on, rounded up.
    tie : ndarray ``[I]`` int64
        Among equal scores, lower comes first.

    Examples
    --------
    >>> tie = np.arange(4)
    >>> light, heavy = np.array([0.9, 0.8, 0.7, 0.1]), np.array([0.0, 1.0, 2.0, 3.0])
    >>> cut_positions(light, heavy, np.array([0, 4]), 0.5, tie)
    array([1, 0, 2, 3])
    """
    lengths = np.diff(offsets)
    request_of = np.repeat(np.arange(len(lengths)), lengths)
    place = np.empty(len(request_of), dtype=np.int64)
    row = np.arange(len(request_of)) - np.repeat(offsets[:-1], lengths)
    place[np.lexsort((tie, -light, request_of))] = row
    return reordered(place, heavy, offsets, num_forwarded(lengths, share), tie)


def reordered(
    place: npt.NDArray[np.int64],
    heavy: npt.NDArray[np.float64],
    offsets: npt.NDArray[np.int64],
    num: npt.NDArray[np.int64],
    tie: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Return the places ``[I]`` after a second model ordered the first ones of each request anew.

    Parameters
    ----------
    place : ndarray ``[I]`` int64
        Places by the first model.
    heavy : ndarray ``[I]``
        Scores of the second one; they count among the forwarded ones only.
    offsets : ndarray ``[R + 1]`` int64
        Where each request's candidates begin.
    num : ndarray ``[R]`` int64
        How many of each request go on.
    tie : ndarray ``[I]`` int64
        Among equal scores, lower comes first.

    Examples
    --------
    >>> place, heavy = np.array([0, 1, 2, 3]), np.array([1.0, 2.0, 3.0, 4.0])
    >>> reordered(place, heavy, np.array([0, 4]), np.array([2]), np.arange(4))
    array([1, 0, 2, 3])
    """
    lengths = np.diff(offsets)
    request_of = np.repeat(np.arange(len(lengths)), lengths)
    goes_on = np.flatnonzero(place < num[request_of])
    # The forwarded ones are first already: only they are ordered anew.
    order = goes_on[np.lexsort((tie[goes_on], -heavy[goes_on], request_of[goes_on]))]
    began = np.concatenate([[0], np.cumsum(np.minimum(num, lengths))])
    final = place.copy()
    final[order] = np.arange(len(order)) - began[request_of[order]]
    return final


def num_forwarded(lengths: npt.NDArray[np.int64], share: float) -> npt.NDArray[np.int64]:
    """Return a share of each request's candidates ``[R]``, rounded up as a tier does.

    Examples
    --------
    >>> num_forwarded(np.array([0, 10, 11]), 0.3).tolist()
    [0, 3, 4]
    """
    num: npt.NDArray[np.int64] = num_of_share(torch.from_numpy(lengths), share).numpy()
    return num


class _Once:
    """A scorer that computes the scores of a batch once, however often it is asked."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.kind: Kind = scorer.kind
        self._of: Columns | None = None
        self._scores: Scores = np.zeros((0, 1))

    def __call__(self, columns: Columns, log: Log, evidence: Evidence) -> Scores:
        if self._of is not columns:
            self._of, self._scores = columns, self.scorer(columns, log, evidence)
        return self._scores


class _CutScorer:
    """Orders as a cascade of two models does, ties included."""

    kind: Kind = "order"

    def __init__(self, light: _Once, heavy: _Once, share: float, seed: int) -> None:
        self.light, self.heavy, self.share, self.seed = light, heavy, share, seed

    def __call__(self, columns: Columns, log: Log, evidence: Evidence) -> Scores:
        offsets = columns.candidates.offsets
        num_candidates = int(offsets[-1])
        order = metrics.top_order(
            np.zeros(num_candidates), offsets, seed=self.seed, row=columns.scalars["row"]
        )
        tie = np.empty(num_candidates, dtype=np.int64)
        tie[order] = np.arange(num_candidates)
        light, heavy = (s(columns, log, evidence)[:, 0] for s in (self.light, self.heavy))
        return -cut_positions(light, heavy, offsets, self.share, tie).astype(np.float64)[:, None]


def _cost(model: Model, part: Part, usual: int) -> Cost:
    """Time a model on one request, the one among the first ones whose size is nearest to usual."""
    assert model.transforms is not None
    columns = next(part.columns(256))
    lengths: Any = np.diff(columns.candidates.offsets)
    nearest = int(np.argmin(np.where(lengths > 0, np.abs(lengths - usual), np.iinfo(np.int64).max)))
    batch = model.transforms.batch(columns.take(np.array([nearest])), part.log)
    trials = [measure_cost(model, batch.inputs) for _ in range(_TRIALS)]
    # What else runs on the machine can only add time.
    return min(trials, key=lambda cost: tier_us(cost, usual))
