"""Which numbers are computed, under which keys, and why one may be missing.

Keys are ``metric[@k]/truth-or-source[/task]``. The truth ``T1`` is an *engaged exposure*: an item
that was shown and engaged with; other items of the request count as not relevant, shown or not.

================================  ==============================================================
``recall@k/T1``, ``ndcg@k/T1``,   each request's own order of all its candidates; mean over
``mrr/T1``                        requests with a positive
``request_auc/source:S``          AUC of positives against the negatives of source ``S`` in each
                                  request; mean over requests with both
``auc/T1``, ``auc/source:S``      pooled over all requests: T1 against shown ones known not to be
                                  engaged, or against the negatives of ``S``
``gauc/T1``, ``gauc/source:S``    the same within each user, users weighted by candidates
``auc_macro/sources``,        mean and minimum of the AUCs against each source that has them;
``auc_min/sources``           ``gauc`` and ``request_auc`` alike
``logloss/T1``, ``ne/T1``,        probabilities of exposures against what happened: log loss in
``ece/T1``                        nats, normalised entropy, calibration error
``ips@k/T1``, ``dr@k/T1``         logs with propensities: engagements per request that the first
                                  ``k`` would have earned (inverse propensity; doubly robust with
                                  the model's own probabilities), if the candidates hold all that
                                  could have been shown
``snips@k/T1``                    the same per item shown, self-normalised
``.../T1/TASK``                   the target of a declared task instead of T1, over exposures
================================  ==============================================================

A model's first task orders the candidates. Its probabilities are judged over exposures only, since
nothing is known of the rest. A model that also trained on negatives which were never shown predicts
the lower rate of that mixture, so its log loss, NE and ECE say how far that is from the rate of
exposures, not how well it orders them.

Every candidate counts once, whatever its ``candidates.weight``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from prerank import metrics
from prerank.evaluation.collect import Collected, Kind
from prerank.evaluation.dropped import mrr_of_kept, recall_of_kept, unfilled
from prerank.evaluation.estimators import AUCMeasure, MeanMeasure, Measure, PointMeasure
from prerank.evaluation.macro import JointMeasure
from prerank.evaluation.order import cut_offs, order_measures, useful_ks
from prerank.evaluation.truth.truths import Truths
from prerank.schema import Schema

__all__ = ["measure", "task_keys"]

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


def measure(
    data: Collected, name: str, ks: Sequence[int], seed: int, truths: Truths | None = None
) -> tuple[dict[str, Measure], dict[str, str]]:
    """Compute every measure of one scorer.

    Parameters
    ----------
    data : Collected
        What happened, and the scores.
    name : str
        Which scorer.
    ks : sequence of int
        Cut-offs of recall and NDCG.
    seed : int
        Of the order among equal scores.
    truths : Truths, optional
        Truths beyond T1, see :mod:`prerank.evaluation.order`; their quota adds cut-offs.

    Returns
    -------
    dict of key to Measure, dict of key to reason
        What exists, and why the rest does not.
    """
    kind, scores = data.kinds[name], data.scores[name]
    score = scores[:, 0]
    measures = _Measures(data, kind)
    known = data.shown & ~np.isnan(data.engaged)
    measures.pooled("T1", score, data.positive, known)
    for code, source in enumerate(data.schema.source_names):
        chosen = data.positive | (data.source == code)
        measures.pooled(f"source:{source}", score, data.positive, chosen)
        measures.in_request_auc(source, score, chosen)
    groups = truths.options.groups if truths else ("T1",)
    if truths and groups != ("T1",):
        ks = cut_offs(ks, truths.quota)
    measures.in_request(score, ks, seed)
    if "macro" in groups:
        measures.over_sources()
    if truths and "cold" in groups:
        for part, cold in (("item", truths.cold_item), ("user", truths.cold_user)):
            chosen = np.zeros_like(known) if cold is None else known & cold
            measures.pooled(f"T1:cold_{part}", score, data.positive, chosen)
    for column, key in enumerate(task_keys(data.schema)):
        target = data.targets[:, column]
        known = data.shown & ~np.isnan(target)
        predicted = scores[:, column] if kind == "logit" else score
        if key != "T1":
            measures.pooled(key, predicted, target == 1, known)
        measures.probabilities(key, predicted[known], target[known], known)
    if truths:
        found, skipped = order_measures(data, truths, score, ks, seed)
        measures.found |= found
        measures.skipped |= skipped
    return measures.found, measures.skipped


def task_keys(schema: Schema) -> tuple[str, ...]:
    """Return the end of the keys of each task: ``T1`` where the only task is T1 itself.

    Examples
    --------
    >>> from prerank.schema import Label, Task
    >>> labels = (Label(name="click"), Label(name="buy"))
    >>> task_keys(Schema(labels=labels))
    ('T1',)
    >>> tasks = (Task(name="click", positive="click"), Task(name="buy", positive="buy"))
    >>> task_keys(Schema(labels=labels, tasks=tasks))
    ('T1/click', 'T1/buy')
    """
    if schema.task_expressions == (schema.engaged,):
        return ("T1",)
    return tuple(f"T1/{task}" for task in schema.task_names)


@dataclass(slots=True)
class _Measures:
    """Collects the measures of one scorer and the reasons for those that do not exist."""

    data: Collected
    kind: Kind
    found: dict[str, Measure] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def _user_of(self, chosen: Bools) -> npt.NDArray[np.int64]:
        return np.repeat(self.data.user, self.data.lengths)[chosen]

    def pooled(self, key: str, score: Floats, label: Bools, chosen: Bools) -> None:
        """Add AUC and GAUC over the chosen candidates."""
        score, label, user = score[chosen], label[chosen], self._user_of(chosen)
        reason = None
        if self.kind == "order":
            reason = "places of a cascade are comparable within a request only"
        elif label.all() or not label.any():
            reason = f"{int(label.sum())} positives among {len(label)} candidates: one class only"
        if reason:
            self.skipped[f"auc/{key}"] = self.skipped[f"gauc/{key}"] = reason
            return
        self.found[f"auc/{key}"] = AUCMeasure(score, label, user)
        grouped = metrics.gauc(score, label, user)
        if len(grouped.auc):
            self.found[f"gauc/{key}"] = MeanMeasure(grouped.auc, grouped.group, grouped.weight)
        else:
            self.skipped[f"gauc/{key}"] = "no user has both a positive and a negative"

    def in_request_auc(self, source: str, score: Floats, chosen: Bools) -> None:
        """Add the mean AUC within requests over the chosen candidates."""
        offsets = self.data.offsets_of(chosen)
        auc = metrics.per_request_auc(score[chosen], self.data.positive[chosen], offsets)
        reason = "no request has both a positive and a negative"
        self._mean(f"request_auc/source:{source}", auc, reason)

    def over_sources(self) -> None:
        """Add mean and minimum over the sources of their AUCs."""
        names = self.data.schema.source_names
        for metric in ("auc", "gauc", "request_auc"):
            keys = [f"{metric}/source:{name}" for name in names]
            members = [self.found[key] for key in keys if key in self.found]
            for how in ("macro", "min"):
                key = f"{metric}_{how}/sources"
                if len(members) < 2:
                    reason = self.skipped.get(keys[0], "") if keys else ""
                    within = reason if "within a request only" in reason else ""
                    self.skipped[key] = within or "fewer than two sources have both classes"
                else:
                    self.found[key] = JointMeasure(tuple(members), how)

    def in_request(self, score: Floats, ks: Sequence[int], seed: int) -> None:
        """Add the metrics of each request's own order of all its candidates."""
        data = self.data
        order = metrics.top_order(score, data.offsets, seed=seed, row=data.row)
        useful, too_large = useful_ks(data.lengths[data.has_positive], ks)
        none = "no request has a positive"
        for k, why in too_large.items():
            reason = why if data.has_positive.any() else none
            self.skipped[f"recall@{k}/T1"] = self.skipped[f"ndcg@{k}/T1"] = reason
        kept = score > -np.inf
        short = unfilled(kept, data.offsets, useful)
        for k in useful:
            recall = recall_of_kept(data.positive, kept, order, data.offsets, k)
            self._mean(f"recall@{k}/T1", recall, none)
            if k in short:
                self.skipped[f"ndcg@{k}/T1"] = short[k]
                continue
            ndcg = metrics.ndcg_at_k(data.positive, order, data.offsets, k)
            self._mean(f"ndcg@{k}/T1", ndcg, none)
        self._mean("mrr/T1", mrr_of_kept(data.positive, kept, order, data.offsets), none)
        for k in useful:
            if k not in short:
                self._off_policy(score, order, k)

    def _off_policy(self, score: Floats, order: npt.NDArray[np.int64], k: int) -> None:
        """Add what the first ``k`` of another order would have earned, where it can be told."""
        data = self.data
        if data.propensity is None:
            return
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order)) - np.repeat(data.offsets[:-1], data.lengths)
        target = (place < k).astype(np.float64)
        seen = data.shown & ~np.isnan(data.engaged)
        try:
            weight = metrics.importance_weights(seen, data.propensity, target)
        except ValueError as error:
            self.skipped[f"ips@{k}/T1"] = str(error)
            return
        reward = np.where(seen, data.engaged, 0.0)
        earned = metrics.ips(reward, weight, data.offsets)
        self.found[f"ips@{k}/T1"] = MeanMeasure(earned, data.user)
        if weight.any():
            user = self._user_of(seen)
            self.found[f"snips@{k}/T1"] = MeanMeasure(reward[seen], user, weight[seen])
        if self.kind == "logit":
            chance = metrics.sigmoid(score)
            robust = metrics.doubly_robust(reward, weight, target, chance, data.offsets)
            self.found[f"dr@{k}/T1"] = MeanMeasure(robust, data.user)

    def _mean(self, key: str, values: Floats, reason: str) -> None:
        if np.isnan(values).all():
            self.skipped[key] = reason
        else:
            self.found[key] = MeanMeasure(values, self.data.user)

    def probabilities(
        self, key: str, logit: Floats, target: npt.NDArray[np.float32], known: Bools
    ) -> None:
        """Add log loss, normalised entropy (He et al., 2014) and calibration error."""
        names = [f"{metric}/{key}" for metric in ("logloss", "ne", "ece")]
        if self.kind != "logit" or not len(target):
            reason = "no label is known" if self.kind == "logit" else "there are no probabilities"
            self.skipped |= dict.fromkeys(names, reason)
            return
        user, y = self._user_of(known), target.astype(np.float64)
        loss = np.logaddexp(0.0, logit) - y * logit
        self.found[names[0]] = MeanMeasure(loss, user)
        rate = y.mean()
        if 0 < rate < 1:
            entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
            self.found[names[1]] = MeanMeasure(loss / entropy, user)
        else:
            self.skipped[names[1]] = "labels of one class only, so a constant has no entropy"
        error = metrics.calibration_error(metrics.sigmoid(logit), y)
        self.found[names[2]] = PointMeasure(error)
