from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from prerank.errors import InputError
from prerank.world import World, WorldConfig

HOUR_MS = 3_600_000


def test_the_same_config_gives_the_same_tables_whatever_the_chunk(
    flat: Any, tiny_config: WorldConfig
) -> None:
    for chunk in (1, 97, 10_000):
        world = tiny_config.build()
        tables = list(world.requests(chunk=chunk))
        assert [t.num_rows for t in tables[:-1]] == [chunk] * (len(tables) - 1)
        assert pa.concat_tables(tables).combine_chunks().equals(flat.table)
        assert world.items().equals(flat.world.items())


def test_another_seed_gives_another_world(flat: Any, tiny_config: WorldConfig) -> None:
    other = msgspec.structs.replace(tiny_config, seed=1).build()
    table = next(other.requests(chunk=700))
    assert not table["user"].equals(flat.table["user"])
    assert not other.items()["style"].equals(flat.world.items()["style"])


def test_utility_needs_no_generation_first(flat: Any, tiny_config: WorldConfig) -> None:
    fresh = tiny_config.build()
    np.testing.assert_array_equal(
        fresh.utility(flat.request[::17], flat["candidates.item"][::17]), flat.utility[::17]
    )


def test_reading_the_log_half_way_does_not_disturb_the_truth(
    flat: Any, tiny_config: WorldConfig
) -> None:
    world = tiny_config.build()
    reader = world.requests(chunk=100)
    first = next(reader)
    early = world.utility(flat.request[:500], flat["candidates.item"][:500])
    np.testing.assert_array_equal(early, flat.utility[:500])
    assert pa.concat_tables([first, *reader]).combine_chunks().equals(flat.table)


def test_requests_are_in_time_order_and_split_by_day(flat: Any) -> None:
    config = flat.world.config
    time = flat.table["time"].to_numpy()
    assert (np.diff(time) >= 0).all()
    day = (time - config.start_ms) // (24 * HOUR_MS)
    assert set(day) == set(range(config.num_days))
    splits = flat.world.splits()
    assert set(day[splits["train"]]) == {0, 1, 2}
    assert set(day[splits["valid"]]) == {3}
    assert set(day[splits["test"]]) == {4}
    joined = np.concatenate(list(splits.values()))
    np.testing.assert_array_equal(joined, np.arange(config.num_requests))


def test_histories_are_earlier_clicks_oldest_first(flat: Any) -> None:
    """Rebuilt from the labels of earlier requests."""
    config = flat.world.config
    clicked: dict[tuple[int, int], list[int]] = {}
    request_time = flat.table["time"].to_numpy()
    user = flat.table["user"].to_numpy()
    for k in np.flatnonzero(flat["labels.click"] == 1):
        row = flat.request[k]
        key = (int(user[row]), int(flat["candidates.item"][k]))
        clicked.setdefault(key, []).append(int(request_time[row]))
    num_during = num_before = 0
    for row in range(config.num_requests):
        items = flat.table["history.click.item"][row].as_py()
        times = np.array(flat.table["history.click.time"][row].as_py(), dtype=np.int64)
        assert len(items) == len(times) <= config.max_history
        assert (np.diff(times) >= 0).all()
        assert (times < request_time[row]).all()
        for item, time in zip(items, times, strict=True):
            if time >= config.start_ms:
                shown_at = clicked[int(user[row]), item]
                assert any(0 < time - at <= 120_000 for at in shown_at)
                num_during += 1
            else:
                num_before += 1
        # Nothing is lost: clicks older than two refreshes are there unless crowded out.
        if len(items) < config.max_history:
            old = request_time[row] - 2 * HOUR_MS
            known = sum(at < old for (u, _), ats in clicked.items() if u == user[row] for at in ats)
            assert known <= (times >= config.start_ms).sum()
    assert num_during > 500
    assert num_before > 500


def test_feedback_reaches_later_requests(tiny_config: WorldConfig) -> None:
    """The control: other clicks (another slope) change later histories, not the first day's."""
    a = next(tiny_config.build().requests(chunk=700))
    b = next(msgspec.structs.replace(tiny_config, ctr=0.6).build().requests(chunk=700))
    name = "history.click.item"
    assert a[name][:3].equals(b[name][:3])
    assert not a[name].equals(b[name])


def test_features_are_partly_missing_and_noisy(flat: Any) -> None:
    items = flat.world.items()
    observed = items["quality"].to_numpy(zero_copy_only=False)
    lost = np.isnan(observed)
    assert 0.01 < lost.mean() < 0.06
    true = flat.world.parts(0, flat.world.item_ids)["quality"]
    assert 0.5 < np.corrcoef(observed[~lost], true[~lost])[0, 1] < 0.9
    kind = flat.table["type"].combine_chunks()
    assert 0 <= kind.null_count < 0.2 * len(kind)


def test_cold_and_busy_users_and_items(flat: Any) -> None:
    lengths = np.array([len(h) for h in flat.table["history.click.item"].to_pylist()])
    assert lengths.min() < 3
    assert lengths.max() >= 40
    train = np.isin(flat.request, flat.world.splits()["train"])
    test = np.isin(flat.request, flat.world.splits()["test"])
    item = flat["candidates.item"]
    cold = ~np.isin(item[test], item[train])
    assert 0.01 < cold.mean() < 0.6


def test_schema_declares_every_column(flat: Any, tiny_config: WorldConfig) -> None:
    schema = flat.world.schema
    declared = {f.column for f in schema.features if f.stored and f.owner != "item"}
    assert declared <= set(flat.table.column_names)
    stored = {f.column for f in schema.features if f.stored and f.owner == "item"}
    assert stored | {"item_id"} == set(flat.world.items().column_names)
    assert schema.lineage.made_by == "world"
    assert schema.lineage.seed == tiny_config.seed
    bare = msgspec.structs.replace(tiny_config, retrieval_score=False, num_pool=0, long_watch_ms=30)
    table = next(bare.build().requests())
    assert not {"candidates.retrieval_score", "candidates.sample_prob"} & set(table.column_names)
    assert bare.build().schema.task_names == ("click", "long")


def test_chunk_below_one_is_refused(tiny_config: WorldConfig) -> None:
    with pytest.raises(InputError, match="chunk is 0"):
        next(tiny_config.build().requests(chunk=0))


def test_open_refuses_what_no_world_wrote(tmp_path: Any) -> None:
    with pytest.raises(InputError, match=r"world\.json: not found"):
        World.open(tmp_path)
    (tmp_path / "world.json").write_text('{"generator": 0, "config": {}}')
    with pytest.raises(InputError, match="made by generator 0"):
        World.open(tmp_path)
    (tmp_path / "world.json").write_text("{")
    with pytest.raises(InputError, match="not readable as JSON"):
        World.open(tmp_path)
