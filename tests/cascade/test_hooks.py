"""What an engine brings to a cascade: its own scores, and a limit to what goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from prerank.batch import RequestBatch, Scores
from prerank.cascade import Cascade, Tier
from prerank.models import TwoTower
from prerank.schema import Schema


class Given:
    """Scores that were made elsewhere, one column per tier."""

    def __init__(self, *values: Tensor) -> None:
        self.values = values
        self.asked: list[tuple[int, list[int]]] = []

    def score(self, index: int, candidates: Tensor) -> Scores:
        self.asked.append((index, candidates.tolist()))
        return Scores(self.values[index][candidates].unsqueeze(1))


@pytest.fixture
def batch(make_batch: Callable[..., RequestBatch], schemas: dict[str, Schema]) -> RequestBatch:
    return make_batch(schemas["bare"], num_requests=6, max_candidates=9, seed=3)


@pytest.fixture
def model(schemas: dict[str, Schema]) -> TwoTower:
    return TwoTower.Config().build(schemas["bare"]).double().eval()


def ranked(cascade: Cascade, batch: RequestBatch, given: Any, limit: Any = None) -> Any:
    return cascade.rank([batch.inputs] * len(cascade.tiers), states=given, limit=limit)


def test_given_scores_are_what_is_ranked(batch: RequestBatch, model: TwoTower) -> None:
    cascade = Cascade([Tier(model, forward=0.5), Tier(model)])
    logits = model(batch.inputs).logits[:, 0].detach()
    given = Given(logits, -logits)
    found = ranked(cascade, batch, given)
    same = ranked(cascade, batch, Given(logits, logits))
    expected = cascade.rank([batch.inputs] * 2)
    assert torch.equal(same.position, expected.position)
    assert torch.equal(found.tier, expected.tier)
    assert not torch.equal(found.position, expected.position)
    forwarded = (expected.tier == 1).nonzero().squeeze(1).tolist()
    assert [index for index, _ in given.asked] == [0, 1]
    assert given.asked[1][1] == forwarded


@pytest.mark.parametrize("tail", ["append", "drop"])
@pytest.mark.parametrize("most", [0, 1, 2, 100])
def test_a_limit_keeps_the_first_ones_and_the_order_of_the_rest(
    most: int, tail: Any, batch: RequestBatch, model: TwoTower
) -> None:
    cascade = Cascade([Tier(model, forward=4, tail=tail), Tier(model)])
    offsets = batch.inputs.offsets
    logits = torch.rand(batch.num_candidates, generator=torch.Generator().manual_seed(0)).double()
    asked: list[tuple[int, list[int]]] = []

    def limit(index: int, wanted: Tensor) -> Tensor:
        asked.append((index, wanted.tolist()))
        return wanted.clamp(max=most)

    found = ranked(cascade, batch, Given(logits, -logits), limit)
    unlimited = ranked(cascade, batch, Given(logits, -logits))
    assert asked == [(1, offsets.diff().clamp(max=4).tolist())]
    if most == 100:
        assert torch.equal(found.position, unlimited.position)
    # The limit does not change who is dropped, only who is scored again.
    assert torch.equal(found.position < 0, unlimited.position < 0)
    for first, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        order = (first + logits[first:stop].argsort(descending=True)).tolist()
        num = min(most, 4, stop - first)
        alive = 4 if tail == "drop" else stop - first
        expected = order[:num][::-1] + order[num:alive]
        placed = {int(found.position[i]): i for i in range(first, stop) if found.position[i] >= 0}
        assert [placed[k] for k in sorted(placed)] == expected
        assert int((found.tier[first:stop] == 1).sum()) == num
