"""Baselines against counts made by hand from the raw tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from prerank.errors import InputError
from prerank.evaluation.baselines import make_baselines
from prerank.evaluation.collect import collect
from prerank.log import Log
from prerank.schema import Feature, Label, Schema


def scores(flat: Any, name: str, *, batch_size: int = 256, seed: int = 0) -> np.ndarray:
    scorers = make_baselines([name], flat.log["train"], flat.log, seed)
    return collect(flat.log["test"], scorers, batch_size=batch_size).scores[name][:, 0]


def smoothed(keys: list[Any], values: list[float]) -> Callable[[Any], float]:
    """Mean of the values of a key with ten more of the overall mean."""
    total: dict[Any, float] = defaultdict(float)
    count: dict[Any, int] = defaultdict(int)
    for key, value in zip(keys, values, strict=True):
        total[key] += value
        count[key] += 1
    mean = sum(values) / len(values)
    return lambda key: (total[key] + 10 * mean) / (count[key] + 10)


def exposures(flat: Any) -> list[tuple[int, int, float, float]]:
    """Item, user, click, watch time of every training exposure."""
    chosen = np.flatnonzero(flat.within("train") & flat.shown)
    names = ("candidates.item", "labels.click", "labels.watch_ms")
    item, click, watch = (flat[name][chosen].tolist() for name in names)
    return list(zip(item, flat.user[chosen].tolist(), click, watch, strict=True))


def test_counted_baselines_equal_counts_by_hand(flat: Any) -> None:
    rows = exposures(flat)
    items, users, clicks, watches = (list(column) for column in zip(*rows, strict=True))
    item_rate, user_rate = smoothed(items, clicks), smoothed(users, clicks)
    watched = smoothed(items, watches)
    test = np.flatnonzero(flat.within("test"))
    item, user = flat["candidates.item"][test].tolist(), flat.user[test].tolist()
    expected = {
        "popularity": [float(items.count(i)) for i in item],
        "item_mean": [item_rate(i) for i in item],
        "item_mean:click": [item_rate(i) for i in item],
        "item_mean:watch_ms": [watched(i) for i in item],
        "item_mean+user_mean": [
            item_rate(i) + user_rate(u) for i, u in zip(item, user, strict=True)
        ],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(scores(flat, name), values, rtol=1e-12, err_msg=name)
        assert len(set(values)) > 5, name


def test_places_and_sizes_equal_the_raw_lists(flat: Any) -> None:
    rank = flat["candidates.rank.exposed"]
    slot, size = [], []
    for one in flat.requests("test"):
        length = one.stop - one.start
        size += [-length] * length
        shown = [int(r) for r in rank[one] if not np.isnan(r)]
        assert sorted(shown) == list(range(len(shown)))
        slot += [-r if not np.isnan(r) else -(length + k) for k, r in enumerate(rank[one])]
    np.testing.assert_array_equal(scores(flat, "slot"), slot)
    np.testing.assert_array_equal(scores(flat, "slate_size"), size)
    assert len(set(size)) > 1


def test_slot_is_the_place_in_the_list_where_no_slot_is_logged(
    small_log: Callable[..., Log],
) -> None:
    schema = Schema(
        features=(Feature(name="item", owner="item", kind="categorical"),),
        labels=(Label(name="click"),),
    )
    log = small_log(schema, [row(0, [5, 3, 9]), row(1, [3])])
    scorers = make_baselines(["slot"], None, log, 0)
    assert collect(log.all(), scorers).scores["slot"][:, 0].tolist() == [0, -1, -2, 0]


def row(k: int, items: list[int], stage: str = "exposed", click: float = 0.0) -> dict[str, Any]:
    return {
        "request_id": k,
        "user": k % 2,
        "time": 1_700_000_000_000 + k,
        "candidates.item": items,
        "candidates.stage": [stage] * len(items),
        "labels.click": [click] * len(items),
    }


def test_labels_of_what_was_not_shown_are_not_counted(small_log: Callable[..., Log]) -> None:
    """A delayed label counts as 0 everywhere once its window is over, shown or not."""
    schema = Schema(
        features=(Feature(name="item", owner="item", kind="categorical"),),
        labels=(Label(name="click"),),
    )
    rows = [row(0, [1], click=1.0), row(1, [1, 2], "rank"), row(2, [1, 2])]
    log = small_log(schema, rows, {"train": np.arange(2), "test": np.arange(2, 3)})
    scorers = make_baselines(["popularity", "item_mean"], log["train"], log, 0)
    found = collect(log["test"], scorers).scores
    assert found["popularity"][:, 0].tolist() == [1, 0]
    assert found["item_mean"][:, 0].tolist() == [1, 1]  # one exposure, clicked: all means are 1


def test_random_is_uniform_and_a_function_of_seed_request_and_item(flat: Any) -> None:
    first = scores(flat, "random")
    np.testing.assert_array_equal(first, scores(flat, "random", batch_size=7))
    assert not np.array_equal(first, scores(flat, "random", seed=1))
    assert len(np.unique(first)) == len(first)
    grid = (np.arange(len(first)) + 0.5) / len(first)
    assert np.abs(np.sort(first) - grid).max() < 1.63 / np.sqrt(len(first))  # Kolmogorov, 1 %
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 4 / np.sqrt(len(first))


def test_baselines_that_cannot_be_had_are_refused(flat: Any) -> None:
    with pytest.raises(InputError, match="baseline 'popularty' is not known; did you mean 'popu"):
        make_baselines(["popularty"], flat.log["train"], flat.log, 0)
    with pytest.raises(InputError, match=r"'item_mean:clik' is not known; .*'item_mean:click'"):
        make_baselines(["item_mean:clik"], flat.log["train"], flat.log, 0)
    with pytest.raises(InputError, match="'popularity' needs a part 'train' to count on"):
        make_baselines(["random", "popularity"], None, flat.log, 0)


def test_retrieval_order_is_what_the_log_says_or_a_reason(
    flat: Any, small_log: Callable[..., Log]
) -> None:
    """A logged rank beats a logged score; what retrieval did not order comes last."""
    with pytest.raises(InputError, match="baseline 'retrieval': the order of retrieval is not"):
        make_baselines(["retrieval"], None, flat.log, 0)
    item = Feature(name="item", owner="item", kind="categorical")
    row = {
        "request_id": 1,
        "user": 1,
        "time": 1_700_000_000_000,
        "candidates.item": [1, 2, 3],
        "candidates.stage": ["retrieval", "pool", "exposed"],
        "candidates.rank.retrieval": [1, None, 0],
        "candidates.score.retrieval": [0.1, None, -0.5],
        "labels.click": [None, None, 1.0],
    }
    common = {"features": (item,), "labels": (Label(name="click"),), "scores": ("retrieval",)}
    for ranks, best_first in ((("retrieval",), [2, 0, 1]), ((), [0, 2, 1])):
        kept = {k: v for k, v in row.items() if ranks or not k.startswith("candidates.rank")}
        log = small_log(Schema(**common, ranks=ranks), [kept])
        scorers = make_baselines(["retrieval"], None, log, 0)
        found = collect(log.all(), scorers).scores["retrieval"][:, 0]
        assert np.argsort(-found).tolist() == best_first
