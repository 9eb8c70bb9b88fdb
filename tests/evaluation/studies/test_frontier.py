"""Which points nothing beats, and what a cascade costs, by hand."""

from __future__ import annotations

import pytest

from prerank.cascade import Cascade, Tier
from prerank.evaluation.cost import Cost
from prerank.evaluation.studies.frontier import cascade_us, frontier, tier_us
from prerank.models import MLPPreranker, TwoTower
from prerank.schema import Feature, Label, Schema


def cost(request: float, item: float, candidate: float) -> Cost:
    return Cost(
        us_per_request=request,
        us_per_item=item,
        us_per_candidate=candidate,
        flops_per_candidate=1.0,
        params_dense=1,
        params_table=1,
    )


def test_a_cascade_pays_for_what_reaches_each_tier() -> None:
    item = Feature(name="item", owner="item", kind="categorical")
    schema = Schema(features=(item,), labels=(Label(name="click"),))
    light, heavy = TwoTower.Config().build(schema), MLPPreranker.Config().build(schema)
    costs = [cost(10, 2, 1), cost(20, 30, 5)]
    cascade = Cascade([Tier(light, forward=0.3), Tier(heavy)])
    assert cascade_us(cascade, costs, 101) == 10 + 101 * 3 + 20 + 31 * 35
    assert cascade_us(cascade, costs, 101, cached=True) == 10 + 101 + 20 + 31 * 5
    counted = Cascade([Tier(light, forward=500), Tier(heavy)])
    assert cascade_us(counted, costs, 100) == tier_us(costs[0], 100) + tier_us(costs[1], 100)


def test_points_are_compared_with_the_best_that_costs_no_more() -> None:
    quality = {"a": (0.5, 0.6), "b": (0.4, 0.45), "c": (0.7, 0.9), "d": (0.75, 0.8)}
    groups = {n: {s: {"q": v} for s, v in enumerate(vs)} for n, vs in quality.items()}
    us = {n: {0: p, 1: p} for n, p in {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}.items()}
    found = frontier(groups, us, "q")
    assert [(p.name, p.efficient) for p in found.points] == [
        ("a", True),
        ("b", False),
        ("c", True),
        ("d", False),
    ]
    assert list(found.matched) == ["b - a", "c - a", "d - c"]
    assert found.matched["d - c"].mean == pytest.approx(-0.025)
    for claim in found.matched.values():
        assert claim.p <= claim.p_holm <= 1
    assert frontier(groups, us, "none").points == ()
