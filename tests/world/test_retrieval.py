from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from prerank.world import CHANNELS, WorldConfig
from prerank.world.config import DAY_MS
from prerank.world.retrieval import first_of_each


@given(st.lists(st.lists(st.integers(-1, 6), min_size=5, max_size=5), min_size=1, max_size=4))
def test_first_of_each_is_a_loop_with_a_set(rows: list[list[int]]) -> None:
    marked = first_of_each(np.array(rows))
    for row, marks in zip(rows, marked, strict=True):
        seen: set[int] = set()
        for item, mark in zip(row, marks, strict=True):
            assert mark == (item >= 0 and item not in seen)
            seen.add(item)


def test_an_item_is_a_candidate_once_and_published_before_the_request(flat: Any) -> None:
    pairs = np.stack([flat.request, flat["candidates.item"]])
    assert np.unique(pairs, axis=1).shape[1] == pairs.shape[1]
    items = flat.world.items()
    published = items["published"].to_numpy()[flat["candidates.item"] - items["item_id"][0].as_py()]
    assert (published < flat.table["time"].to_numpy()[flat.request]).all()


def test_new_items_appear_day_by_day(flat: Any) -> None:
    items = flat.world.items()
    published = items["published"].to_numpy()
    start = flat.world.config.start_ms
    day_born = (published - start) // DAY_MS
    assert 0.15 < (day_born >= 0).mean() < 0.3
    first = items["item_id"][0].as_py()
    born = day_born[flat["candidates.item"] - first]
    day = (flat.table["time"].to_numpy()[flat.request] - start) // DAY_MS
    for d in range(1, flat.world.config.num_days):
        assert (born[day == d] == d - 1).any()
    fresh = flat["candidates.channel"] == "fresh"
    assert (born[fresh] >= day[fresh] - 2).all()


def test_channels_do_what_their_names_say(flat: Any) -> None:
    parts = flat.world.parts(flat.request, flat["candidates.item"])
    channel = flat["candidates.channel"]
    assert set(channel[channel != None]) == set(CHANNELS)  # noqa: E711
    topic = {name: parts["topic"][channel == name].mean() for name in CHANNELS}
    assert topic["interest"] > topic["popular"] + 1.0
    assert topic["similar"] > topic["popular"] + 0.5
    _, counts = np.unique(flat["candidates.item"][channel == "popular"], return_counts=True)
    hot = np.sort(counts)[::-1]
    # Zipf-like: the hottest tenth takes most of a user-blind channel.
    assert hot[: len(hot) // 10].sum() > 0.35 * hot.sum()


def test_the_popular_channel_is_blind_to_the_user(flat: Any) -> None:
    """The topic fit of popular candidates is that of the same items for a random request."""
    popular = flat["candidates.channel"] == "popular"
    item, request = flat["candidates.item"][popular], flat.request[popular]
    own = flat.world.parts(request, item)["topic"].mean()
    other = flat.world.parts(np.random.default_rng(0).permutation(request), item)["topic"].mean()
    assert abs(own - other) < 0.1
    interest = flat["candidates.channel"] == "interest"
    item, request = flat["candidates.item"][interest], flat.request[interest]
    own = flat.world.parts(request, item)["topic"].mean()
    other = flat.world.parts(np.random.default_rng(0).permutation(request), item)["topic"].mean()
    assert own > other + 1.0


def test_pool_rows_are_uniform_over_what_was_not_retrieved(flat: Any) -> None:
    config: WorldConfig = flat.world.config
    pool = flat["candidates.stage"] == "pool"
    evaluated = np.concatenate([flat.world.splits()["valid"], flat.world.splits()["test"]])
    counts = np.bincount(flat.request[pool], minlength=config.num_requests)
    assert (counts[evaluated] == config.num_pool).all()
    assert counts.sum() == counts[evaluated].sum()

    published = flat.world.items()["published"].to_numpy()
    for row in evaluated[::40]:
        own = flat.request == row
        midnight = flat.table["time"][int(row)].as_py() // DAY_MS * DAY_MS
        num_open = (published < midnight).sum() - (own & ~pool).sum()
        prob = flat["candidates.sample_prob"][own]
        np.testing.assert_allclose(prob[pool[own]], config.num_pool / num_open, rtol=1e-6)
        np.testing.assert_array_equal(prob[~pool[own]], 1.0)
    # A chi-square-like check: the drawn items spread evenly over ten slices of the catalogue.
    share = np.histogram(flat["candidates.item"][pool], bins=10)[0] / pool.sum()
    assert np.abs(share - 0.1).max() < 0.02


def test_short_catalogues_give_short_lists() -> None:
    config = WorldConfig(
        num_users=20, num_items=60, num_requests=30, num_days=3, num_clusters=3, num_pool=50
    )
    table = next(config.build().requests())
    lengths = [len(items) for items in table["candidates.item"]]
    assert max(lengths) <= 60
    for items in table["candidates.item"].to_pylist():
        assert len(set(items)) == len(items)
