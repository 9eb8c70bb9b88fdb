from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prerank import metrics
from prerank.bench.hap.compare import compare, correct, over_seeds, raw_differences, summary
from prerank.bench.hap.facts import Facts, places_of
from prerank.evaluation.studies.points import reordered
from prerank.log import Part, open_log
from prerank.world import WorldConfig, write_world


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Part:
    path = tmp_path_factory.mktemp("facts") / "log"
    config = WorldConfig(num_users=40, num_items=600, num_requests=150, num_days=3, num_pool=20)
    write_world(path, config)
    return open_log(path)["test"]


@pytest.fixture(scope="module")
def facts(part: Part, tmp_path_factory: pytest.TempPathFactory) -> Facts:
    return Facts.of(part, tmp_path_factory.mktemp("kept"))


def test_kept_utility_is_the_computed_one(part: Part, tmp_path: Path) -> None:
    first, second = Facts.of(part, tmp_path), Facts.of(part, tmp_path)
    assert first.data.utility is not None
    assert second.data.utility is not None
    np.testing.assert_array_equal(first.data.utility, second.data.utility)
    assert first.everything.utility is not None
    assert (first.everything.stage == 0).any()
    assert (first.data.stage > 0).all()


def test_true_utility_is_the_best_order_of_its_own_truth(facts: Facts) -> None:
    utility = facts.everything.utility
    assert utility is not None
    values = facts.values(utility)
    k = facts.cut_offs()[1]
    assert facts.truths.top_m is not None
    assert facts.truths.top_m < k
    assert values[f"recall@{k}/U"].min() == 1.0
    noise = np.random.default_rng(0).normal(size=len(utility))
    chance = facts.values(noise)
    assert np.nanmean(values["utility@10/U"]) > np.nanmean(chance["utility@10/U"])
    # An engaged exposure must be found where everything is kept.
    lengths = facts.data.lengths
    order = metrics.top_order(facts.listed(noise), facts.data.offsets)
    everything = metrics.recall_at_k(
        facts.data.positive, order, facts.data.offsets, int(lengths.max())
    )
    assert np.nanmin(everything) == 1.0


def test_macro_is_the_mean_of_the_sources_a_request_has(facts: Facts) -> None:
    values = facts.values(np.random.default_rng(1).normal(size=len(facts.everything.source)))
    each = np.stack([values[f"auc/{s}"] for s in facts.data.schema.source_names])
    for request in range(each.shape[1]):
        known = each[~np.isnan(each[:, request]), request]
        expected = known.mean() if len(known) else np.nan
        np.testing.assert_allclose(values["auc/macro"][request], expected, atol=1e-12)


def test_random_rows_of_evaluation_take_no_place(facts: Facts) -> None:
    score = np.random.default_rng(2).normal(size=len(facts.everything.source))
    first = np.where(facts.is_listed, score, score.max() + 1.0)
    values, with_pool_first = facts.values(score), facts.values(first)
    for key, found in values.items():
        if key not in ("auc/random", "auc/macro"):
            np.testing.assert_array_equal(found, with_pool_first[key])
    assert np.nanmax(with_pool_first["auc/random"]) == 0.0


@given(st.data())
def test_a_cascade_re_orders_only_what_it_forwards(data: Any) -> None:
    lengths = np.array(data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=4)))
    size = int(lengths.sum())
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    known: Any = SimpleNamespace(offsets=offsets, row=np.arange(len(lengths)), lengths=lengths)
    scores = st.lists(st.integers(-3, 3), min_size=size, max_size=size)
    light = places_of(np.array(data.draw(scores), dtype=np.float64), known)
    heavy = np.array(data.draw(scores), dtype=np.float64)
    count = np.array([data.draw(st.integers(0, int(n))) for n in lengths])
    after = reordered(light, heavy, offsets, count, light)
    for r, n in enumerate(lengths):
        here = slice(offsets[r], offsets[r + 1])
        places = after[here]
        assert sorted(places) == list(range(n))
        first = light[here] < count[r]
        assert set(places[first]) == set(range(count[r]))
        np.testing.assert_array_equal(places[~first], light[here][~first])
        by_place = np.argsort(places)[: count[r]]
        assert (np.diff(heavy[here][by_place]) <= 0).all()


def test_differences_are_paired_and_corrected() -> None:
    rng = np.random.default_rng(2)
    user = np.repeat(np.arange(60), 3)
    base = rng.normal(size=180)
    lines = {
        "a": over_seeds([{"x": base + 0.5}, {"x": base + 0.7}]),
        "b": over_seeds([{"x": base}, {"x": base}]),
        "c": over_seeds([{"x": base + rng.normal(size=180)}]),
    }
    found = compare(lines, [("a", "b"), ("b", "c"), ("a", "missing")], ["x", "y"], user)
    assert set(found) == {"a - b", "b - c"}
    clear = found["a - b"]["x"]
    assert clear["value"] == pytest.approx(0.6)
    assert clear["low"] == pytest.approx(0.6)
    assert clear["sd_seeds"] == pytest.approx(np.sqrt(0.02))
    assert clear["p_users"] < 0.01 < clear["p"] <= clear["p_holm"]  # two seeds are few
    assert found["b - c"]["x"]["p"] > 0.01
    table = summary(lines["a"], user)["x"]
    assert table["seeds"] == 2
    assert table["low"] < table["value"] < table["high"]
    assert table["sd_seeds"] == pytest.approx(np.sqrt(0.02))


def test_seeds_are_paired_by_number_whatever_is_missing() -> None:
    shift = np.random.default_rng(3).normal(size=4)
    base = np.random.default_rng(4).normal(size=(60,))
    user = np.arange(60)
    values = [{"x": base + s} for s in shift]
    lines = {
        "whole": over_seeds(values),
        "part": over_seeds([{"x": values[n]["x"] + 0.5} for n in (0, 2, 3)], (0, 2, 3)),
        "other": over_seeds([{"x": base}], (7,)),
    }
    found = compare(lines, [("part", "whole"), ("part", "other")], ["x"], user)
    assert set(found) == {"part - whole"}  # no seed in common is no difference
    assert found["part - whole"]["x"]["sd_seeds"] == pytest.approx(0.0, abs=1e-12)
    assert found["part - whole"]["x"]["value"] == pytest.approx(0.5)


def test_one_family_is_harsher_than_several() -> None:
    rng = np.random.default_rng(5)
    user = np.arange(80)
    base = rng.normal(size=80)
    lines = {
        name: over_seeds([{"x": base + rng.normal(0.25, 1.0, size=80)}]) for name in ("a", "b", "c")
    } | {"zero": over_seeds([{"x": base}])}
    alone = [compare(lines, [(name, "zero")], ["x"], user) for name in ("a", "b", "c")]
    family = [raw_differences(lines, [(name, "zero")], ["x"], user) for name in ("a", "b", "c")]
    correct(*family)
    p = sorted(next(iter(of.values()))["x"]["p"] for of in alone)
    assert all(
        next(iter(of.values()))["x"]["p_holm"] == next(iter(of.values()))["x"]["p"] for of in alone
    )
    together = sorted(next(iter(of.values()))["x"]["p_holm"] for of in family)
    first, second = min(1.0, 3 * p[0]), min(1.0, 2 * p[1])
    expected = [first, max(first, second), max(first, second, p[2])]
    np.testing.assert_allclose(together, expected)
