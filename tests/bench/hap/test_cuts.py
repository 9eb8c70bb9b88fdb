from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prerank.bench.hap.cuts import budgets, promises, routed, routers
from prerank.bench.hap.facts import Facts, places_of
from prerank.cascade import Mass, Share
from prerank.cascade.promise import losses
from prerank.cascade.routers import ROUTERS
from prerank.evaluation.studies import budget, promise
from prerank.evaluation.studies.points import reordered
from prerank.log import open_log
from prerank.world import WorldConfig, write_world

_SEEDS = (0, 2)  # a seed in the middle is missing


def some_facts(lengths: list[int], quota: int, truth: Any) -> Any:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    num = int(offsets[-1])

    def offsets_of(chosen: Any) -> Any:
        return np.concatenate([[0], np.cumsum(chosen)])[offsets].astype(np.int64)

    data = SimpleNamespace(
        offsets=offsets,
        row=np.arange(len(lengths)),
        lengths=np.array(lengths),
        item=np.arange(num),
        offsets_of=offsets_of,
    )
    return SimpleNamespace(data=data, truths=SimpleNamespace(quota=quota, binary={"T3": truth}))


@pytest.mark.parametrize("router", ROUTERS)
@given(data=st.data())
def test_a_router_re_orders_what_it_chose_and_nothing_else(router: str, data: Any) -> None:
    lengths = data.draw(st.lists(st.integers(0, 7), min_size=1, max_size=3))
    num = sum(lengths)
    numbers = st.lists(st.floats(-4, 4, width=32), min_size=num, max_size=num, unique=True)
    light, heavy = (np.array(data.draw(numbers), dtype=np.float64) for _ in range(2))
    truth = np.array(data.draw(st.lists(st.booleans(), min_size=num, max_size=num)), dtype=bool)
    quota = data.draw(st.integers(1, 5))
    facts = some_facts(lengths, quota, truth)
    count = np.array([data.draw(st.integers(0, n)) for n in lengths], dtype=np.int64)
    places = (-routed(light, heavy, facts, router, count)).astype(int)
    before = places_of(light, facts.data)
    for r, n in enumerate(lengths):
        here = slice(facts.data.offsets[r], facts.data.offsets[r + 1])
        now, was = places[here], before[here]
        assert sorted(now) == list(range(n))
        k = int(count[r])
        if router == "score":
            chosen = was < k
        elif router == "entropy":
            chosen = np.isin(np.arange(n), np.lexsort((was, np.abs(light[here])))[:k])
        elif router == "oracle":
            chosen = np.isin(np.arange(n), np.lexsort((was, ~truth[here]))[:k])
        elif router == "random":
            continue  # which ones is a matter of the draw; their places are checked above
        else:
            mark = np.sort(light[here])[::-1][min(quota, n) - 1] if n else 0.0
            far = np.abs(light[here] - mark)
            steps = np.abs(was - (min(quota, n) - 1))
            chosen = np.isin(np.arange(n), np.lexsort((steps, far))[:k])
        if router in ("margin", "entropy"):
            assert sorted(now[chosen]) == sorted(was[chosen])
            assert (now[~chosen] == was[~chosen]).all()
            first = np.argsort(np.where(chosen, now, n))[:k]
            assert (np.diff(heavy[here][first]) <= 0).all()
            continue
        assert set(now[chosen]) == set(range(k))
        assert (np.diff(heavy[here][np.argsort(now)[:k]]) <= 0).all()
        rest = np.argsort(now)[k:]
        assert (np.diff(was[rest]) > 0).all()


def test_the_highest_scored_are_the_plain_cascade() -> None:
    rng = np.random.default_rng(0)
    facts = some_facts([5, 9, 3], 4, np.zeros(17, dtype=bool))
    light, heavy = rng.normal(size=(2, 17))
    count = np.array([2, 4, 3])
    before = places_of(light, facts.data)
    expected = reordered(before, heavy, facts.data.offsets, count, before)
    np.testing.assert_array_equal(-routed(light, heavy, facts, "score", count), expected)
    assert torch.get_default_dtype() == torch.float32


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return facts of valid and test, and folders of made-up scores by line and seed."""
    folder = tmp_path_factory.mktemp("cuts")
    config = WorldConfig(num_users=60, num_items=600, num_requests=300, num_days=5, num_pool=20)
    write_world(folder / "log", config)
    log = open_log(folder / "log")
    facts = {part: Facts.of(log[part], folder) for part in ("valid", "test")}
    finished: dict[str, dict[int, Path]] = {"ghcl": {}, "heavy": {}}
    draw = np.random.default_rng(0)
    for line, noise in (("ghcl", 2.0), ("heavy", 0.5)):
        for seed in _SEEDS:
            out = folder / f"{line}{seed}"
            out.mkdir()
            for part, known in facts.items():
                utility = known.everything.utility
                assert utility is not None
                score = utility + draw.normal(0, noise, size=len(utility))
                np.save(out / f"{part}.npy", score.astype(np.float32))
            finished[line][seed] = out
    return finished, facts


def _samples(judged: Any, seed: int) -> Any:
    finished, facts = judged
    top_m = facts["test"].truths.top_m
    return [
        promise.sample_of(
            known.data,
            known.listed(np.load(finished["ghcl"][seed] / f"{part}.npy").astype(np.float64)),
            top_m=top_m,
            part=part,
        )
        for part, known in facts.items()
    ]


def test_a_promise_is_judged_by_losses_averaged_over_seeds(judged: Any) -> None:
    row = next(
        row for row in promises(*judged) if row["family"] == "fixed share" and row["epsilon"] == 0.1
    )
    found = []
    for seed in _SEEDS:
        valid, test = _samples(judged, seed)
        rule = promise.calibrate(Share(share=0.5), valid, 0.1)
        found.append(promise.realised(rule, test))
    assert row["loss"] == pytest.approx(np.mean([f.loss.value for f in found]))
    assert row["share"] == pytest.approx(np.mean([f.share for f in found]))
    assert row["low"] < row["loss"] < row["high"]
    assert (row["seeds"], row["asked"], len(row["windows"])) == (2, 2, 4)
    assert row["scored_share"] == 1.0
    assert all(w["low"] <= w["value"] <= w["high"] for w in row["windows"])


def test_a_budget_is_judged_at_the_mean_that_it_spends(judged: Any) -> None:
    rows = budgets(*judged)
    row = next(row for row in rows if row["family"] == "softmax mass" and row["share"] == 0.1)
    mean = 0.1 * float(judged[1]["valid"].data.lengths.mean())
    ours, theirs = [], []
    for seed in _SEEDS:
        valid, test = _samples(judged, seed)
        spent = budget.compare_budgets({"x": Mass(mass=0.5)}, valid, test, mean)["x"]
        assert spent.difference is not None
        ours.append(spent.realised.loss.value)
        theirs.append(ours[-1] - spent.difference.value)
    assert row["loss"] == pytest.approx(np.mean(ours))
    assert row["fixed"] == pytest.approx(np.mean(theirs))
    d = row["difference"]
    assert d["value"] == pytest.approx(row["loss"] - row["fixed"])
    assert d["p"] <= d["p_holm"] <= min(1.0, len(rows) * d["p"])


def test_a_fixed_share_is_no_better_than_itself(judged: Any) -> None:
    _, test = _samples(judged, 0)
    rule = Share(share=0.3)
    count = float(rule.count(test.ladder).double().mean())
    mine = losses(rule, test.ladder, test.needed).numpy()
    same = budget.losses_of_share(test, count)
    assert np.nanmean(mine) == pytest.approx(np.nanmean(same), abs=0.02)


def test_the_oracle_is_in_no_test(judged: Any) -> None:
    finished, facts = judged
    found = routers(finished, facts["test"])
    assert found is not None
    for of in found.values():
        assert "oracle" in of["values"]
        assert "oracle - score" not in of["differences"]
        assert "margin - score" in of["differences"]
