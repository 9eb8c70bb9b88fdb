"""What tiers compute of a batch: each state once, and a trunk's states passed on.

A tier scores only what reached it and computes only the items it needs. A model that is built over
an earlier tier's model gets that one's states, if both read the same inputs; its logits are the
same either way.

Shapes: ``R`` requests, ``U`` unique items, ``F`` candidates that reached a tier.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import Module

from prerank.batch import Inputs, Rows, Scores
from prerank.models.base import Model, OverTrunk

__all__ = ["States"]


@dataclass(frozen=True, slots=True)
class _Kept:
    """States of a tier: ``R`` requests, and the items whose rows are listed, in rising order."""

    request: Rows
    item: Rows
    rows: Tensor


class States:
    """Scores tiers of one batch, first to last.

    Parameters
    ----------
    models : sequence of Model
        Of the tiers.
    inputs : sequence of Inputs
        The same requests for each.
    """

    def __init__(self, models: Sequence[Model], inputs: Sequence[Inputs]) -> None:
        self.models = models
        self.inputs = inputs
        self.trunk_of = [self._trunk(index) for index in range(len(models))]
        self.kept: dict[int, _Kept] = {}

    def score(self, index: int, candidates: Tensor) -> Scores:
        """Score candidates ``[F]`` int64, in ascending order, with the model of a tier."""
        model, inputs, trunk = self.models[index], self.inputs[index], self.trunk_of[index]
        every = candidates.numel() == inputs.num_candidates
        if every and trunk is None and index not in self.trunk_of:
            scores: Scores = model(inputs)
            return scores
        pairs = inputs.pairs if every else inputs.pairs.select(candidates)
        rows, item_of = torch.unique(pairs.item_of, return_inverse=True)
        items = inputs.items.select(rows)
        request: Rows
        item: Rows
        if trunk is None:
            request, item = model.request_state(inputs), model.item_state(items)
        else:
            assert isinstance(model, OverTrunk)
            kept = self.kept[trunk]
            below = kept.item.select(torch.searchsorted(kept.rows, rows))
            request = model.request_state_from(kept.request, inputs)
            item = model.item_state_from(below, items)
        if index in self.trunk_of:
            self.kept[index] = _Kept(request, item, rows)
        return model.score(request, item, dataclasses.replace(pairs, item_of=item_of))

    def _trunk(self, index: int) -> int | None:
        """Return the earlier tier whose states a tier can start from."""
        model = self.models[index]
        if not isinstance(model, OverTrunk):
            return None
        for earlier in range(index):
            same = self.inputs[earlier] is self.inputs[index]
            if same and _is_over(model, self.models[earlier]):
                return earlier
        return None


@dataclass(frozen=True, slots=True)
class _Compared:
    """Whether a model is over another, and which weights said so."""

    modules: tuple[Module, ...]
    weights: tuple[tuple[int, int], ...]
    is_over: bool


_OVER: WeakKeyDictionary[Model, WeakKeyDictionary[Model, _Compared]] = WeakKeyDictionary()


def _is_over(model: Model, other: Model) -> bool:
    """Compare weights once, and again when either model's weights were written to since."""
    found = _OVER.setdefault(model, WeakKeyDictionary())
    known = found.get(other)
    if known is None or known.weights != _written((model, other, *known.modules)):
        assert isinstance(model, OverTrunk)
        # Inner modules only: the models themselves are keys that must be free to go.
        modules = tuple(m for top in (model, other) for m in top.modules() if m is not top)
        written = _written((model, other, *modules))
        known = _Compared(modules, written, model.is_over(other))
        found[other] = known
    return known.is_over


def _written(modules: Sequence[Module]) -> tuple[tuple[int, int], ...]:
    """Identify weights and how often they were written; far cheaper than ``parameters()``."""
    return tuple(
        (id(p), 0 if p.is_inference() else p._version)
        for module in modules
        for p in module._parameters.values()
        if p is not None
    )
