"""What happened on a part, and how good an order is: per-request values of the study's metrics.

=====================  ===========================================================================
``auc/SOURCE``         within a request, positives against the logged negatives of one source
``auc/macro``          the mean of those that a request defines
``recall@k/T1``        share of the engaged exposures in the first ``k``; ``k`` is half, once and
                       twice what pre-ranking kept
``recall@k/T3``        share of the ranker's first ``m``; ``m`` is what ranking kept
``recall@m/T3:10``     share of the ranker's first ten in the first ``m``
``recall@k/U``         share of the ``m`` items of highest true utility (simulated worlds)
``utility@10/U``       mean true utility of the first ten, in its unit (simulated worlds)
=====================  ===========================================================================

Orders are of what retrieval brought: random rows that only evaluation added to the list (stage
``pool``) are in no order, no truth and no share; the AUC against them reads all rows.

Shapes: ``R`` requests, ``I`` candidates, ``A`` all rows of the log, pool rows among them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from prerank import metrics
from prerank.evaluation.collect import Collected, collect
from prerank.evaluation.truth.ranker import logged_ranker
from prerank.evaluation.truth.truths import TruthOptions, Truths
from prerank.log import Part
from prerank.world import World

__all__ = ["Facts", "places_of"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
_SEED = 0
_NARROW = 10


@dataclass(frozen=True, slots=True)
class Facts:
    """A part without scores, and its truths.

    Parameters
    ----------
    data : Collected
        What happened, without pool rows.
    everything : Collected
        The same with them.
    is_listed : ndarray ``[A]`` bool
        Rows of ``everything`` that are in ``data``.
    truths : Truths
        T1, T3, U as far as they exist, the quota and ``m``.
    narrow : ndarray ``[I]`` bool, optional
        The ranker's first ten.
    """

    data: Collected
    everything: Collected
    is_listed: Bools
    truths: Truths
    narrow: Bools | None

    @classmethod
    def of(cls, part: Part, folder: Path) -> Facts:
        """Read a part once.

        Parameters
        ----------
        part : Part
            Some requests.
        folder : Path
            Where the true utility of a simulated world is kept: it takes long to compute.
        """
        log = part.log
        kept = folder / f"utility-{part.name}.npy"
        world = None
        if (log.path / "world.json").is_file() and not kept.is_file():
            world = World.open(log.path)
        data = collect(part, {}, ranker=logged_ranker(log.schema), world=world)
        if data.utility is not None:
            folder.mkdir(parents=True, exist_ok=True)
            np.save(kept, data.utility)
        elif kept.is_file():
            data = dataclasses.replace(data, utility=np.load(kept, allow_pickle=False))
        everything, is_listed = data, data.stage != 0
        data = _subset(data, is_listed)
        truths = Truths.of(data, log, TruthOptions(groups=("T1", "T3", "U", "ranker")), _SEED)
        narrow = None
        if data.ranker is not None:
            options = TruthOptions(groups=("T1", "T3"), top_m=_NARROW)
            narrow = Truths.of(data, log, options, _SEED).binary["T3"]
        return cls(data, everything, is_listed, truths, narrow)

    @property
    def user(self) -> Ints:
        """User of each request ``[R]``."""
        return self.data.user

    def listed(self, score: Floats) -> Floats:
        """Return the scores ``[I]`` of what retrieval brought, of those of all rows ``[A]``."""
        chosen: Floats = score[self.is_listed]
        return chosen

    @property
    def tie(self) -> Ints:
        """Among candidates scored alike, lower comes first ``[I]``: a draw."""
        return places_of(np.zeros(len(self.data.source)), self.data)

    def cut_offs(self) -> tuple[int, ...]:
        """Half, once and twice what pre-ranking kept."""
        quota = self.truths.quota or 1
        return max(1, quota // 2), quota, 2 * quota

    def values(self, score: Floats, *, aucs: bool = True) -> dict[str, Floats]:
        """Return the metrics of an order, ``[R]`` each, NaN where a request does not define one.

        Parameters
        ----------
        score : ndarray ``[A]``, or ``[I]`` without AUCs
            Higher comes first.
        aucs : bool
            Whether to compute the AUCs; recall alone is several times faster.
        """
        data, truths = self.data, self.truths
        found: dict[str, Floats] = {}
        if aucs:
            found |= self._aucs(score)
            score = self.listed(score)
        order = metrics.top_order(score, data.offsets, seed=_SEED, row=data.row)
        for name in ("T1", "T3", "U"):
            if name in truths.binary:
                for k in self.cut_offs():
                    found[f"recall@{k}/{name}"] = metrics.recall_at_k(
                        truths.binary[name], order, data.offsets, k
                    )
        if self.narrow is not None and truths.top_m is not None:
            found[f"recall@{truths.top_m}/T3:{_NARROW}"] = metrics.recall_at_k(
                self.narrow, order, data.offsets, truths.top_m
            )
        if data.utility is not None:
            place = np.arange(len(order)) - np.repeat(data.offsets[:-1], data.lengths)
            request = np.repeat(np.arange(len(data.row)), data.lengths)
            first = place < _NARROW
            total = np.bincount(request[first], data.utility[order[first]], minlength=len(data.row))
            found[f"utility@{_NARROW}/U"] = total / np.minimum(data.lengths, _NARROW)
        return found

    def _aucs(self, score: Floats) -> dict[str, Floats]:
        data = self.everything
        found = {}
        for code, source in enumerate(data.schema.source_names):
            chosen = data.positive | (data.source == code)
            found[f"auc/{source}"] = metrics.per_request_auc(
                score[chosen], data.positive[chosen], data.offsets_of(chosen)
            )
        stacked = np.stack(list(found.values()))
        known = ~np.isnan(stacked)
        count = known.sum(axis=0)
        total = np.where(known, stacked, 0.0).sum(axis=0)
        found["auc/macro"] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        return found


def _subset(data: Collected, chosen: Bools) -> Collected:
    """Return the same requests with some of their candidates."""

    def of(values: npt.NDArray[Any] | None) -> Any:
        return None if values is None else values[chosen]

    rows = ["item", "stage", "shown", "source", "engaged", "targets"]
    rows += ["ranker", "utility", "propensity"]
    return dataclasses.replace(
        data,
        offsets=data.offsets_of(chosen),
        scores={name: of(values) for name, values in data.scores.items()},
        **{name: of(getattr(data, name)) for name in rows},
    )


def places_of(score: Floats, data: Collected) -> Ints:
    """Return the 0-based place ``[I]`` of each candidate in its request, best first."""
    order = metrics.top_order(score, data.offsets, seed=_SEED, row=data.row)
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order)) - np.repeat(data.offsets[:-1], data.lengths)
    return place
