"""Tiers over held states: what a cascade asks for a batch, timed and within its deadline.

Shapes: ``R`` requests, ``I`` candidates, ``F`` candidates that reached a tier, ``T`` tasks.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prerank.batch import Rows, Scores
from prerank.models.base import Model
from prerank.nn import FusedTables, SplitLinear
from prerank.serving.deadlines import TierCost
from prerank.serving.prepare import CandidateSide, select
from prerank.serving.states import ItemStates

__all__ = ["Dtype", "HeldStates", "in_bf16", "run_score"]

Dtype = Literal["fp32", "bf16"]


class HeldStates:
    """Scores tiers of one batch from item states of a catalogue and request states of a cache.

    Parameters
    ----------
    models : sequence of Model
        Of the tiers.
    transforms_of : sequence of int
        Set of transforms of each.
    states : sequence of ItemStates
        Of the catalogue.
    requests : sequence of Rows, ``R`` rows each
        Request states of each tier.
    side : CandidateSide
        The candidates.
    costs : sequence of TierCost
        Told what each tier took.
    clock : callable
        Seconds.
    dtype : {"fp32", "bf16"}
        What scores are computed in.
    micro_batch : int
        Most candidates at once, for models whose candidates are independent.

    Attributes
    ----------
    seconds : dict of int to float
        Time of each tier that ran.
    scored : dict of int to (Tensor ``[F]``, Tensor ``[F, T]``)
        Candidates and logits of each tier that ran.
    cut : dict of int to (int, int)
        Tiers whose share was cut: candidates scored, candidates wanted.
    """

    def __init__(
        self,
        models: Sequence[Model],
        transforms_of: Sequence[int],
        states: Sequence[ItemStates],
        requests: Sequence[Rows],
        side: CandidateSide,
        *,
        costs: Sequence[TierCost],
        clock: Callable[[], float],
        dtype: Dtype = "fp32",
        micro_batch: int = 1024,
    ) -> None:
        self.models, self.transforms_of, self.states = models, transforms_of, states
        self.requests, self.side = requests, side
        self.costs, self.clock, self.dtype, self.micro_batch = costs, clock, dtype, micro_batch
        self.seconds: dict[int, float] = {}
        self.scored: dict[int, tuple[Tensor, Tensor]] = {}
        self.cut: dict[int, tuple[int, int]] = {}

    def score(self, index: int, candidates: Tensor) -> Scores:
        """Score candidates ``[F]`` int64, in ascending order, with the model of a tier."""
        start = self.clock()
        model = self.models[index]
        size = max(1, self.micro_batch if model.scope == "candidate" else candidates.numel())
        pieces = torch.split(candidates, size) if candidates.numel() > size else (candidates,)
        parts = [self._piece(index, piece) for piece in pieces]
        logits = parts[0] if len(parts) == 1 else torch.cat(parts)
        seconds = self.clock() - start
        self.seconds[index] = seconds
        self.costs[index].add(candidates.numel(), seconds)
        self.scored[index] = (candidates, logits)
        return Scores(logits)

    def limit(self, deadline: float) -> Callable[[int, Tensor], Tensor]:
        """Return how many candidates may go to a tier so that it ends before a deadline."""

        def allow(index: int, wanted: Tensor) -> Tensor:
            total = int(wanted.sum())
            fits = self.costs[index].num_within(deadline - self.clock())
            if total <= fits:
                return wanted
            allowed = wanted * max(0, fits) // max(1, total)
            self.cut[index] = (int(allowed.sum()), total)
            return allowed

        return allow

    def _piece(self, index: int, candidates: Tensor) -> Tensor:
        pairs, rows = select(self.side, candidates, self.transforms_of[index])
        kind = torch.bfloat16 if self.dtype == "bf16" else torch.float32
        items, item_of = self.states[index].gather(rows, self.side.more[index], kind)
        pairs = dataclasses.replace(pairs, item_of=item_of)
        return run_score(self.models[index], self.requests[index], items, pairs, self.dtype)


def in_bf16(model: Model) -> Model:
    """Return a copy for scoring whose matrices are bfloat16; embedding tables are shared.

    Autocast alone would convert every matrix anew in each call.

    Examples
    --------
    >>> from prerank.models import TwoTower
    >>> from prerank.schema import Feature, Label, Schema
    >>> item = Feature(name="item", owner="item", kind="categorical")
    >>> model = TwoTower.Config().build(Schema(features=(item,), labels=(Label(name="click"),)))
    >>> small = in_bf16(model)
    >>> small.encode.tables is model.encode.tables, small.item_bias.weight.dtype
    (True, torch.bfloat16)
    """
    tables = {id(m): m for m in model.modules() if isinstance(m, FusedTables)}
    copied = copy.deepcopy(model, dict[int, Any](tables))
    for module in copied.modules():
        if isinstance(module, nn.Linear | SplitLinear):
            module.to(torch.bfloat16)
    return copied.eval()


def run_score(model: Model, request: Rows, items: Rows, pairs: object, dtype: Dtype) -> Tensor:
    """Score pairs in a precision; logits come back in float32.

    Parameters
    ----------
    model : Model
        For ``bf16``: what :func:`in_bf16` made of it.
    request, items : Rows
        States, floating-point numbers of the request in float32.
    pairs : Pairs
        The candidates.
    dtype : {"fp32", "bf16"}
        ``bf16``: matrix products in bfloat16, states too.
    """
    if dtype == "fp32":
        logits: Tensor = model.score(request, items, pairs).logits  # type: ignore[arg-type]
        return logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = model.score(request.to(torch.bfloat16), items, pairs)  # type: ignore[arg-type]
    return scores.logits.float()
