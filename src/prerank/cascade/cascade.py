"""A cascade is a list of tiers; its output is an order, never a comparison of their scores.

Shapes: ``R`` requests, ``I`` candidates, ``F`` candidates forwarded to a tier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prerank.batch import Inputs, Scores
from prerank.cascade.tier import Tier
from prerank.errors import InputError
from prerank.jagged import lengths_to_offsets
from prerank.models.base import Model

__all__ = ["Cascade", "Order"]


@dataclass(frozen=True, slots=True)
class Order:
    """What a cascade says of a batch.

    Parameters
    ----------
    position : Tensor ``[I]`` int64
        0-based place of each candidate in its request's final order.
    tier : Tensor ``[I]`` int64
        Index of the last tier that scored it.
    """

    position: Tensor
    tier: Tensor


class Cascade:
    """Tiers in order; each scores what the one before forwarded.

    The forwarded part comes first, in the order of the later tier; the rest follows in the order
    of the tier that kept it back. Scores of two tiers are never compared.

    Parameters
    ----------
    tiers : sequence of Tier
        At least one; all but the last say what to forward.

    Raises
    ------
    InputError
        No tier, or one before the last that does not say what to forward.
    """

    def __init__(self, tiers: Sequence[Tier]) -> None:
        if not tiers:
            raise InputError("cascade: no tier; expected at least one")
        for index, tier in enumerate(tiers[:-1]):
            if tier.forward is None:
                raise InputError(
                    f"cascade: tier {index} does not say what to forward; give a share or a count"
                )
        self.tiers = tuple(tiers)

    @property
    def models(self) -> tuple[Model, ...]:
        """The models of the tiers."""
        return tuple(tier.model for tier in self.tiers)

    def describe(self) -> str:
        """Return the cascade in words, for reports."""
        return ", ".join(tier.describe() for tier in self.tiers)

    @torch.inference_mode()
    def rank(self, inputs: Sequence[Inputs]) -> Order:
        """Order the candidates of a batch.

        Parameters
        ----------
        inputs : sequence of Inputs
            The same requests for each tier, made by its model's own transforms.

        Returns
        -------
        Order
            Place and tier of each candidate.
        """
        first = inputs[0]
        num_candidates = first.offsets.diff()
        position = torch.empty_like(first.request_of)
        deepest = torch.zeros_like(first.request_of)
        chosen = torch.arange(first.num_candidates, device=first.request_of.device)
        for index, (tier, view) in enumerate(zip(self.tiers, inputs, strict=True)):
            value = tier.order_value(score_candidates(tier.model, view, chosen))
            deepest[chosen] = index
            request = first.request_of[chosen]
            order = _descending(value, request)
            ordered, request = chosen[order], request[order]
            count = torch.bincount(request, minlength=first.num_requests)
            place = torch.arange(ordered.numel(), device=ordered.device)
            place = place - lengths_to_offsets(count)[request]
            position[ordered] = place
            if index + 1 < len(self.tiers):
                keep = place < torch.minimum(tier.num_forwarded(num_candidates), count)[request]
                chosen = ordered[keep].sort().values
        return Order(position, deepest)


def score_candidates(model: Model, inputs: Inputs, candidates: Tensor) -> Scores:
    """Score only the given candidates ``[F]``, computing only the items they need."""
    if candidates.numel() == inputs.num_candidates:
        scores: Scores = model(inputs)
        return scores
    pairs = inputs.pairs.select(candidates)
    items, item_of = torch.unique(pairs.item_of, return_inverse=True)
    pairs = type(pairs)(pairs.request_of, item_of, pairs.candidate, pairs.context)
    item_state = model.item_state(inputs.items.select(items))
    return model.score(model.request_state(inputs), item_state, pairs)


def _descending(value: Tensor, request: Tensor) -> Tensor:
    """Return candidates by request, then by falling value; ties keep their order."""
    order = torch.sort(value, descending=True, stable=True).indices
    return order[torch.sort(request[order], stable=True).indices]
