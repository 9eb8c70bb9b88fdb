"""Softmax of a positive against negatives, one denominator per source or one for all.

With ``s`` logits, ``t_g`` the temperature and ``v_g`` the weight of source ``g``, the log-odds of
a negative of ``g`` over positive ``p`` in the same request are

    u[p, g] = log( v_g * sum over n in g of exp((s_n - s_p) / t_g) )

One InfoNCE per source is ``log(1 + exp(u[p, g]))``, a mixed one ``log(1 + sum_g exp(u[p, g]))``.
The negatives of a request are summed once, so all costs ``O(I + P G)``, never positives times
negatives; other positives are in no denominator.

**Parts of a mixed loss.** With ``m[p, g]`` the share of source ``g`` in the denominator, its part
has the gradient of ``m[p, g] * u[p, g]``, ``m`` held fixed: what its negatives get, and the pull
on the positive that they cause. The parts' gradients sum to the mixed loss's gradient exactly; its
value is divided among sources in proportion to ``m``. First derivatives only.

Source: InfoNCE per source is [stated] in the third-party digest of HAP (arXiv 2603.03770);
temperatures, weights, the division into parts, scope, log-Q and densities are inferred or ours.

Shapes: ``R`` requests, ``I`` candidates, ``P`` positives, ``N`` negatives, ``G`` sources,
``S = R * G`` segments.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prerank.jagged import segment_logsumexp, segment_mean
from prerank.objectives.density import Weigh
from prerank.objectives.focal import focal_loss, focal_slope
from prerank.objectives.members import Members

__all__ = ["Contrast"]


@dataclass(frozen=True, slots=True)
class Contrast:
    """Sums over positives, per source.

    Parameters
    ----------
    temperature : Tensor ``[G]``
        What differences of logits are divided by, > 0.
    weight : Tensor ``[G]``
        Weight of a source's negatives in their denominator, > 0.
    is_shared : Tensor ``[G]`` bool
        Whether a positive meets the negatives of all requests of the batch.
    is_mixed : bool
        One denominator for all sources.
    has_log_q : bool
        Divide each negative's term by the probability with which it was sampled.
    focal : float
        Exponent of the focal factor on the positive's softmax.
    """

    temperature: Tensor
    weight: Tensor
    is_shared: Tensor
    is_mixed: bool
    has_log_q: bool
    focal: float

    def __call__(
        self,
        logit_I: Tensor,
        members: Members,
        weigh: Weigh | None = None,
        *,
        is_pulled: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Return summed losses ``[G]`` and the weights ``[G]`` to divide them by.

        A request's positives share one vote, that of their mean weight. A request without
        positives, or without negatives of a source (mixed: of any), is skipped there.

        Parameters
        ----------
        logit_I : Tensor ``[I]``
            One task's logits.
        members : Members
            Who is compared with whom.
        weigh : callable, optional
            Weights of the negatives' gradients, and of the pull on positives they cause.
        is_pulled : bool
            Whether positives take gradient; without it, only the negatives' side is left.
        """
        num_sources = members.num_sources
        source_G = torch.arange(num_sources, device=logit_I.device)
        temperature_G = self.temperature.to(logit_I)
        is_shared_G = self.is_shared.to(logit_I.device)
        num_segments = max(1, members.num_requests) * num_sources

        def segments(request: Tensor, source: Tensor) -> Tensor:
            return torch.where(is_shared_G[source], 0, request) * num_sources + source

        segment_N = segments(members.negative_request, members.negative_source)
        segment_PG = segments(members.positive_request.unsqueeze(1), source_G)
        term_N = logit_I[members.negatives] / temperature_G[members.negative_source]
        term_N = term_N + self._offset(members, segment_N, num_segments)
        positive_P = logit_I[members.positives]
        if not is_pulled:
            positive_P = positive_P.detach()
        pull_PG = positive_P.unsqueeze(1) / temperature_G

        def odds_of(term_N: Tensor) -> Tensor:
            total_S = segment_logsumexp(term_N, segment_N, num_segments)
            total_PG = total_S.index_select(0, segment_PG.flatten()).view_as(segment_PG)
            # No gradient goes through the -inf of a source without negatives.
            return torch.where(has_PG, total_PG, 0.0) - pull_PG

        num_S = torch.bincount(segment_N, minlength=num_segments)
        has_PG = num_S[segment_PG] > 0
        odds_PG = odds_of(term_N)
        weight_PG = _votes(members).unsqueeze(1) * (
            has_PG.any(1, keepdim=True).expand_as(has_PG) if self.is_mixed else has_PG
        )
        with torch.no_grad():
            whole_PG = odds_PG
            if self.is_mixed:
                present_PG = odds_PG.masked_fill(~has_PG, float("-inf"))
                whole_PG = torch.logsumexp(present_PG, 1, keepdim=True).expand_as(odds_PG)
                whole_PG = torch.where(weight_PG > 0, whole_PG, 0.0)
            share_PG = torch.where(has_PG, torch.exp(odds_PG - whole_PG), 0.0)
            value_PG = share_PG * focal_loss(whole_PG, self.focal)
        if weigh is not None:
            with torch.no_grad():
                kept = has_PG & (weight_PG > 0)
                log_K = -(pull_PG + focal_loss(whole_PG))[kept]
                share_S = _vote_mean(log_K, segment_PG[kept], weight_PG[kept], num_segments)
                # A negative that meets no positive has no gradient, and does not count.
                counted_N = members.negative_weight * share_S[segment_N].isfinite()
                factor_N = weigh(torch.exp(term_N + share_S[segment_N]), counted_N)
            odds_PG = odds_of(term_N + torch.log(factor_N))
        with torch.no_grad():
            slope_PG = torch.where(has_PG, torch.exp(odds_PG - whole_PG), 0.0)
            slope_PG = slope_PG * focal_slope(whole_PG, self.focal)
        loss_PG = value_PG + slope_PG * (odds_PG - odds_PG.detach())
        return (weight_PG * loss_PG).sum(0), weight_PG.sum(0)

    def _offset(self, members: Members, segment_N: Tensor, num_segments: int) -> Tensor:
        """Return logs of what multiplies each term, ``[N]``.

        A negative counts by its weight over the mean weight of the negatives it stands beside.
        """
        mean_S = segment_mean(members.negative_weight, segment_N, num_segments)
        factor_N = self.weight.to(mean_S)[members.negative_source] * members.negative_weight
        factor_N = factor_N / mean_S[segment_N]
        if self.has_log_q:
            factor_N = factor_N / members.negative_prob.clamp(min=torch.finfo(factor_N.dtype).tiny)
        return torch.log(factor_N)


def _votes(members: Members) -> Tensor:
    """Return a positive's part of its request's vote: weight over the request's positives."""
    count_R = torch.bincount(members.positive_request, minlength=members.num_requests)
    return members.positive_weight / count_R[members.positive_request]


def _vote_mean(log_K: Tensor, segment_K: Tensor, weight_K: Tensor, num_segments: int) -> Tensor:
    """Return logs of weighted means of exponentials, ``[S]``; -inf for an empty segment."""
    log_weight_K = torch.log(weight_K)
    total_S = segment_logsumexp(log_K + log_weight_K, segment_K, num_segments)
    weight_S = segment_logsumexp(log_weight_K, segment_K, num_segments)
    return torch.where(weight_S.isfinite(), total_S - weight_S, float("-inf"))
