"""Cross-entropy of positives and of each source's negatives, summed apart.

Shapes: ``I`` candidates, ``P`` positives, ``N`` negatives, ``G`` sources, ``K = 1 + G``: the
positives first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prerank.jagged import segment_sum
from prerank.objectives.density import Weigh
from prerank.objectives.focal import focal_loss
from prerank.objectives.members import Members

__all__ = ["cross_entropy_sums"]


def cross_entropy_sums(
    logit_I: Tensor,
    members: Members,
    is_covered_G: Tensor,
    weigh: Weigh | None = None,
    focal: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return weighted sums of cross-entropies ``[K]`` and their weights ``[K]``.

    Candidates of requests without positives count as any others.

    Parameters
    ----------
    logit_I : Tensor ``[I]``
        One task's logits.
    members : Members
        Positives and negatives.
    is_covered_G : Tensor bool
        Sources whose negatives count.
    weigh : callable, optional
        From gradient norms ``|p - y|`` to factors of the losses; what a loss is divided by stays.
    focal : float
        Exponent of the focal factor.
    """
    is_covered_N = is_covered_G.to(logit_I.device)[members.negative_source]
    odds = torch.cat([-logit_I[members.positives], logit_I[members.negatives]])
    weight = torch.cat([members.positive_weight, members.negative_weight * is_covered_N])
    place = torch.cat([torch.zeros_like(members.positives), 1 + members.negative_source])
    loss = weight * focal_loss(odds, focal)
    if weigh is not None:
        loss = loss * weigh(torch.sigmoid(odds.detach()), weight)
    num_places = 1 + members.num_sources
    return segment_sum(loss, place, num_places), segment_sum(weight, place, num_places)
