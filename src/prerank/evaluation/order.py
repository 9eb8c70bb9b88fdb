"""Measures of each request's own order against truths beyond T1.

======================================  ========================================================
``recall@k/T2`` ``T3`` ``T5`` ``U``     share of the truth among the first ``k``; also of T1 cut
                                        to cold items and users (``T1:cold_item``, ``:cold_user``)
``ndcg@k/T4``                           grades by depth, gains ``2^g - 1``, over the ideal order
``dislike@k/T2``                        share of the first ``k`` that was shown and not engaged
``regret@k/U``                          mean utility below the best possible ``k`` (its unit)
``overlap@k/ranker``                    of the first ``k`` and the ranker's own first ``k``
``kendall/ranker``                      tau-b with the ranker
``consistency/ranker``                  share of pairs in the ranker's order (a tie one half)
``score_lost@k/ranker``                 mean ranker score of its first ``m``, minus that of the
                                        best ``m`` among the first ``k`` (unit of its score)
``gain@k/ranker``                       discounted gain of the ranker's first ``m`` inside the
                                        first ``k``
``survival@k/T1``                       share of T1 shown when the ranker takes ``m`` of the
                                        first ``k``
======================================  ========================================================

The ranker is judged over the candidates it scored; the order is that order cut to them, but for
``gain`` and ``survival``, where a place taken by an unscored candidate is lost: it is never shown.

What becomes of candidates that a cascade dropped: see :mod:`prerank.evaluation.dropped`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from prerank import metrics
from prerank.evaluation.collect import Collected
from prerank.evaluation.dropped import recall_of_kept, unfilled
from prerank.evaluation.estimators import MeanMeasure, Measure
from prerank.evaluation.truth.truths import Truths

__all__ = ["cut_offs", "order_measures", "useful_ks"]

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def useful_ks(lengths: Ints, ks: Sequence[int]) -> tuple[list[int], dict[int, str]]:
    """Split cut-offs into useful ones and those that most requests cannot miss, with the reason.

    Parameters
    ----------
    lengths : ndarray ``[R]``
        Candidates of the requests that count.
    ks : sequence of int
        Cut-offs.

    Examples
    --------
    >>> useful_ks(np.array([3, 8, 9]), [5, 8])
    ([5], {8: 'half of the requests have 8 candidates or fewer, so k = 8 keeps all'})
    """
    typical = int(np.median(lengths)) if len(lengths) else 0
    skipped = {
        k: f"half of the requests have {typical} candidates or fewer, so k = {k} keeps all"
        for k in ks
        if k >= typical
    }
    return [k for k in ks if k not in skipped], skipped


def cut_offs(ks: Sequence[int], quota: int | None) -> list[int]:
    """Return the cut-offs with half of the quota, the quota and twice the quota.

    Examples
    --------
    >>> cut_offs([10], 25)
    [10, 12, 25, 50]
    """
    own = [] if quota is None else [max(1, quota // 2), quota, 2 * quota]
    return sorted({*ks, *own})


def order_measures(
    data: Collected, truths: Truths, score: Floats, ks: Sequence[int], seed: int
) -> tuple[dict[str, Measure], dict[str, str]]:
    """Compute the measures of one scorer's order.

    Parameters
    ----------
    data : Collected
        What happened.
    truths : Truths
        What to judge against; its groups decide what is computed.
    score : ndarray ``[I]``
        The scorer's first task.
    ks : sequence of int
        Cut-offs, quotas included.
    seed : int
        Of the order among equal scores.

    Returns
    -------
    dict of key to Measure, dict of key to reason
        What exists, and why the rest does not.
    """
    order = metrics.top_order(score, data.offsets, seed=seed, row=data.row)
    judge = _Judge(data, truths, order, list(ks), score > -np.inf)
    groups = truths.options.groups
    for name in ("T2", "T3", "T5", "U"):
        if name in groups:
            judge.recall(name)
    if "cold" in groups:
        for name in ("T1:cold_item", "T1:cold_user"):
            judge.recall(name, "cold")
    if "T4" in groups:
        judge.each("ndcg", "T4", lambda k: metrics.ndcg_at_k(judge.grade, order, data.offsets, k))
    if "T2" in groups:
        disliked = data.shown & (data.engaged == 0)
        judge.each("dislike", "T2", lambda k: judge.share_of_first(disliked, k))
    if "U" in groups:
        judge.regret()
    if "ranker" in groups:
        judge.ranker(score, seed)
    return judge.found, judge.skipped


@dataclass(slots=True)
class _Judge:
    """Collects measures of one order, and the reasons for those that do not exist."""

    data: Collected
    truths: Truths
    order: Ints
    ks: list[int]
    kept: Bools
    found: dict[str, Measure] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def grade(self) -> Floats:
        assert self.truths.grade is not None
        return self.truths.grade

    def each(
        self,
        metric: str,
        truth: str,
        values: Callable[[int], Floats],
        where: Bools | None = None,
        *,
        drops: bool = False,
    ) -> None:
        """Add ``metric@k/truth`` for every useful cut-off.

        ``where [R]``: requests that count; ``drops``: the values know of dropped candidates.
        """
        if truth in self.truths.missing:
            reason = self.truths.missing[truth]
            self.skipped |= {f"{metric}@{k}/{truth}": reason for k in self.ks}
            return
        lengths = self.data.lengths
        useful, too_large = useful_ks(lengths if where is None else lengths[where], self.ks)
        if not drops:
            too_large |= unfilled(self.kept, self.data.offsets, useful)
            useful = [k for k in useful if k not in too_large]
        for k, why in too_large.items():
            self.skipped[f"{metric}@{k}/{truth}"] = why
        for k in useful:
            self.add(f"{metric}@{k}/{truth}", values(k))

    def add(self, key: str, values: Floats, reason: str = "no request defines it") -> None:
        """Add a mean over requests."""
        if np.isnan(values).all():
            self.skipped[key] = reason
        else:
            self.found[key] = MeanMeasure(values, self.data.user)

    def share_of_first(self, chosen: Bools, k: int) -> Floats:
        return metrics.precision_at_k(chosen, self.order, self.data.offsets, k)

    def recall(self, name: str, group: str | None = None) -> None:
        reason = self.truths.missing.get(group or name)
        truth = self.truths.binary.get(name)
        if truth is None:
            why = reason or "the log has no stage 'prerank', so m must be given (top_m)"
            self.skipped |= {f"recall@{k}/{name}": why for k in self.ks}
            return
        has = np.diff(self.data.offsets_of(truth)) > 0
        if not has.any():
            self.skipped |= {f"recall@{k}/{name}": "no request has one" for k in self.ks}
            return

        def values(k: int) -> Floats:
            return recall_of_kept(truth, self.kept, self.order, self.data.offsets, k)

        self.each("recall", name, values, has, drops=True)

    def regret(self) -> None:
        utility = self.data.utility
        best = None if utility is None else metrics.top_order(utility, self.data.offsets)

        def values(k: int) -> Floats:
            assert utility is not None
            return metrics.regret_at_k(utility, self.order, self.data.offsets, k, best=best)

        self.each("regret", "U", values)

    def ranker(self, score: Floats, seed: int) -> None:
        """Add agreement with the ranker, and what a cut costs behind it."""
        data, m = self.data, self.truths.top_m
        cut = ("score_lost", "gain")
        if data.ranker is None:
            why = self.truths.missing["ranker"]
            keys = [f"{name}@{k}/ranker" for name in ("overlap", *cut) for k in self.ks]
            keys += ["kendall/ranker", "consistency/ranker"]
            keys += [f"survival@{k}/T1" for k in self.ks]
            self.skipped |= dict.fromkeys(keys, why)
            return
        known = ~np.isnan(data.ranker)
        offsets, heavy = data.offsets_of(known), data.ranker[known]
        renumbered = np.cumsum(known) - 1
        mine = renumbered[self.order[known[self.order]]]
        theirs = metrics.top_order(heavy, offsets, seed=seed, row=data.row)
        same = "the ranker tells no two candidates of a request apart"
        kendall, consistency = metrics.rank_agreement(score[known], heavy, offsets)
        self.add("kendall/ranker", kendall, same)
        self.add("consistency/ranker", consistency, same)
        scored = np.diff(offsets)
        useful, too_large = useful_ks(scored[scored > 0], self.ks)
        too_large |= unfilled(self.kept, data.offsets, useful)
        unscored = np.where(known, data.ranker, -np.inf)
        all_theirs = metrics.top_order(unscored, data.offsets, seed=seed, row=data.row)
        for k in self.ks:
            names = [f"{name}@{k}/ranker" for name in ("overlap", *cut)]
            if k in too_large:
                keys = [*names, f"survival@{k}/T1"]
                self.skipped |= dict.fromkeys(keys, too_large[k])
                continue
            self.add(names[0], metrics.overlap_at_k(mine, theirs, offsets, k))
            if m is None or m > k:
                why = f"the ranker takes {m}, more than k" if m else "m is not known (top_m)"
                self.skipped |= dict.fromkeys([*names[1:], f"survival@{k}/T1"], why)
                continue
            sizes = {"num_kept": k, "num_final": m}
            lost = metrics.value_lost(heavy, mine, offsets, **sizes, best=theirs)
            self.add(names[1], lost)
            gain = metrics.gain_kept(self.order, all_theirs, data.offsets, **sizes)
            self.add(names[2], np.where(scored >= m, gain, np.nan))
            shown = metrics.survivors(unscored, self.order, data.offsets, **sizes, best=all_theirs)
            survived = np.diff(data.offsets_of(shown & data.positive))
            positives = np.diff(data.offsets_of(data.positive))
            share = np.divide(
                survived, positives, out=np.full(len(positives), np.nan), where=positives > 0
            )
            self.add(f"survival@{k}/T1", share, "no request has a positive")
