"""Claims over users and seeds against plain loops, known nulls and known effects."""

from __future__ import annotations

import math

import numpy as np
import pytest

from prerank.errors import InputError
from prerank.evaluation import Units
from prerank.evaluation.studies.paired import paired_over_seeds
from prerank.evaluation.studies.significance import holm, paired_t

Array = np.ndarray


def made(
    seed: int, shift: float = 0.0, *, users: int = 40, seeds: int = 4, of_seed: float = 0.02
) -> dict[int, Units]:
    draw = np.random.default_rng(seed)
    user = np.repeat(np.arange(users) * 3, 1 + np.arange(users) % 4)
    row = 1000 + np.arange(user.size)
    taste = np.random.default_rng(99).normal(size=user.size)
    return {
        s: Units(
            user,
            row,
            taste + shift + of_seed * draw.normal() + 0.1 * draw.normal(size=user.size),
        )
        for s in range(seeds)
    }


def test_a_claim_equals_users_drawn_one_by_one() -> None:
    variants = {"a": made(1, 0.02), "b": made(2), "c": made(3)}
    for name, by_seed in variants.items():
        by_seed[0].value[5] = np.nan  # a request that one seed does not define
        assert name
    study = paired_over_seeds(variants, num_resamples=200, seed=7)
    assert list(study.claims) == ["a - b", "a - c", "b - c"]
    a, b = (np.stack([u.value for u in variants[n].values()]) for n in "ab")
    gap = (a - b)[:, np.arange(a.shape[1]) != 5]
    user = variants["a"][0].user[np.arange(a.shape[1]) != 5]
    mean, ids = gap.mean(axis=0), np.unique(user)
    draws = []
    for k in range(200):
        drawn = np.random.default_rng([7, k]).integers(ids.size, size=ids.size)
        draws.append(np.concatenate([mean[user == ids[d]] for d in drawn]).mean())
    claim = study.claims["a - b"]
    assert claim.difference == pytest.approx(mean.mean(), abs=1e-12)
    expected = np.quantile(draws, [0.025, 0.975])
    np.testing.assert_allclose([claim.low, claim.high], expected, atol=1e-12)
    assert (claim.num_units, claim.num_users) == (gap.shape[1], ids.size)
    by_seed = gap.mean(axis=1)
    assert claim.sd_seeds == pytest.approx(by_seed.std(ddof=1), rel=1e-9)
    assert claim.p_seeds == pytest.approx(paired_t(by_seed, 0 * by_seed), rel=1e-6)
    side = min((np.array(draws) <= 0).sum(), (np.array(draws) >= 0).sum())
    assert claim.p_users == pytest.approx(min(1.0, 2 * (side + 1) / 201))
    adjusted = holm({name: c.p for name, c in study.claims.items()})
    assert {name: c.p_holm for name, c in study.claims.items()} == adjusted
    spread = study.variants["a"]
    values = [u.mean() for u in variants["a"].values()]
    assert spread.mean == pytest.approx(np.mean(values))
    assert spread.sd == pytest.approx(np.std(values, ddof=1))


def test_both_sources_of_error_count() -> None:
    """Seeds that differ much hide what users alone would call certain, and the reverse."""
    wild = {"a": made(1, 0.1, of_seed=0.5), "b": made(2, of_seed=0.5)}
    claim = paired_over_seeds(wild).claims["a - b"]
    assert claim.p_users < 0.01 < 0.05 < claim.p
    calm = {"a": made(1, 0.1, of_seed=0.0), "b": made(2, of_seed=0.0)}
    claim = paired_over_seeds(calm).claims["a - b"]
    assert max(claim.p, claim.p_users, claim.p_seeds) < 0.01
    few = {"a": made(1, 0.04, users=4, of_seed=0.0), "b": made(2, users=4, of_seed=0.0)}
    claim = paired_over_seeds(few).claims["a - b"]
    assert claim.p > claim.p_seeds


def test_p_values_are_not_too_small_when_nothing_differs() -> None:
    p = []
    for repeat in range(150):
        variants = {n: made(1000 + 2 * repeat + k, seeds=3) for k, n in enumerate("ab")}
        p.append(paired_over_seeds(variants, num_resamples=200).claims["a - b"].p)
    below = np.mean(np.array(p) < 0.1)
    assert below < 0.1 + 3 * math.sqrt(0.09 / 150)
    assert np.mean(p) > 0.4


def test_one_seed_and_equal_variants() -> None:
    variants = {"a": made(1, seeds=1), "b": made(1, seeds=1)}
    claim = paired_over_seeds(variants).claims["a - b"]
    assert (claim.difference, claim.low, claim.high, claim.p) == (0.0, 0.0, 0.0, 1.0)
    assert math.isnan(claim.sd_seeds)
    same = made(1)
    assert paired_over_seeds({"a": same, "b": same}).claims["a - b"].p == 1.0
    shifted = {s: Units(u.user, u.row, u.value + 0.5) for s, u in same.items()}
    assert paired_over_seeds({"a": shifted, "b": same}).claims["a - b"].p == 0.0


def test_units_that_are_users_are_weighted_and_joined_by_user() -> None:
    none = np.array([-1, -1, -1])
    a = Units(np.array([1, 2, 3]), none, np.array([1.0, 0.5, 0.25]), np.array([3.0, 1.0, 2.0]))
    b = Units(np.array([2, 3, 9]), none, np.array([0.5, 0.75, 0.0]), np.array([1.0, 2.0, 5.0]))
    claim = paired_over_seeds({"a": {0: a}, "b": {0: b}}).claims["a - b"]
    assert claim.difference == pytest.approx((0.0 - 0.5 * 2) / 3)
    assert claim.num_users == 2


def test_what_cannot_be_paired_is_refused() -> None:
    whole = made(1)
    short = {s: Units(u.user[1:], u.row[1:], u.value[1:]) for s, u in whole.items()}
    with pytest.raises(InputError, match="values of different requests"):
        paired_over_seeds({"a": whole, "b": short})
    with pytest.raises(InputError, match="no variant 'x'; known: a"):
        paired_over_seeds({"a": whole}, [("a", "x")])
    with pytest.raises(InputError, match="'a' and 'b' have no seed in common"):
        paired_over_seeds({"a": {0: whole[0]}, "b": {1: whole[1]}})
