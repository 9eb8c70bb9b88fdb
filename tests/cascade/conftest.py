"""A model whose logits a test chooses, ragged requests for it, and an independent cascade."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from prerank.batch import Features, Inputs, Pairs, Rows, Scores
from prerank.models import Model
from prerank.schema import Feature, Label, Schema, Task

SCHEMA = Schema(
    features=(
        Feature(name="value", owner="item", kind="dense"),
        *(Feature(name=name, owner="candidate", kind="dense") for name in ("a", "b", "c")),
    ),
    labels=(Label(name="click"), Label(name="buy")),
    tasks=(Task(name="click", positive="click"), Task(name="buy", positive="buy")),
)


@dataclass(frozen=True, slots=True)
class State(Rows):
    value: Tensor


class Planted(Model):
    """Logits ``scale * (item value + chosen candidate features) + shift``, one per task.

    It notes how many requests, and which items and candidates it was asked for.
    """

    def __init__(self, *columns: int, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__(SCHEMA)
        self.columns, self.scale, self.shift = list(columns), scale, shift
        self.items: list[list[float]] = []
        self.num_pairs: list[int] = []

    def request_state(self, inputs: Inputs) -> State:
        return State(torch.zeros(inputs.num_requests, 1))

    def item_state(self, items: Features) -> State:
        self.items.append(items.dense[:, 0].tolist())
        return State(items.dense[:, :1])

    def score(self, request_state: State, item_state: State, pairs: Pairs) -> Scores:
        assert pairs.request_of.numel() == 0 or pairs.request_of.max() < request_state.num_rows
        self.num_pairs.append(pairs.request_of.numel())
        chosen = pairs.candidate.dense[:, self.columns]
        logits = self.scale * (item_state.value[pairs.item_of] + chosen) + self.shift
        return Scores(logits)


def _features(num_rows: int, dense: Tensor | None = None) -> Features:
    none = torch.zeros(num_rows, 0)
    return Features(none.long(), (), none if dense is None else dense, ())


@dataclass
class Case:
    """Ragged requests: ``values[c][i]`` is candidate feature ``c`` of candidate ``i``."""

    lengths: list[int]
    values: list[list[float]]
    items: list[float] = field(default_factory=lambda: [0.0])
    item_of: list[int] = field(default_factory=list)

    def inputs(self) -> Inputs:
        lengths = torch.tensor(self.lengths, dtype=torch.int64)
        num = int(lengths.sum())
        item_of = self.item_of or [0] * num
        values = torch.tensor(self.values, dtype=torch.float64).view(len(self.values), num).T
        items = torch.tensor(self.items, dtype=torch.float64).view(-1, 1)
        return Inputs(
            user=_features(len(lengths)),
            context=_features(len(lengths)),
            history={},
            items=_features(len(items), torch.cat([items, torch.zeros_like(items)], 1)),
            candidate=_features(num, values),
            offsets=torch.tensor([0, *torch.cumsum(lengths, 0).tolist()]),
            request_of=torch.arange(len(lengths)).repeat_interleave(lengths),
            item_of=torch.tensor(item_of, dtype=torch.int64),
        )


def _cascade(
    lengths: Sequence[int],
    values: Sequence[Sequence[float]],
    forwards: Sequence[float | int],
    tie: Sequence[int] | None = None,
) -> tuple[list[int], list[int]]:
    """Positions and tiers by sorting Python lists, request by request."""
    position, deepest = [-1] * sum(lengths), [-1] * sum(lengths)
    start = 0
    for length in lengths:
        alive, tail = list(range(start, start + length)), []
        for t, value in enumerate(values):
            for i in alive:
                deepest[i] = t
            alive.sort(key=lambda i: (-value[i], i if tie is None else tie[i]))
            if t < len(forwards):
                amount = forwards[t]
                if isinstance(amount, float):
                    amount = math.ceil(Fraction(repr(amount)) * length)
                tail = alive[amount:] + tail
                alive = alive[:amount]
        for place, i in enumerate(alive + tail):
            position[i] = place
        start += length
    return position, deepest


@pytest.fixture(scope="session")
def planted() -> type[Model]:
    """``planted(column, ..., scale=, shift=)``: a model of chosen logits."""
    return Planted


@pytest.fixture(scope="session")
def case() -> type[Any]:
    """``case(lengths, values, items=, item_of=).inputs()``: requests for it."""
    return Case


@pytest.fixture(scope="session")
def by_hand() -> Callable[..., tuple[list[int], list[int]]]:
    """``by_hand(lengths, values, forwards, tie)``: positions and tiers, computed anew."""
    return _cascade
