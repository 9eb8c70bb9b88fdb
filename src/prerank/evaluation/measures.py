"""Metrics by key, each with what is needed for its interval and for paired comparison.

Keys are ``metric[@k]/truth-or-source[/task]``: ``gauc/T1``, ``recall@50/T1``,
``auc/source:rank``, ``ne/T1``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from prerank import metrics
from prerank.batch import POSITIVE
from prerank.evaluation.collect import Collected
from prerank.evaluation.statistics import (
    Difference,
    Estimate,
    bootstrap_auc,
    bootstrap_mean,
    paired_auc,
    paired_mean,
)
from prerank.schema import Schema

__all__ = [
    "AUCMeasure",
    "MeanMeasure",
    "Measure",
    "PointMeasure",
    "compare",
    "measure",
    "useful_ks",
]

Floats = npt.NDArray[np.float64]
_AUC_WORK = 100_000_000


@dataclass(frozen=True, slots=True)
class MeanMeasure:
    """A weighted mean of units (requests, users), units of a user resampled together."""

    values: Floats
    weights: Floats | None
    user: npt.NDArray[np.int64]
    num_undefined: int = 0

    def estimate(self, num_resamples: int, seed: int) -> Estimate:
        """Return the mean with its interval."""
        return bootstrap_mean(
            self.values, self.weights, self.user, num_resamples=num_resamples, seed=seed
        )

    def minus(self, other: Measure, num_resamples: int, seed: int) -> Difference:
        """Return the paired difference to the same measure of another scorer."""
        assert isinstance(other, MeanMeasure)
        return paired_mean(
            self.values,
            other.values,
            self.weights,
            self.user,
            num_resamples=num_resamples,
            seed=seed,
        )


@dataclass(frozen=True, slots=True)
class AUCMeasure:
    """A pooled AUC; its resamples are fewer on large parts (50 at least)."""

    score: Floats
    label: npt.NDArray[np.bool_]
    user: npt.NDArray[np.int64]
    num_undefined: int = 0

    def _resamples(self, wanted: int) -> int:
        return int(np.clip(_AUC_WORK // max(len(self.score), 1), min(50, wanted), wanted))

    def estimate(self, num_resamples: int, seed: int) -> Estimate:
        """Return the AUC with its interval."""
        num = self._resamples(num_resamples)
        return bootstrap_auc(self.score, self.label, self.user, num_resamples=num, seed=seed)

    def minus(self, other: Measure, num_resamples: int, seed: int) -> Difference:
        """Return the paired difference to the same measure of another scorer."""
        assert isinstance(other, AUCMeasure)
        num = self._resamples(num_resamples)
        return paired_auc(
            self.score, other.score, self.label, self.user, num_resamples=num, seed=seed
        )


@dataclass(frozen=True, slots=True)
class PointMeasure:
    """A number without an interval (calibration error)."""

    value: float
    num_undefined: int = 0

    def estimate(self, num_resamples: int, seed: int) -> Estimate:
        """Return the number; its bounds are NaN."""
        return Estimate(self.value, float("nan"), float("nan"), 0)

    def minus(self, other: Measure, num_resamples: int, seed: int) -> Difference:
        """Return the plain difference."""
        assert isinstance(other, PointMeasure)
        nan = float("nan")
        return Difference(self.value - other.value, nan, nan, 0, nan)


Measure = MeanMeasure | AUCMeasure | PointMeasure


def useful_ks(
    offsets: npt.NDArray[np.int64], ks: Sequence[int]
) -> tuple[list[int], dict[int, str]]:
    """Split cut-offs into useful ones and those that most requests cannot miss, with the reason."""
    typical = int(np.median(np.diff(offsets))) if len(offsets) > 1 else 0
    skipped = {
        k: f"half of the requests have {typical} candidates or fewer, so k = {k} keeps all"
        for k in ks
        if k >= typical
    }
    return [k for k in ks if k not in skipped], skipped


def measure(
    data: Collected, name: str, schema: Schema, ks: Sequence[int], seed: int
) -> tuple[dict[str, Measure], dict[str, str]]:
    """Compute every measure of one scorer.

    Returns
    -------
    dict of key to Measure, dict of key to reason
        What exists, and why the rest does not.
    """
    measures = _Measures(data, data.kinds[name], data.user[data.request_of])
    scores = data.scores[name]
    score = scores[:, 0]
    shown = data.stage == len(schema.stages) - 1
    measures.pairwise("T1", score, data.engaged == 1, ~np.isnan(data.engaged) & shown)
    positive = data.source == POSITIVE
    for code, source in enumerate(schema.source_names):
        negative = data.source == code
        measures.pairwise(f"source:{source}", score, positive, positive | negative)
    measures.in_request(score, ks, seed)
    if data.kinds[name] == "logit":
        for column, task in enumerate(schema.task_names):
            target, logit = data.targets[:, column], scores[:, column]
            suffix = "T1"
            if len(schema.task_names) > 1:
                suffix = f"T1/{task}"
                measures.pairwise(suffix, logit, target > 0, ~np.isnan(target))
            measures.probabilities(suffix, logit, target)
    else:
        for metric in ("ne", "logloss", "ece"):
            measures.skipped[f"{metric}/T1"] = "there are no probabilities to judge"
    return measures.found, measures.skipped


@dataclass(slots=True)
class _Measures:
    """Collects the measures of one scorer and the reasons for those that do not exist."""

    data: Collected
    kind: str
    user: npt.NDArray[np.int64]
    found: dict[str, Measure] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def pairwise(
        self,
        truth: str,
        score: Floats,
        label: npt.NDArray[np.bool_],
        chosen: npt.NDArray[np.bool_],
    ) -> None:
        """Add pooled AUC and GAUC over the chosen candidates."""
        score, label, user = score[chosen], label[chosen], self.user[chosen]
        reason = None
        if self.kind == "order":
            reason = "places of a cascade are comparable within a request only"
        if label.all() or not label.any():
            reason = f"{int(label.sum())} positives among {len(label)} candidates: one class only"
        if reason:
            self.skipped[f"auc/{truth}"] = self.skipped[f"gauc/{truth}"] = reason
            return
        self.found[f"auc/{truth}"] = AUCMeasure(score, label, user)
        grouped = metrics.gauc(score, label, user)
        self.found[f"gauc/{truth}"] = MeanMeasure(
            grouped.auc, grouped.weight, grouped.group, grouped.num_dropped
        )

    def in_request(self, score: Floats, ks: Sequence[int], seed: int) -> None:
        """Add the metrics of each request's own order."""
        data = self.data
        relevant = (data.engaged == 1).astype(np.float64)
        order = metrics.top_order(score, data.offsets, seed=seed, row=data.row)
        useful, reasons = useful_ks(data.offsets, ks)
        for k, reason in reasons.items():
            self.skipped[f"recall@{k}/T1"] = self.skipped[f"ndcg@{k}/T1"] = reason
        for k in useful:
            recall = metrics.recall_at_k(relevant, order, data.offsets, k)
            self._per_request(f"recall@{k}/T1", recall)
            self._per_request(f"ndcg@{k}/T1", metrics.ndcg_at_k(relevant, order, data.offsets, k))
        self._per_request("mrr/T1", metrics.mrr(relevant, order, data.offsets))
        for code, source in enumerate(self.data.source_names):
            chosen = (data.source == POSITIVE) | (data.source == code)
            auc = metrics.per_request_auc(score[chosen], relevant[chosen], data.offsets_of(chosen))
            self._per_request(f"request_auc/source:{source}", auc)

    def _per_request(self, key: str, values: Floats) -> None:
        num_undefined = int(np.isnan(values).sum())
        if num_undefined == len(values):
            self.skipped[key] = "no request has both a positive and a negative"
        else:
            self.found[key] = MeanMeasure(values, None, self.data.user, num_undefined)

    def probabilities(self, suffix: str, logit: Floats, target: npt.NDArray[np.float32]) -> None:
        """Add log loss, normalised entropy (He et al., 2014) and calibration error."""
        known = ~np.isnan(target)
        x, y, user = logit[known], target[known].astype(np.float64), self.user[known]
        if not len(y) or y.min() == y.max():
            self.skipped[f"ne/{suffix}"] = "labels of one class only"
            return
        loss = np.logaddexp(0.0, x) - y * x
        rate = y.mean()
        entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
        self.found[f"logloss/{suffix}"] = MeanMeasure(loss, None, user)
        self.found[f"ne/{suffix}"] = MeanMeasure(loss / entropy, None, user)
        error = metrics.calibration_error(metrics.sigmoid(x), y)
        self.found[f"ece/{suffix}"] = PointMeasure(error)


def compare(
    a: Mapping[str, Measure], b: Mapping[str, Measure], num_resamples: int, seed: int
) -> dict[str, Difference]:
    """Return the paired differences ``a - b`` of every key both have."""
    return {key: m.minus(b[key], num_resamples, seed) for key, m in a.items() if key in b}
