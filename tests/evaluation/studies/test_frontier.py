"""Which points nothing beats, by hand."""

from __future__ import annotations

import pytest

from prerank.evaluation.studies.frontier import frontier


def test_points_are_compared_with_the_best_that_costs_no_more() -> None:
    quality = {"a": (0.5, 0.6), "b": (0.4, 0.45), "c": (0.7, 0.9), "d": (0.75, 0.8)}
    groups = {n: {s: {"q": v} for s, v in enumerate(vs)} for n, vs in quality.items()}
    cost = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    us = {n: {0: p + 50 * (n == "a"), 1: p} for n, p in cost.items()}  # something else ran
    found = frontier(groups, us, "q")
    assert [(p.name, p.efficient) for p in found.points] == [
        ("a", True),
        ("b", False),
        ("c", True),
        ("d", False),
    ]
    assert [p.us for p in found.points] == [1.0, 2.0, 3.0, 4.0]
    assert list(found.matched) == ["b - a", "c - a", "d - c"]
    assert found.matched["d - c"].mean == pytest.approx(-0.025)
    for claim in found.matched.values():
        assert claim.p <= claim.p_holm <= 1
    assert frontier(groups, us, "none").points == ()
