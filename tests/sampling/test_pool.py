"""The item pool: who is in it when, and with what weight."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prerank.errors import InputError
from prerank.log.log import Log
from prerank.sampling.pool import ItemPool, count_items

WEIGHTS = st.lists(st.integers(0, 6), min_size=1, max_size=9).filter(any)


@given(WEIGHTS, st.data())
def test_equally_spaced_draws_hit_every_item_in_proportion(
    weights: list[int], data: st.DataObject
) -> None:
    pool = ItemPool.of(np.arange(len(weights)), len(weights), weights=np.array(weights, float))
    size = data.draw(st.integers(1, pool.num_items))
    total = int(pool.mass(np.array([size]))[0])
    draws = (np.arange(10 * total) + 0.5) / (10 * total)
    places = pool.pick(draws, np.full(len(draws), size))
    found = np.bincount(pool.items[places], minlength=len(weights))
    inside = np.isin(np.arange(len(weights)), pool.items[:size])
    assert found.tolist() == np.where(inside, 10 * np.array(weights), 0).tolist()
    assert pool.weight(places).tolist() == np.array(weights, float)[pool.items[places]].tolist()


@given(st.integers(1, 50), st.integers(0, 100))
def test_uniform_draws_hit_each_of_the_oldest_alike(num: int, seed: int) -> None:
    first_seen = np.random.default_rng(seed).integers(0, 9, num)
    pool = ItemPool.of(np.arange(num), num, first_seen=first_seen)
    times = np.arange(11)
    sizes = pool.size_at(times)
    assert sizes.tolist() == [(first_seen < t).sum() for t in times]
    for size in set(sizes.tolist()) - {0}:
        draws = (np.arange(3 * size) + 0.5) / (3 * size)
        places = pool.pick(draws, np.full(len(draws), size))
        assert np.bincount(places).tolist() == [3] * size
        assert (first_seen[pool.items[:size]].max() <= first_seen[pool.items[size:]]).all()
    assert np.array_equal(pool.items[pool.place[np.arange(num)]], np.arange(num))


def test_the_largest_draw_stays_inside() -> None:
    almost = np.array([np.nextafter(1.0, 0.0)])
    pool = ItemPool.of(np.arange(3), 3, weights=np.array([0.1, 0.2, 0.3]))
    assert pool.pick(almost, np.array([3])).tolist() == [2]
    assert pool.pick(almost, np.array([2])).tolist() == [1]
    assert ItemPool.of(np.arange(3), 3).pick(almost, np.array([3])).tolist() == [2]


def test_a_log_gives_its_items_without_the_reserved_rows(funnel: Any) -> None:
    pool = ItemPool.read(funnel.log, alive=False)
    assert pool.items.tolist() == list(range(2, 402))
    alive = ItemPool.read(funnel.log, alive=True)
    times, _ = funnel.log.request_times()
    sizes = alive.size_at(times)
    assert sizes[0] < 30  # nothing was a candidate before the first request; its history was seen
    assert (np.diff(sizes) >= 0).all()
    row = 20
    seen = set((funnel.item[:row] + 2).ravel().tolist())
    assert seen <= set(alive.items[: sizes[row]].tolist())


def test_items_without_times_are_refused(funnel: Any, tmp_path: Path) -> None:
    log = _without_times(funnel.log, tmp_path / "log")
    with pytest.raises(InputError, match="set the sampler's option alive to false"):
        ItemPool.read(log, alive=True)
    assert ItemPool.read(log, alive=False).num_items == 400


def _without_times(log: Log, path: Path) -> Log:
    shutil.copytree(log.path, path)
    table = pq.read_table(path / "items.parquet")
    none = pa.nulls(table.num_rows, pa.int64())
    at = table.schema.get_field_index("first_seen_ms")
    pq.write_table(table.set_column(at, "first_seen_ms", none), path / "items.parquet")
    return Log(path, verify=False)


def test_counts_are_those_of_a_loop(rich: Any) -> None:
    part = rich.log["train"]
    exposed = np.zeros(402, dtype=np.int64)
    retrieved = np.zeros(402, dtype=np.int64)
    for columns in part.columns(7):
        values = columns.candidates.values
        for item, stage in zip(values["item"], values["stage"], strict=True):
            exposed[item] += stage == 4
            retrieved[item] += stage > 0
    assert np.array_equal(count_items(part, exposed_only=True), exposed)
    found = count_items(part, exposed_only=False, leave_out=("pool",))
    assert np.array_equal(found, retrieved)
    everything = count_items(part, exposed_only=False)
    assert everything.sum() - retrieved.sum() == 4 * part.num_requests
