"""Cascades as scorers: what their routers and reserves need, read from a log.

Shapes: ``R`` requests, ``I`` candidates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from prerank import metrics
from prerank.batch import Evidence, Inputs
from prerank.cascade import Cascade, Facts, Moves, Order, Reserves
from prerank.errors import InputError
from prerank.evaluation.collect import Kind, ModelScorer, Scores
from prerank.evaluation.result import TierReport
from prerank.log import Columns, Log, Transforms
from prerank.rng import hash64, stream
from prerank.schema import Schema

__all__ = ["CascadeScorer", "groups_of", "same_transforms"]

_ROUTING = stream("cascade.routing")
_DAY_MS = 86_400_000


class CascadeScorer:
    """Scores with a cascade: minus the place in the request's order, -inf where it was dropped.

    Equal values are put in a random order, the one that ``metrics.top_order`` draws from the same
    seed, so a cascade of one tier is ranked as its model.

    Attributes
    ----------
    num_requests : int
        Requests ranked so far.
    num_scored : list of int
        Candidates that each tier scored in them.
    moves : dict of rule to (promoted, demoted, unmet)
        What the reserves did, summed over them.
    """

    kind: Kind = "order"

    def __init__(self, cascade: Cascade, device: str = "cpu", *, seed: int = 0) -> None:
        self.scorers = [ModelScorer(model, device) for model in cascade.models]
        self.cascade = cascade
        self.device = device
        self.seed = seed
        self.num_requests = 0
        self.num_scored = [0] * len(cascade.tiers)
        self.moves: dict[str, tuple[int, int, int]] = {}
        transforms = [scorer.transforms for scorer in self.scorers]
        # Equal transforms make equal inputs: once is enough, and states can be passed on.
        self._made_by = [
            next(k for k, other in enumerate(transforms) if same_transforms(other, mine))
            for mine in transforms
        ]
        self._routers = {tier.router for tier in cascade.tiers if tier.forward is not None}

    def __call__(self, columns: Columns, log: Log, evidence: Evidence) -> Scores:
        """Return minus the positions ``[I, 1]``."""
        order = self.order(columns, log, evidence)
        position = order.position.double().cpu().numpy()
        return np.where(position < 0, -np.inf, -position)[:, None]

    def order(self, columns: Columns, log: Log, evidence: Evidence) -> Order:
        """Return the order of a batch."""
        inputs: list[Inputs] = []
        for k, scorer in enumerate(self.scorers):
            own = self._made_by[k] == k
            made = scorer.transforms.batch(columns, log).inputs.to(self.device) if own else None
            inputs.append(inputs[self._made_by[k]] if made is None else made)
        offsets = columns.candidates.offsets
        num_candidates = int(offsets[-1])
        sequence = metrics.top_order(
            np.zeros(num_candidates), offsets, seed=self.seed, row=columns.scalars["row"]
        )
        tie = np.empty(num_candidates, dtype=np.int64)
        tie[sequence] = np.arange(num_candidates)
        groups: dict[str, Tensor] = {}
        if self.cascade.reserves is not None:
            schema = self.cascade.models[0].schema
            found = groups_of(self.cascade.reserves, schema, columns, log, evidence)
            groups = {name: code.to(self.device) for name, code in found.items()}
        order = self.cascade.rank(
            inputs,
            tie=torch.from_numpy(tie).to(self.device),
            groups=groups,
            facts=self._facts(columns, evidence),
        )
        self._add(order, len(offsets) - 1)
        return order

    def report(self) -> TierReport:
        """Return what the tiers and reserves did, per request."""
        num = max(1, self.num_requests)
        names = ("promoted", "demoted", "unmet")
        return TierReport(
            scored=tuple(n / num for n in self.num_scored),
            reserves={
                rule: {name: n / num for name, n in zip(names, moves, strict=True)}
                for rule, moves in self.moves.items()
            },
        )

    def _facts(self, columns: Columns, evidence: Evidence) -> Facts:
        """Return what the routers of an ablation need: draws, and how far a candidate came."""
        draw, truth = None, None
        if "random" in self._routers:
            row = np.repeat(columns.scalars["row"], np.diff(columns.candidates.offsets))
            keys = hash64(_ROUTING, self.seed, row, columns.candidates.values["item"])
            draw = torch.from_numpy(keys.view(np.int64)).to(self.device)
        if "oracle" in self._routers:
            engaged = torch.nan_to_num(evidence.engaged.double()) == 1
            truth = torch.where(engaged, 1e6, evidence.stage.double()).to(self.device)
        return Facts(draw, truth)

    def _add(self, order: Order, num_requests: int) -> None:
        self.num_requests += num_requests
        scored = torch.bincount(order.tier, minlength=len(self.num_scored))
        # A tier scored whatever it or a later one scored last.
        at_least = scored.flip(0).cumsum(0).flip(0).tolist()
        self.num_scored = [a + int(b) for a, b in zip(self.num_scored, at_least, strict=True)]
        for rule, moves in order.moves.items():
            old = self.moves.get(rule, (0, 0, 0))
            new = _sums(moves)
            self.moves[rule] = (old[0] + new[0], old[1] + new[1], old[2] + new[2])


def groups_of(
    reserves: Reserves, schema: Schema, columns: Columns, log: Log, evidence: Evidence
) -> dict[str, Tensor]:
    """Return what a log knows of the groups that reserves speak of.

    Parameters
    ----------
    reserves : Reserves
        The rules, with pinned items and the age of new ones.
    schema : Schema
        Of the first tier's model, whose channels the codes follow.
    columns, log, evidence
        A batch.

    Returns
    -------
    dict of str to Tensor ``[I]``
        ``channel`` (codes), ``pinned`` and ``new`` (bool), those that the rules need.

    Raises
    ------
    InputError
        ``pinned`` or ``new`` without the values that say which.
    """
    wanted = {rule.of for rule in reserves.rules}
    item = columns.candidates.values["item"]
    found: dict[str, Tensor] = {}
    if "channel" in wanted and log.schema.channels:
        known = {name: code for code, name in enumerate(schema.channels)}
        table = [known.get(name, -1) for name in log.schema.channels]
        found["channel"] = torch.tensor([*table, -1])[evidence.channel]
    if "pinned" in wanted:
        if not reserves.pinned:
            raise InputError("reserves: 'pinned' has a rule, but no item is pinned; name them")
        rows = log.items.ids.encode(_raw(reserves.pinned, log.items.ids.values.type))
        found["pinned"] = torch.from_numpy(np.isin(item, rows[rows > 1]))
    if "new" in wanted:
        if reserves.new_days is None:
            raise InputError("reserves: 'new' has a rule, but not how new; give new_days")
        lengths = np.diff(columns.candidates.offsets)
        found["new"] = torch.from_numpy(
            np.repeat(columns.scalars["time"], lengths) - _first_seen(log)[item]
            < reserves.new_days * _DAY_MS
        )
    return found


def same_transforms(a: Transforms, b: Transforms) -> bool:
    """Say whether two transforms make the same inputs of every batch."""
    if a is b:
        return True
    plain = ("schema", "dense", "min_count", "max_history")
    return (
        all(getattr(a, name) == getattr(b, name) for name in plain)
        and a.rows.keys() == b.rows.keys()
        and all(np.array_equal(a.rows[name], b.rows[name]) for name in a.rows)
        and {n: v.digest() for n, v in a.vocabularies.items()}
        == {n: v.digest() for n, v in b.vocabularies.items()}
    )


def _first_seen(log: Log) -> npt.NDArray[np.int64]:
    """Return when each item was first a candidate, in ms; long ago where nobody knows."""
    times = log.items.ids.first_seen_ms.fill_null(np.iinfo(np.int64).min // 2)
    return np.asarray(times.to_numpy(zero_copy_only=False), dtype=np.int64)


def _raw(items: tuple[int | str, ...], kind: Any) -> pa.Array:
    wanted = int if pa.types.is_integer(kind) else str
    wrong = [item for item in items if not isinstance(item, wanted)]
    if wrong:
        raise InputError(
            f"reserves: pinned item {wrong[0]!r} is {type(wrong[0]).__name__}; the log's item ids "
            f"are {wanted.__name__}"
        )
    return pa.array(list(items), type=kind)


def _sums(moves: Moves) -> tuple[int, int, int]:
    return int(moves.promoted.sum()), int(moves.demoted.sum()), int(moves.unmet.sum())
