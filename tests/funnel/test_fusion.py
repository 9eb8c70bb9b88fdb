"""The order of retrieval against its formula; being real, or being listed, cannot move it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prerank.funnel.channels import Channels
from prerank.funnel.config import Shares
from prerank.funnel.fusion import fused_scores

NUM_ITEMS = 60


@pytest.fixture(scope="module")
def channels() -> Channels:
    draws = np.random.default_rng(5)
    user = np.repeat(np.arange(50), 10)
    rows = [2 + draws.choice(NUM_ITEMS - 6, 10, replace=False) for _ in range(50)]
    item = np.concatenate(rows).astype(np.int32)
    return Channels.fit(user, item, num_items=NUM_ITEMS, neighbours=6, dim=5, seed=0)


def histories(draws: np.random.Generator, num: int) -> tuple[np.ndarray, np.ndarray]:
    lengths = draws.integers(0, 8, num)
    return np.concatenate([[0], np.cumsum(lengths)]), draws.integers(2, NUM_ITEMS, lengths.sum())


def by_hand(channels: Channels, past: np.ndarray, alive: np.ndarray, shares: Shares) -> np.ndarray:
    """Score every item of the catalogue from three whole lists."""
    near = np.zeros(NUM_ITEMS)
    for i in past:
        for j, value in zip(channels.neighbours[i], channels.similarity[i], strict=True):
            if j >= 0:
                near[j] += value  # alive or not: only places count the alive
    product = channels.factors @ (channels.factors[past].mean(0) if len(past) else np.zeros(5))
    out = np.zeros(NUM_ITEMS)
    for share, value in ((0.5, near), (0.3, product), (0.2, channels.popularity)):
        before = [(value[alive] > value[i] + 1e-7).sum() for i in range(NUM_ITEMS)]
        out += share / (60 + np.array(before))
    return out


def test_equals_the_formula_for_every_item_of_the_catalogue(channels: Channels) -> None:
    draws = np.random.default_rng(1)
    history = histories(draws, 12)
    alive = draws.random(NUM_ITEMS) < 0.8
    every = np.tile(np.arange(NUM_ITEMS), 12)
    offsets = np.arange(13) * NUM_ITEMS
    shares = Shares(similar=0.5, factors=0.3, popular=0.2)
    found = fused_scores(channels, history, alive, offsets, every, shares).reshape(12, NUM_ITEMS)
    for b in range(12):
        past = history[1][history[0][b] : history[0][b + 1]]
        expected = by_hand(channels, past, alive, shares)
        np.testing.assert_allclose(found[b], expected, rtol=1e-6)


@given(st.integers(0, 2**32 - 1))
def test_depends_on_request_and_item_alone(channels: Channels, seed: int) -> None:
    """Other candidates, other requests of the batch, the order of the list: nothing moves."""
    draws = np.random.default_rng(seed)
    history = histories(draws, 3)
    alive = draws.random(NUM_ITEMS) < 0.7
    every = np.tile(np.arange(NUM_ITEMS), 3)
    offsets = np.arange(4) * NUM_ITEMS
    whole = fused_scores(channels, history, alive, offsets, every, Shares())
    b = int(draws.integers(0, 3))
    some = draws.permutation(NUM_ITEMS)[: draws.integers(1, 20)]
    past = history[1][history[0][b] : history[0][b + 1]]
    alone = (np.array([0, len(past)]), past)
    bounds = np.array([0, len(some)])
    found = fused_scores(channels, alone, alive, bounds, some, Shares())
    np.testing.assert_array_equal(found, whole.reshape(3, NUM_ITEMS)[b][some])


def test_an_item_that_no_channel_knows_is_behind_all_others(channels: Channels) -> None:
    """Items without events are what a channel would return last, real or not."""
    history = np.array([0, 3]), np.array([4, 6, 10])
    alive = np.ones(NUM_ITEMS, bool)
    every = np.arange(NUM_ITEMS)
    score = fused_scores(channels, history, alive, np.array([0, NUM_ITEMS]), every, Shares())
    unknown = channels.popularity == 0
    assert unknown.any()
    assert (score[unknown] < np.median(score[~unknown])).all()


def test_no_requests(channels: Channels) -> None:
    nothing = np.zeros(0, np.int64)
    history = np.zeros(1, np.int64), nothing
    alive = np.ones(NUM_ITEMS, bool)
    assert not len(fused_scores(channels, history, alive, np.zeros(1, int), nothing, Shares()))
