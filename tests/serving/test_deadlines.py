"""Budgets: what fits is scored, the rest stays in light order, and the answer says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prerank.serving.bundle import open_bundle
from prerank.serving.deadlines import TierCost
from prerank.serving.engine import Engine
from prerank.serving.messages import RankAnswer, RankRequest

SECONDS = (0.001, 0.010)
"""Per candidate: the light tier, the expressive one."""


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def timed(bundle: Path) -> tuple[Engine, Clock]:
    """An engine on a clock that only scoring moves; its costs are known from a few requests."""
    clock = Clock()
    opened = open_bundle(bundle, check=False)
    for model, seconds in zip(opened.cascade.models, SECONDS, strict=True):
        _slow(model, seconds, clock)
    return Engine(opened, Engine.Config(dtype="fp32", cache_bytes=0), clock=clock), clock


def _slow(model: Any, seconds: float, clock: Clock) -> None:
    score = model.score

    def slow(request: Any, items: Any, pairs: Any) -> Any:
        clock.now += seconds * pairs.request_of.numel()
        return score(request, items, pairs)

    model.score = slow


@pytest.fixture
def long(requests: list[RankRequest]) -> RankRequest:
    return max(requests, key=lambda r: len(r.candidates.ids))


def budget(request: RankRequest, ms: float) -> RankRequest:
    return msgspec.structs.replace(request, budget_ms=ms)


def test_as_many_as_fit_are_scored(
    timed: tuple[Engine, Clock], requests: list[RankRequest], long: RankRequest
) -> None:
    engine, clock = timed
    full = engine.rank(long)
    assert full.tier.count(1) > 6
    num = len(long.candidates.ids)
    light = engine.scores(long)[0][:, 0].argsort(descending=True).tolist()
    # 10 % are kept back for answering.
    allowed = (num * SECONDS[0] + 6.5 * SECONDS[1]) / 0.9
    start = clock.now
    answer = engine.rank(budget(long, 1e3 * allowed))
    assert clock.now - start <= allowed
    assert answer.degraded
    assert answer.done is not None
    assert f"scored 6 of {full.tier.count(1)} candidates" in answer.done
    assert answer.tier == [1] * 6 + [0] * (num - 6)
    ids = [long.candidates.ids[k] for k in light]
    assert sorted(answer.ids[:6]) == sorted(ids[:6])
    assert answer.ids[6:] == ids[6:]
    assert engine.stats().degraded == 1


def test_no_time_left_gives_the_light_order(timed: tuple[Engine, Clock], long: RankRequest) -> None:
    engine, clock = timed
    engine.rank(long)
    light = engine.scores(long)[0][:, 0].argsort(descending=True).tolist()
    for ms, waited in ((0.0, 0.0), (500.0, 0.49)):
        answer = engine.rank(budget(long, ms), started=clock.now - waited)
        assert answer.degraded
        assert set(answer.tier) == {0}
        assert answer.ids == [long.candidates.ids[k] for k in light]


def test_enough_time_changes_nothing(timed: tuple[Engine, Clock], long: RankRequest) -> None:
    engine, _ = timed
    full = engine.rank(long)
    answer = engine.rank(budget(long, 10_000.0))
    assert not answer.degraded
    assert answer.done is None
    assert (answer.ids, answer.tier) == (full.ids, full.tier)


def test_a_hasty_request_does_not_degrade_its_companions(
    timed: tuple[Engine, Clock], requests: list[RankRequest], long: RankRequest
) -> None:
    engine, _ = timed
    others = [r for r in requests[:5] if r.candidates.ids]
    expected = [engine.rank(r).ids for r in others]
    found = engine.rank_many([*others, budget(long, 60.0)])
    assert all(isinstance(a, RankAnswer) for a in found)
    assert [a.ids for a in found[:-1]] == expected  # type: ignore[union-attr]
    assert [a.degraded for a in found] == [False] * len(others) + [True]  # type: ignore[union-attr]


@given(
    fixed=st.floats(0, 1e-2),
    each=st.floats(1e-7, 1e-3),
    sizes=st.lists(st.integers(1, 5000), min_size=2, max_size=12, unique=True),
)
def test_a_line_is_learned_from_any_two_sizes(fixed: float, each: float, sizes: list[int]) -> None:
    cost = TierCost()
    for num in sizes:
        cost.add(num, fixed + each * num)
    largest = max(sizes)
    expected = fixed + each * largest
    # One size, or two that are close, say nothing of the fixed part.
    assert cost.seconds(largest) <= expected * (1 + 1e-6) + 1e-9
    fits = cost.num_within(expected)
    assert fits >= largest - 1
    assert cost.seconds(fits) <= expected * (1 + 1e-6) + 1e-9


def test_nothing_known_limits_nothing() -> None:
    cost = TierCost()
    assert cost.num_within(1e-6) > 10**9
    assert cost.num_within(-1.0) == 0
    cost.add(0, 1.0)
    assert cost.seconds(100) == 0.0
