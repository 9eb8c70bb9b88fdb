"""Drawing random items: the exact law of what comes out, and nothing that must not."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prerank.rng import hash64
from prerank.sampling import draw
from prerank.sampling.draw import Targets, draw_for_each, draw_shared
from prerank.sampling.pool import ItemPool

NUM = 20_000
NONE = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))


def keys_of(num: int, seed: int = 0) -> np.ndarray:
    return hash64(seed, np.arange(num)).view(np.int64)


def same_for_all(pool: ItemPool, num: int, wanted: int, blocked: tuple[int, ...]) -> Targets:
    """Make ``num`` requests that want alike and block the same items."""
    request = np.repeat(np.arange(num), len(blocked))
    item = np.tile(np.array(blocked, dtype=np.int64), num)
    return Targets(pool, np.zeros(num, np.int64), np.full(num, wanted), request, item)


def successive(weights: dict[int, float], wanted: int) -> dict[int, float]:
    """Return the exact probability that each item is drawn, by going through all sequences."""
    chance = dict.fromkeys(weights, 0.0)
    for sequence in itertools.permutations(weights, wanted):
        left, p = sum(weights.values()), 1.0
        for item in sequence:
            p *= weights[item] / left
            left -= weights[item]
        for item in sequence:
            chance[item] += p
    return chance


def assert_frequencies(found: np.ndarray, expected: dict[int, float], num: int) -> None:
    """Compare counts over independent requests with probabilities, each within 5 deviations.

    The chance that one of ten right ones fails is 6e-6, and the keys are fixed.
    """
    for item, p in expected.items():
        deviation = np.sqrt(num * p * (1 - p))
        assert abs(found[item] - num * p) <= 5 * deviation + 1e-9, (item, found[item] / num, p)
    assert sum(expected.values()) * num == pytest.approx(found.sum())


@pytest.mark.parametrize("rounds", [6, 0], ids=["by rejection", "from all"])
@pytest.mark.parametrize("weights", [None, (1.0, 2.0, 4.0, 0.5, 8.0, 1.0)], ids=["even", "uneven"])
@pytest.mark.parametrize("wanted", [1, 3])
def test_each_item_comes_with_its_exact_probability(
    monkeypatch: pytest.MonkeyPatch,
    rounds: int,
    weights: tuple[float, ...] | None,
    wanted: int,
) -> None:
    monkeypatch.setattr(draw, "_ROUNDS", rounds)
    given_weights = None if weights is None else np.array(weights)
    pool = ItemPool.of(np.arange(6), 6, weights=given_weights)
    targets = same_for_all(pool, NUM, wanted, blocked=(2, 5))
    drawn = draw_for_each(targets, keys_of(NUM))
    weight = dict.fromkeys(range(6), 1.0) if weights is None else dict(enumerate(weights))
    expected = successive({k: w for k, w in weight.items() if k not in (2, 5)}, wanted)
    found = np.bincount(drawn.item, minlength=6)
    assert_frequencies(found, expected, NUM)
    total = sum(w for k, w in weight.items() if k not in (2, 5))
    share = np.array([weight[k] / total for k in range(6)])
    assert drawn.chance == pytest.approx(np.minimum(wanted * share[drawn.item], 1.0))
    if weights is None or wanted == 1:  # then it is the probability itself
        assert drawn.chance[drawn.item == 0] == pytest.approx(expected[0])


def test_the_block_size_of_a_big_pool_changes_nothing_of_the_law() -> None:
    pool = ItemPool.of(np.arange(1000), 1000)
    drawn = draw_for_each(same_for_all(pool, NUM, 2, blocked=()), keys_of(NUM))
    per_item = np.bincount(drawn.item, minlength=1000)
    expected = 2 * NUM / 1000
    chi_square = ((per_item - expected) ** 2 / expected).sum()
    # 999 degrees of freedom: mean 999, deviation 44.7; drawing without replacement takes off 0.1 %
    assert abs(chi_square - 999) < 5 * 44.7


def test_dividing_by_the_chance_gives_the_whole_pool() -> None:
    """Horvitz and Thompson: the sum of 1 / chance estimates how many could be drawn."""
    pool = ItemPool.of(np.arange(50), 50)
    drawn = draw_for_each(same_for_all(pool, 100, 5, blocked=(1, 2, 3)), keys_of(100))
    per_request = np.bincount(drawn.request, 1 / drawn.chance)
    assert per_request == pytest.approx(np.full(100, 47.0))


@st.composite
def problems(make: Any) -> tuple[Targets, np.ndarray, dict[str, np.ndarray]]:
    num_items, num = make(st.integers(1, 30)), make(st.integers(1, 6))
    rng = np.random.default_rng(make(st.integers(0, 999)))
    weights = rng.random(num_items) ** 8 if make(st.booleans()) else None
    first_seen = rng.integers(0, 50, num_items) if make(st.booleans()) else None
    pool = ItemPool.of(np.arange(num_items), num_items, weights=weights, first_seen=first_seen)
    is_blocked = rng.random((num, num_items)) < make(st.sampled_from([0.0, 0.3, 0.9, 1.0]))
    request, item = np.nonzero(is_blocked)
    data = {
        "times": rng.integers(0, 60, num),
        "wanted": rng.integers(0, 12, num),
        "blocked": is_blocked,
        "seen": np.zeros(num_items) if first_seen is None else first_seen,
    }
    targets = Targets(pool, data["times"], data["wanted"], request, item)
    return targets, keys_of(num, make(st.integers(0, 99))), data


def assert_valid(drawn: Any, data: dict[str, np.ndarray], *, is_full: bool) -> None:
    early = (
        data["seen"] < data["times"][:, None]
        if data["seen"].any()
        else np.ones_like(data["blocked"])
    )
    allowed = early & ~data["blocked"]
    assert allowed[drawn.request, drawn.item].all()
    pairs = list(zip(drawn.request.tolist(), drawn.item.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    assert (np.diff(drawn.request) >= 0).all()
    count = np.bincount(drawn.request, minlength=len(data["wanted"]))
    assert (count <= data["wanted"]).all()
    assert drawn.valid.tolist() == allowed.sum(axis=1).tolist()
    if is_full:
        assert count.tolist() == np.minimum(data["wanted"], allowed.sum(axis=1)).tolist()
    assert ((drawn.chance > 0) & (drawn.chance <= 1)).all()


@given(problems())
def test_only_valid_items_each_once_and_as_many_as_there_are(problem: Any) -> None:
    targets, keys, data = problem
    assert_valid(draw_for_each(targets, keys), data, is_full=True)


@given(problems(), st.integers(0, 99))
def test_shared_draws_are_valid_too(problem: Any, seed: int) -> None:
    targets, _, data = problem
    assert_valid(draw_shared(targets, seed), data, is_full=False)


def _of(drawn: Any, request: int) -> list[tuple[int, float]]:
    mine = drawn.request == request
    return list(zip(drawn.item[mine].tolist(), drawn.chance[mine].tolist(), strict=True))


@given(problems(), st.data())
def test_what_a_request_gets_does_not_depend_on_the_others(
    problem: Any, data: st.DataObject
) -> None:
    targets, keys, given_data = problem
    num = len(keys)
    some = np.array(data.draw(st.lists(st.integers(0, num - 1), min_size=1, unique=True)))
    request, item = np.nonzero(given_data["blocked"][some])
    alone = Targets(
        targets.pool, given_data["times"][some], given_data["wanted"][some], request, item
    )
    pairs = (
        (draw_for_each(targets, keys), draw_for_each(alone, keys[some])),
        (draw_shared(targets, 3, 4), draw_shared(alone, 3, 4)),
    )
    for whole, part in pairs:
        for k, r in enumerate(some.tolist()):
            assert _of(part, k) == _of(whole, r)
            assert part.hits[k] == whole.hits[r]


def test_shared_draws_have_the_same_law_for_each_request() -> None:
    pool = ItemPool.of(np.arange(6), 6, weights=np.array([1.0, 2.0, 4.0, 0.5, 8.0, 1.0]))
    expected = successive({0: 1.0, 1: 2.0, 3: 0.5, 4: 8.0}, 2)
    num = 4000
    found = np.zeros(6)
    for k in range(num):
        found += np.bincount(
            draw_shared(same_for_all(pool, 1, 2, blocked=(2, 5)), 7, k).item, minlength=6
        )
    assert_frequencies(found, expected, num)


def test_requests_share_few_distinct_items() -> None:
    pool = ItemPool.of(np.arange(10_000), 10_000)
    targets = same_for_all(pool, 200, 8, blocked=())
    assert len(set(draw_shared(targets, 0).item.tolist())) == 8
    assert len(set(draw_for_each(targets, keys_of(200)).item.tolist())) > 1000


def test_a_request_that_blocks_a_shared_item_takes_the_next_one() -> None:
    pool = ItemPool.of(np.arange(100), 100)
    free = draw_shared(same_for_all(pool, 1, 5, blocked=()), 9)
    first = sorted(free.item.tolist())
    more = draw_shared(same_for_all(pool, 1, 5, blocked=(first[0],)), 9)
    assert set(first[1:]) < set(more.item.tolist())
    assert (more.hits[0], len(more.item)) == (1, 5)


def test_hits_are_the_draws_that_were_thrown_away() -> None:
    pool = ItemPool.of(np.arange(1000), 1000)
    targets = same_for_all(pool, 2000, 4, blocked=tuple(range(500)))
    drawn = draw_for_each(targets, keys_of(2000))
    # Half the draws hit: a negative binomial with mean 4 and variance 8 per request.
    assert abs(drawn.hits.mean() - 4) < 5 * np.sqrt(8 / 2000)


@pytest.mark.parametrize("weights", [None, np.zeros(3)], ids=["no requests", "no items"])
def test_nothing_to_draw_from_or_for(weights: np.ndarray | None) -> None:
    pool = ItemPool.of(np.arange(3), 3, weights=weights)
    num = 0 if weights is None else 2
    targets = Targets(pool, np.zeros(num, np.int64), np.full(num, 5), *NONE)
    for drawn in (draw_for_each(targets, keys_of(num)), draw_shared(targets, 0)):
        assert len(drawn.item) == 0
        assert drawn.valid.tolist() == [0] * num


def test_a_skewed_pool_still_fills_the_quota() -> None:
    """One item has nearly all the weight: rejection would go on for very long."""
    weights = np.full(50, 1e-9)
    weights[7] = 1.0
    pool = ItemPool.of(np.arange(50), 50, weights=weights)
    drawn = draw_for_each(same_for_all(pool, 20, 10, blocked=()), keys_of(20))
    assert np.bincount(drawn.request).tolist() == [10] * 20
    assert (drawn.item == 7).sum() == 20
    others = np.bincount(drawn.item, minlength=50)[weights < 1]
    assert others.max() < 15  # the rest comes evenly: 180 draws of 49 items, 3.7 each
