"""Weights that even out how often each gradient norm occurs.

Source: gradient harmonising mechanism (GHM-C; Li, Liu and Wang, AAAI 2019, arXiv 1811.05181): a
sample weighs the inverse of the density of its gradient norm, counted in bins of equal width, the
counts smoothed over updates. That HAP's authors compared with it, and how, is inferred: here one
histogram holds the samples of all sources, whatever the grouping; for a softmax the norm of a
negative is its share of the denominator, averaged over the positives it is compared with.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Density", "Weigh"]

Weigh = Callable[[Tensor, Tensor], Tensor]
"""From gradient norms in [0, 1] and what each counts, both ``[N]``, to weights ``[N]``."""


class Density:
    """A histogram over gradient norms in [0, 1], smoothed over updates.

    Parameters
    ----------
    num_bins : int
        Bins of equal width.
    momentum : float
        How much of the histogram an update keeps, in [0, 1).

    Attributes
    ----------
    share : Tensor ``[num_bins]`` float64
        Share of the samples in each bin; zeros before the first update.

    Examples
    --------
    >>> density = Density(num_bins=2, momentum=0.0)
    >>> norm = torch.tensor([0.1, 0.2, 0.3, 0.9])
    >>> density.weights(norm, torch.ones(4), lambda counts: counts)
    tensor([0.6667, 0.6667, 0.6667, 2.0000])
    """

    def __init__(self, num_bins: int, momentum: float) -> None:
        self.momentum = momentum
        self.share = torch.zeros(num_bins, dtype=torch.float64)

    def weights(
        self,
        norm_N: Tensor,
        weight_N: Tensor,
        normaliser: Callable[[Tensor], Tensor],
        *,
        is_kept: bool = True,
    ) -> Tensor:
        """Return the weight of each sample, ``[N]``; without momentum their mean is 1.

        Parameters
        ----------
        norm_N : Tensor ``[N]``
            Gradient norms in [0, 1]; no gradient passes.
        weight_N : Tensor ``[N]``
            What each sample counts in the histogram.
        normaliser : callable
            Averages the counts over processes.
        is_kept : bool
            Whether the histogram of later updates takes note of this batch.
        """
        with torch.no_grad():
            num_bins = len(self.share)
            bin_N = (norm_N * num_bins).long().clamp(0, num_bins - 1)
            count = torch.zeros(num_bins, dtype=torch.float64, device=norm_N.device)
            count = normaliser(count.index_add(0, bin_N, weight_N.double()))
            total = count.sum()
            before = self.share.to(norm_N.device)
            smooth = self.momentum * before + (1.0 - self.momentum) * count / total
            share = torch.where(before.sum() > 0, smooth, count / total)
            # An update without samples says nothing about their norms.
            share = torch.where(total > 0, share, before)
            if is_kept:
                self.share = share.to(self.share.device)
            weight = torch.where(share > 0, 1.0 / (share * (share > 0).sum()), 1.0)
            return weight[bin_N].to(norm_N.dtype)
