"""A cascade is a list of tiers; its output is an order, never a comparison of their scores.

**Merge.** A tier sorts what reached it. The forwarded part comes first (merge ``front``), or stays
in the places it held (``places``); the next tier sorts it anew within just those places. So three
blocks of ``router="margin"`` are: above the band in the light order, the band in the expressive
order, below it in the light order. A later tier replaces the order of what it scores and touches
nothing else. Sums and products of two models' scores are not offered: the tiers are trained on
different sources, so their numbers share no scale, and a sum would rank a candidate that only one
of them saw against one that both saw. (The authors do not say how they combine; replacing is our
reading.)

**Tail.** With ``tail="drop"`` whatever stands behind the last forwarded candidate of a request has
no place, position -1.

**Reserves** come last, on the finished order: see :mod:`prerank.cascade.reserves`.

Shapes: ``R`` requests, ``I`` candidates, ``F`` candidates forwarded to a tier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from prerank.batch import Inputs, Scores
from prerank.cascade.ladder import Ladder, sort_within
from prerank.cascade.reserves import Moves, Reserves, group_codes
from prerank.cascade.routers import Facts
from prerank.cascade.states import States
from prerank.cascade.tier import Tier
from prerank.errors import InputError
from prerank.jagged import lengths_to_offsets, segment_max
from prerank.models.base import Model

__all__ = ["Cascade", "Limit", "Order", "Scoring"]


Limit = Callable[[int, Tensor], Tensor]


class Scoring(Protocol):
    """What scores the candidates that reach a tier; :class:`~prerank.cascade.states.States`."""

    def score(self, index: int, candidates: Tensor) -> Scores:
        """Score candidates ``[F]`` int64, in ascending order, with the model of a tier."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a cascade says of a batch.

    Parameters
    ----------
    position : Tensor ``[I]`` int64
        0-based place of each candidate in its request's final order; -1 where it was dropped.
    tier : Tensor ``[I]`` int64
        Index of the last tier that scored it.
    moves : mapping of rule to Moves
        What each reserve and cap did; empty without reserves.
    """

    position: Tensor
    tier: Tensor
    moves: Mapping[str, Moves] = field(default_factory=dict)

    @property
    def dropped(self) -> Tensor:
        """Which candidates ``[I]`` bool have no place."""
        return self.position < 0


class Cascade:
    """Tiers in order; each scores what the one before forwarded.

    The forwarded part comes first, in the order of the later tier; the rest follows in the order
    of the tier that kept it back. Scores of two tiers are never compared.

    Parameters
    ----------
    tiers : sequence of Tier
        At least one; all but the last say what to forward.
    reserves : Reserves, optional
        Minima and maxima of groups among the first places of the final order.

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

    def __init__(self, tiers: Sequence[Tier], reserves: Reserves | None = None) -> None:
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
        self.reserves = reserves

    @property
    def models(self) -> tuple[Model, ...]:
        """The models of the tiers."""
        return tuple(tier.model for tier in self.tiers)

    def describe(self) -> str:
        """Return the cascade in words, for reports."""
        tiers = ", ".join(tier.describe() for tier in self.tiers)
        return tiers if self.reserves is None else f"{tiers}; {self.reserves.describe()}"

    @torch.inference_mode()
    def rank(
        self,
        inputs: Sequence[Inputs],
        *,
        tie: Tensor | None = None,
        groups: Mapping[str, Tensor] | None = None,
        facts: Facts | None = None,
        states: Scoring | None = None,
        limit: Limit | None = None,
    ) -> Order:
        """Order the candidates of a batch.

        Parameters
        ----------
        inputs : sequence of Inputs
            The same requests for each tier, made by its model's own transforms. Give one object
            to tiers of equal transforms: only then can a model that is built over an earlier one
            (:class:`prerank.models.base.OverTrunk`) start from its states.
        tie : Tensor ``[I]``, optional
            Among candidates that a tier values equally, lower comes first. Default: the order in
            which they come, which suits serving; for evaluation it would reward a model that
            cannot tell candidates apart by the order of the log.
        groups : mapping of str to Tensor ``[I]``, optional
            What the reserves speak of: bool marks (``pinned``, ``new``) or int64 codes
            (``channel``, ``author``), negative for none. Categorical features of item and
            candidate need not be given.
        facts : Facts, optional
            For the routers ``random`` and ``oracle``, which serving never uses.
        states : Scoring, optional
            What scores, instead of the models on the inputs: an engine that holds states. Of the
            inputs only the first is read then, for the requests and the features of reserves.
        limit : callable, optional
            Called with a tier's index and how many candidates each request would forward to it
            ``[R]`` int64; returns how many it may ``[R]``. The rest stays as the tiers before have
            ordered it: for deadlines.

        Returns
        -------
        Order
            Place and tier of each candidate.

        Raises
        ------
        InputError
            Another number of inputs than of tiers; a value that is not finite (the tier is named);
            a group or fact that a rule needs and nobody gave.
        """
        if len(inputs) != len(self.tiers):
            raise InputError(f"cascade: {len(self.tiers)} tiers got {len(inputs)} inputs")
        first = inputs[0]
        states = States(self.models, inputs) if states is None else states
        num_candidates = first.offsets.diff()
        device = first.request_of.device
        position = torch.empty_like(first.request_of)
        deepest = torch.zeros_like(first.request_of)
        kept: Tensor | None = None
        chosen = torch.arange(first.num_candidates, device=device)
        # Places that the tier fills, in rising order within each request.
        slots = chosen - first.offsets[first.request_of]
        offsets = first.offsets
        for index, tier in enumerate(self.tiers):
            scores = states.score(index, chosen)
            value = tier.order_value(scores)
            if not value.isfinite().all():
                raise InputError(
                    f"cascade: tier {index} ({type(tier.model).__name__}) gives a value that is "
                    "not finite; its run diverged or its weights are damaged"
                )
            deepest[chosen] = index
            order = _descending(value, offsets, None if tie is None else tie[chosen])
            ordered = chosen[order]
            if tier.forward is None:
                position[ordered] = slots
                break
            ladder = Ladder.of(value[order], offsets, num_candidates)
            known = Facts() if facts is None else facts.select(ordered)
            selected = tier.select(ladder, scores.logits[order, 0], known)
            if tier.router != "score" and tier.merge_rule == "front":
                front = sort_within(~selected, offsets)
                ordered, selected = ordered[front], selected[front]
            position[ordered] = slots
            if tier.tail == "drop":
                reached = torch.where(selected, ladder.place, -1)
                last = segment_max(reached.double(), ladder.request, ladder.num_requests)
                behind = ladder.place > last[ladder.request]
                kept = torch.ones_like(first.request_of, dtype=torch.bool) if kept is None else kept
                kept[ordered[behind]] = False
            if limit is not None:
                wanted = torch.bincount(ladder.request[selected], minlength=ladder.num_requests)
                selected = _first_of(selected, ladder, limit(index + 1, wanted))
                if not selected.any():
                    break
            slots = slots[selected]
            forwarded = torch.zeros_like(first.request_of, dtype=torch.bool)
            forwarded[ordered[selected]] = True
            chosen = forwarded.nonzero().squeeze(1)
            count = torch.bincount(ladder.request[selected], minlength=ladder.num_requests)
            offsets = lengths_to_offsets(count)
        return self._finish(first, position, deepest, kept, groups or {})

    def _finish(
        self,
        inputs: Inputs,
        position: Tensor,
        deepest: Tensor,
        kept: Tensor | None,
        groups: Mapping[str, Tensor],
    ) -> Order:
        """Apply reserves to the order and close the places of dropped candidates."""
        if self.reserves is None and kept is None:
            return Order(position, deepest)
        offsets, starts = inputs.offsets, inputs.offsets[inputs.request_of]
        sequence = torch.empty_like(position)
        sequence[starts + position] = torch.arange(position.numel(), device=position.device)
        alive = torch.ones_like(position, dtype=torch.bool) if kept is None else kept[sequence]
        moves: dict[str, Moves] = {}
        if self.reserves is not None:
            codes = group_codes(self.reserves, inputs, self.tiers[0].model.schema, groups)
            moved = {id(code): code[sequence] for code in codes.values()}
            codes = {name: moved[id(code)] for name, code in codes.items()}
            arranged = self.reserves.apply(offsets, codes, alive)
            sequence, alive, moves = sequence[arranged.order], arranged.alive, arranged.moves
        if not alive.all():
            front = sort_within(~alive, offsets)
            sequence, alive = sequence[front], alive[front]
        # Requests are contiguous, so their starts fit the sequence as well.
        place = torch.arange(position.numel(), device=position.device) - starts
        position = torch.empty_like(position)
        position[sequence] = torch.where(alive, place, -1)
        return Order(position, deepest, moves)


def _first_of(selected: Tensor, ladder: Ladder, most: Tensor) -> Tensor:
    """Return which of the selected ``[F]`` are among the first ``most [R]`` of their request."""
    count = selected.long().cumsum(0)
    before = torch.cat([count.new_zeros(1), count])[ladder.offsets[:-1]]
    return selected & (count - before[ladder.request] <= most[ladder.request])


def _descending(value: Tensor, offsets: Tensor, tie: Tensor | None) -> Tensor:
    """Return candidates by request, then by falling value, then by rising ``tie``."""
    if tie is None:
        return sort_within(value, offsets, descending=True)
    order = sort_within(tie, offsets)
    return order[sort_within(value[order], offsets, descending=True)]
