"""A cascade is a list of tiers; its output is an order, never a comparison of their scores.

Shapes: ``R`` requests, ``I`` candidates, ``F`` candidates forwarded to a tier.
"""

from __future__ import annotations

import dataclasses
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
        No tier, one before the last that does not say what to forward, or a last one that does.

    Examples
    --------
    >>> from prerank.models import MLPPreranker, TwoTower
    >>> from prerank.schema import Feature, Label, Schema
    >>> item = Feature(name="item", owner="item", kind="categorical")
    >>> schema = Schema(features=(item,), labels=(Label(name="click"),))
    >>> light, strong = TwoTower.Config().build(schema), MLPPreranker.Config().build(schema)
    >>> Cascade([Tier(light, forward=0.3), Tier(strong)]).describe()
    'TwoTower -> 30 %, MLPPreranker'
    """

    def __init__(self, tiers: Sequence[Tier]) -> None:
        if not tiers:
            raise InputError("cascade: no tier; expected at least one")
        for index, tier in enumerate(tiers[:-1]):
            if tier.forward is None:
                raise InputError(
                    f"cascade: tier {index} does not say what to forward; give a share or a count"
                )
        if tiers[-1].forward is not None:
            raise InputError(
                f"cascade: the last tier forwards {tiers[-1].forward}, but none follows; leave it "
                "out, or add a tier"
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
    def rank(self, inputs: Sequence[Inputs], *, tie: Tensor | None = None) -> Order:
        """Order the candidates of a batch.

        Parameters
        ----------
        inputs : sequence of Inputs
            The same requests for each tier, made by its model's own transforms.
        tie : Tensor ``[I]``, optional
            Among candidates that a tier values equally, lower comes first. Default: the order in
            which they come, which suits serving; for evaluation it would reward a model that
            cannot tell candidates apart by the order of the log.

        Returns
        -------
        Order
            Place and tier of each candidate.

        Raises
        ------
        InputError
            Another number of inputs than of tiers; a value that is not finite (the tier is named).
        """
        if len(inputs) != len(self.tiers):
            raise InputError(f"cascade: {len(self.tiers)} tiers got {len(inputs)} inputs")
        first = inputs[0]
        num_candidates = first.offsets.diff()
        position = torch.empty_like(first.request_of)
        deepest = torch.zeros_like(first.request_of)
        chosen = torch.arange(first.num_candidates, device=first.request_of.device)
        for index, (tier, view) in enumerate(zip(self.tiers, inputs, strict=True)):
            value = tier.order_value(_score(tier.model, view, chosen))
            if not value.isfinite().all():
                raise InputError(
                    f"cascade: tier {index} ({type(tier.model).__name__}) gives a value that is "
                    "not finite; its run diverged or its weights are damaged"
                )
            deepest[chosen] = index
            request = first.request_of[chosen]
            order = _descending(value, request, None if tie is None else tie[chosen])
            ordered, request = chosen[order], request[order]
            count = torch.bincount(request, minlength=first.num_requests)
            place = torch.arange(ordered.numel(), device=ordered.device)
            place = place - lengths_to_offsets(count)[request]
            # Whatever a later tier gets are the first places, which it fills anew.
            position[ordered] = place
            if index + 1 < len(self.tiers):
                keep = place < tier.num_forwarded(num_candidates)[request]
                chosen = ordered[keep].sort().values
        return Order(position, deepest)


def _score(model: Model, inputs: Inputs, candidates: Tensor) -> Scores:
    """Score candidates ``[F]``, given in ascending order, computing only the items they need."""
    if candidates.numel() == inputs.num_candidates:
        scores: Scores = model(inputs)
        return scores
    pairs = inputs.pairs.select(candidates)
    items, item_of = torch.unique(pairs.item_of, return_inverse=True)
    item_state = model.item_state(inputs.items.select(items))
    pairs = dataclasses.replace(pairs, item_of=item_of)
    return model.score(model.request_state(inputs), item_state, pairs)


def _descending(value: Tensor, request: Tensor, tie: Tensor | None) -> Tensor:
    """Return candidates by request, then by falling value, then by rising ``tie``."""
    order = torch.arange(value.numel(), device=value.device)
    for key, descending in ((tie, False), (value, True), (request, False)):
        if key is not None:
            order = order[key[order].sort(stable=True, descending=descending).indices]
    return order
