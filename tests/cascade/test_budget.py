"""Budgets: the mean is kept, the whole of it is used, and flat requests get more."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prerank.cascade import Gap, Mass, Share, Threshold
from prerank.cascade.budget import spend
from prerank.cascade.ladder import Ladder, sort_within
from prerank.errors import InputError

FAMILIES = {
    "share": Share(share=0.0),
    "threshold": Threshold(score=0.0),
    "mass": Mass(mass=0.0),
    "gap": Gap(within=0.0, place=2),
}


@given(
    lengths=st.lists(st.integers(0, 8), min_size=1, max_size=6),
    seed=st.integers(0, 999),
    mean=st.floats(0.5, 9.0),
    family=st.sampled_from(sorted(FAMILIES)),
    at_least=st.integers(0, 1),
)
@example(lengths=[5, 2], seed=5, mean=0.5, family="gap", at_least=0)  # levels one bit apart
@settings(max_examples=200, deadline=None)
def test_no_level_spends_more_of_the_budget(
    lengths: list[int], seed: int, mean: float, family: str, at_least: int
) -> None:
    draws = np.random.default_rng(seed)
    offsets = torch.tensor([0, *np.cumsum(lengths)])
    values = torch.from_numpy(draws.normal(size=sum(lengths)).round(1))
    ladder = Ladder.of(values[sort_within(values, offsets, descending=True)], offsets)
    base: Any = FAMILIES[family]
    rule = type(base)(**{f: getattr(base, f) for f in base.__struct_fields__ if f != "at_least"},
                      at_least=at_least)  # fmt: skip
    forced = float(ladder.lengths.clamp(max=at_least).double().mean())
    if forced > mean:
        with pytest.raises(InputError, match="is not enough; at_least 1 alone takes"):
            spend(rule, ladder, mean)
        return
    found = spend(rule, ladder, mean)
    spent = float(found.count(ladder).double().mean())
    assert spent <= mean + 1e-9
    assert found.budget is not None
    assert found.budget.realised == spent
    levels = rule.reach(ladder).unique()
    steps = torch.cat([levels, levels + 1e-7])
    possible = [float(rule.with_level(float(x)).count(ladder).double().mean()) for x in steps]
    better = [x for x in possible if x <= mean]
    assert spent >= max(better, default=forced) - 1e-9


def test_the_budget_goes_where_the_light_model_cannot_tell() -> None:
    """One request with a clear winner, one flat: the same mean, other places."""
    clear = [9.0, 0.9, 0.5, 0.0, -1.0, -2.0]
    flat = [1.02, 1.01, 1.0, 0.99, 0.98, 0.97]
    ladder = Ladder.of(torch.tensor(clear + flat), torch.tensor([0, 6, 12]))
    assert spend(Share(share=0.0), ladder, 3.0).count(ladder).tolist() == [3, 3]
    assert spend(Mass(mass=0.0), ladder, 3.0).count(ladder).tolist() == [1, 5]
    assert spend(Gap(within=0.0, place=1), ladder, 3.5).count(ladder).tolist() == [1, 6]
    assert spend(Threshold(score=0.0), ladder, 2.0).count(ladder).tolist() == [1, 3]


def test_all_and_too_little() -> None:
    ladder = Ladder.of(torch.tensor([2.0, 1.0, 0.0]), torch.tensor([0, 2, 3]))
    for rule in FAMILIES.values():
        assert spend(rule, ladder, 50.0).count(ladder).tolist() == [2, 1]
        with pytest.raises(InputError, match=r"a mean of 0\.4 candidates is not enough"):
            spend(rule, ladder, 0.4)
    with pytest.raises(InputError, match="no request"):
        spend(FAMILIES["mass"], Ladder.of(torch.zeros(0), torch.tensor([0])), 3.0)
