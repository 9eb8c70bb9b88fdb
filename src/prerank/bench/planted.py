"""Impressions whose click probability is known, for benchmarks of training alone.

Shapes: ``N`` impressions, ``F`` fields.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Impressions", "planted_impressions"]


@dataclass(frozen=True, slots=True)
class Impressions:
    """Ids ``[N, F]`` int64, labels ``[N]`` float32 and their planted probabilities ``[N]``."""

    ids: Tensor
    label: Tensor
    probability: Tensor

    def part(self, start: int, stop: int | None = None) -> Impressions:
        """Return some of them, in order."""
        kept = slice(start, stop)
        return Impressions(self.ids[kept], self.label[kept], self.probability[kept])

    def batches(self, batch_size: int) -> list[tuple[Tensor, Tensor]]:
        """Cut into ids ``[B, F]`` and labels ``[B]``."""
        ids, labels = (torch.split(x, batch_size) for x in (self.ids, self.label))
        return list(zip(ids, labels, strict=True))


def planted_impressions(
    num: int, *, fields: int = 26, rows: int = 10_000, zipf: float = 1.1, seed: int = 0
) -> Impressions:
    """Draw impressions whose click probability is known.

    Ids of each field are Zipf distributed, ``P(k) ~ k ** -zipf``. Each id has a normal effect; a
    click's logit is their sum, scaled to a standard deviation of 1.5.

    Parameters
    ----------
    num, fields, rows : int
        Impressions, fields, and ids of each field.

    Examples
    --------
    >>> some = planted_impressions(100, fields=3, rows=50)
    >>> some.ids.shape, int(some.ids.max()) < 50, bool((some.probability > 0).all())
    (torch.Size([100, 3]), True, True)
    """
    rng = np.random.default_rng(seed)
    cumulative = np.cumsum(np.arange(1, rows + 1, dtype=np.float64) ** -zipf)
    ids_NF = np.empty((num, fields), dtype=np.int64)
    logit_N = np.zeros(num)
    for k in range(fields):
        ids_NF[:, k] = np.searchsorted(cumulative, rng.random(num) * cumulative[-1])
        # Which of the ids are frequent differs by field, and so do their effects.
        logit_N += rng.standard_normal(rows)[ids_NF[:, k]]
    probability_N = 1 / (1 + np.exp(-1.5 / np.sqrt(fields) * logit_N))
    label_N = rng.random(num) < probability_N
    return Impressions(
        torch.from_numpy(ids_NF),
        torch.from_numpy(label_N.astype(np.float32)),
        torch.from_numpy(probability_N.astype(np.float32)),
    )
