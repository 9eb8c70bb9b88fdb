"""Channels against dense formulas, merging against reading off lists."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prerank.funnel.channels import Channels, nearest
from prerank.funnel.config import Quotas, Shares
from prerank.funnel.retrieve import MISSED, Retrieved, draw_pool, force_real, merge_lists, retrieve

NUM_ITEMS = 30


@pytest.fixture(scope="module")
def events() -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(3)
    user = np.repeat(np.arange(40), 12)
    item = np.concatenate(
        [draws.choice(np.arange(2 + u % 2, NUM_ITEMS, 2), 12, replace=False) for u in range(40)]
    )
    return user, item.astype(np.int32)


@pytest.fixture(scope="module")
def channels(events: tuple[np.ndarray, np.ndarray]) -> Channels:
    return Channels.fit(*events, num_items=NUM_ITEMS, neighbours=5, dim=4, seed=0)


def test_similarity_is_the_counted_cosine(
    channels: Channels, events: tuple[np.ndarray, np.ndarray]
) -> None:
    user, item = events
    counts = np.zeros((NUM_ITEMS, NUM_ITEMS))
    for a in range(len(item)):
        for b in range(a + 1, min(a + 11, len(item))):
            if user[a] == user[b] and item[a] != item[b]:
                counts[item[a], item[b]] += 1
                counts[item[b], item[a]] += 1
    popularity = np.bincount(item, minlength=NUM_ITEMS)
    with np.errstate(invalid="ignore", divide="ignore"):
        norm = np.sqrt(np.outer(popularity, popularity))
        score = np.nan_to_num(counts / norm * counts / (counts + 5.0))
    for i in range(NUM_ITEMS):
        known = channels.neighbours[i][channels.neighbours[i] >= 0]
        best = np.sort(score[i])[::-1][: len(known)]
        np.testing.assert_allclose(channels.similarity[i][: len(known)], best, rtol=1e-6)
        np.testing.assert_allclose(score[i][known], best, rtol=1e-6)


def test_factors_span_the_first_singular_vectors(
    channels: Channels, events: tuple[np.ndarray, np.ndarray]
) -> None:
    user, item = events
    matrix = np.zeros((40, NUM_ITEMS))
    popularity = np.bincount(item, minlength=NUM_ITEMS)
    matrix[user, item] = popularity[item] ** -0.25
    exact = np.linalg.svd(matrix)[2][:2].T  # the two halves stand out from the rest
    found = channels.factors @ channels.factors.T
    np.testing.assert_allclose(found @ exact, exact, atol=1e-2)


def test_items_without_events_have_no_vector(channels: Channels) -> None:
    assert not channels.factors[:2].any()
    assert (channels.neighbours[:2] == -1).all()


def test_saved_channels_are_the_same(channels: Channels, tmp_path: Path) -> None:
    channels.save(tmp_path / "channels")
    again = Channels.load(tmp_path / "channels")
    for name in Channels.__slots__:
        np.testing.assert_array_equal(getattr(again, name), getattr(channels, name))


def test_similar_sums_over_the_history_and_lists_items_once(channels: Channels) -> None:
    offsets, item = np.array([0, 2, 2]), np.array([4, 6])
    request, found, score = channels.similar(offsets, item)
    assert (request == 0).all()
    assert len(set(found.tolist())) == len(found)
    expected = np.zeros(NUM_ITEMS)
    for i in item:
        np.add.at(expected, channels.neighbours[i], channels.similarity[i])
    np.testing.assert_allclose(score, expected[found], rtol=1e-6)
    assert (np.diff(score) <= 0).all()


def test_nearest_is_exact() -> None:
    draws = np.random.default_rng(0)
    vectors = draws.standard_normal((50, 8), dtype=np.float32)
    queries = draws.standard_normal((5, 8), dtype=np.float32)
    scores, rows = nearest(vectors, queries, 7)
    products = queries @ vectors.T
    np.testing.assert_array_equal(rows, np.argsort(-products, axis=1)[:, :7])
    np.testing.assert_allclose(scores, np.take_along_axis(products, rows, 1), rtol=1e-5)
    assert nearest(vectors, queries, 99)[1].shape == (5, 50)


@pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="faiss is not installed")
def test_faiss_finds_the_same() -> None:
    vectors = np.random.default_rng(0).standard_normal((500, 8), dtype=np.float32)
    rows = nearest(vectors, vectors[:9], 5)[1]
    np.testing.assert_array_equal(rows, np.argsort(-(vectors[:9] @ vectors.T), axis=1)[:, :5])


@given(st.integers(0, 2**32 - 1))
def test_merged_lists_fill_the_quota_without_what_is_blocked(seed: int) -> None:
    draws = np.random.default_rng(seed)
    lists = [draws.permutation(25)[: draws.integers(0, 25)] for _ in range(3)]
    sizes = draws.integers(0, 8, 3).tolist()
    blocked = draws.random(25) < 0.3
    before = blocked.copy()
    found = merge_lists(lists, sizes, blocked)
    np.testing.assert_array_equal(blocked, before)
    available = {i for each in lists for i in each.tolist() if not blocked[i]}
    assert len(found.item) == len(set(found.item.tolist())) == min(sum(sizes), len(available))
    assert set(found.item.tolist()) <= available
    for i, k in zip(found.item, found.channel, strict=True):
        assert i in lists[k]


def test_retrieval_leaves_out_the_dead_and_the_excluded(channels: Channels) -> None:
    alive = np.ones(NUM_ITEMS, bool)
    alive[[0, 1, 8]] = False
    history = np.array([0, 3]), np.array([4, 6, 10])
    quotas = Quotas(retrieval=12, prerank=6, rank=3)
    (found,) = retrieve(channels, history, alive, [np.array([4, 6, 10])], quotas, Shares())
    assert len(found.item) == 12
    assert not {0, 1, 8, 4, 6, 10} & set(found.item.tolist())
    assert sorted(set(found.channel.tolist())) == [0, 1, 2]


@given(st.integers(0, 2**32 - 1))
def test_real_items_are_in_and_the_quota_holds(seed: int) -> None:
    draws = np.random.default_rng(seed)
    item = draws.permutation(40)[:15]
    real = draws.permutation(40)[: draws.integers(0, 20)]
    found = Retrieved(item, draws.integers(0, 3, 15).astype(np.int8))
    out, channel, is_real = force_real(found, real, 15, lambda i: i.astype(np.uint64))
    assert set(real.tolist()) == set(out[is_real].tolist())
    assert len(out) == max(15, len(real))
    assert (np.diff(out) > 0).all()
    channel_of = dict(zip(item.tolist(), found.channel.tolist(), strict=True))
    assert channel.tolist() == [channel_of.get(i, MISSED) for i in out.tolist()]
    assert not (channel[~is_real] == MISSED).any()


@pytest.mark.parametrize("num", [3, 60, 200])
def test_pool_rows_are_drawn_evenly_from_what_is_free(num: int) -> None:
    alive = np.ones(100, bool)
    alive[:10] = False
    counts = np.zeros(100)
    for k in range(400):
        items, probability = draw_pool(alive, np.arange(10, 20), num, 1, k)
        assert len(set(items.tolist())) == len(items) == min(num, 80)
        counts[items] += 1
    assert not counts[:20].any()
    assert probability == min(num / 80, 1.0)
    expected = 400 * probability
    assert np.abs(counts[20:] - expected).max() <= 6 * np.sqrt(expected)
