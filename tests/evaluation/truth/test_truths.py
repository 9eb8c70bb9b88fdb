"""Truths and the measures of an order against plain loops over the raw tables."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau
from sklearn.metrics import roc_auc_score

from prerank.errors import InputError
from prerank.evaluation import Evaluation, TruthOptions, evaluate
from prerank.evaluation.baselines import make_baselines
from prerank.evaluation.collect import collect
from prerank.evaluation.measures import measure
from prerank.evaluation.truth.ranker import logged_ranker
from prerank.evaluation.truth.truths import Truths
from prerank.log import Log, open_log
from prerank.schema import Feature, Label, Schema
from prerank.world import World, WorldConfig, write_world

STAGES = ("pool", "retrieval", "prerank", "rank", "exposed")
QUOTA, M = 9, 5
KS = (3, QUOTA)
OPTIONS = TruthOptions(quota=QUOTA, top_m=M, min_count=12)


def noisy(flat: Any, seed: int = 0) -> np.ndarray:
    return 1.5 * flat.clicked + np.random.default_rng(seed).normal(size=len(flat.request))


@pytest.fixture(scope="module")
def score(flat: Any) -> np.ndarray:
    return noisy(flat)


@pytest.fixture(scope="module")
def result(flat: Any, given: Any, score: np.ndarray) -> Evaluation:
    return evaluate(
        {"run": given(score, flat.offsets)},
        flat.log["test"],
        baselines=("random",),
        ks=KS,
        truths=OPTIONS,
        num_resamples=20,
        cost=False,
    )


def first(values: np.ndarray, k: int) -> set[int]:
    known = np.flatnonzero(~np.isnan(values))
    return set(known[np.argsort(-values[known], kind="stable")][:k].tolist())


def test_every_measure_of_an_order_equals_a_loop(
    flat: Any, score: np.ndarray, result: Evaluation
) -> None:
    stage = np.array([STAGES.index(s) for s in flat["candidates.stage"]])
    ranker = flat["candidates.score.ranker"].astype(np.float64)
    later = {
        (u, i): t
        for u, i, t, c in zip(
            flat.user,
            flat["candidates.item"],
            flat.table["time"].to_numpy()[flat.request],
            flat.clicked,
            strict=True,
        )
        if c
    }
    found: dict[str, list[float]] = {}

    def add(key: str, value: float) -> None:
        found.setdefault(key, []).append(value)

    for row in flat.world.splits()["test"]:
        s = slice(int(flat.offsets[row]), int(flat.offsets[row + 1]))
        if s.start == s.stop:
            continue
        x, clicked, shown, heavy = score[s], flat.clicked[s], flat.shown[s], ranker[s]
        time = flat.table["time"][row].as_py()
        user = flat.table["user"][row].as_py()
        again = [later.get((user, i), 0) > time for i in flat["candidates.item"][s]]
        truths = {
            "T1": set(np.flatnonzero(clicked)),
            "T2": set(np.flatnonzero(shown)),
            "T3": first(heavy, M),
            "T5": set(np.flatnonzero(again & ~shown)),
        }
        grade = np.where(stage[s] == 0, 0, np.maximum(3 - (4 - stage[s]), 0))
        grade = np.where(clicked, 4, grade)
        order = np.argsort(-x, kind="stable")
        scored = ~np.isnan(heavy)
        mine = np.where(scored, x, np.nan)
        add("kendall/ranker", kendalltau(x[scored], heavy[scored]).statistic)
        pairs = list(itertools.combinations(np.flatnonzero(scored), 2))
        right = [(x[i] > x[j]) == (heavy[i] > heavy[j]) for i, j in pairs]
        add("consistency/ranker", float(np.mean(right)))
        for k in (3, 4, 9, 18):
            kept = set(order[:k].tolist())
            for name, truth in truths.items():
                if truth:
                    add(f"recall@{k}/{name}", len(kept & truth) / len(truth))
            add(f"dislike@{k}/T2", np.mean([shown[i] and not clicked[i] for i in order[:k]]))
            worth = 2.0**grade - 1
            dcg = sum(worth[i] / math.log2(p + 2) for p, i in enumerate(order[:k]))
            best = sorted(worth, reverse=True)[:k]
            ideal = sum(w / math.log2(p + 2) for p, w in enumerate(best))
            if ideal:
                add(f"ndcg@{k}/T4", dcg / ideal)
            size = min(k, int(scored.sum()))
            add(f"overlap@{k}/ranker", len(first(mine, k) & first(heavy, k)) / size)
            if k >= M:
                through = sorted((heavy[i] for i in first(mine, k)), reverse=True)[:M]
                lost = np.mean(sorted(heavy[scored], reverse=True)[:M]) - np.mean(through)
                add(f"score_lost@{k}/ranker", lost)
                gains = {
                    i: 1 / math.log2(p + 2)
                    for p, i in enumerate(sorted(first(heavy, M), key=lambda i: -heavy[i]))
                }
                if scored.sum() >= M:
                    got = sum(g for i, g in gains.items() if i in kept)
                    add(f"gain@{k}/ranker", got / sum(gains.values()))
                passed = first(np.where(np.isin(np.arange(len(x)), list(kept)), heavy, np.nan), M)
                if clicked.any():
                    share = len(passed & truths["T1"]) / clicked.sum()
                    add(f"survival@{k}/T1", share)
    metrics = result.runs["run"].metrics
    compared = {key: float(np.mean(v)) for key, v in found.items() if key in metrics}
    assert len(compared) > 25
    assert {key.split("@")[0].split("/")[0] for key in found} == {
        key.split("@")[0].split("/")[0] for key in compared
    }
    assert {key: metrics[key].value for key in compared} == pytest.approx(compared, abs=1e-12)


def test_sources_together_are_the_mean_and_the_least(result: Evaluation) -> None:
    for metric in ("auc", "gauc", "request_auc"):
        single = [
            result.value("run", f"{metric}/source:{s}")
            for s in ("random", "prerank", "rank", "exposed")
        ]
        macro = result.runs["run"].metrics[f"{metric}_macro/sources"]
        least = result.runs["run"].metrics[f"{metric}_min/sources"]
        assert macro.value == pytest.approx(np.mean(single), abs=1e-12)
        assert least.value == pytest.approx(min(single), abs=1e-12)
        assert macro.low < macro.value < macro.high
        assert least.low < least.high
    found = result.differences["run - random"]["auc_macro/sources"]
    assert found.value == pytest.approx(
        result.value("run", "auc_macro/sources") - result.value("random", "auc_macro/sources")
    )
    assert found.low < found.value < found.high


def test_cold_items_and_users_are_those_training_hardly_saw(
    flat: Any, score: np.ndarray, result: Evaluation
) -> None:
    train, test = flat.within("train"), flat.within("test")
    rows = flat.world.splits()["train"]
    past = flat.table["history.click.item"].take(rows).combine_chunks().flatten().to_numpy()
    seen = np.concatenate([flat["candidates.item"][train], past])
    ids, count = np.unique(seen, return_counts=True)
    often = ids[count >= 12]
    cold = test & flat.clicked & ~np.isin(flat["candidates.item"], often)
    found = []
    for s in flat.requests("test"):
        truth = set(np.flatnonzero(cold[s]))
        if truth:
            found.append(len(truth & first(score[s], 3)) / len(truth))
    assert found
    assert result.value("run", "recall@3/T1:cold_item") == pytest.approx(np.mean(found))
    known = test & flat.shown & ~np.isin(flat["candidates.item"], often)
    expected = roc_auc_score(flat.clicked[known], score[known])
    assert result.value("run", "auc/T1:cold_item") == pytest.approx(expected)


def test_quotas_are_medians_of_what_stages_kept(flat: Any) -> None:
    data = collect(flat.log["test"], {}, ranker=logged_ranker(flat.log.schema))
    truths = Truths.of(data, flat.log, TruthOptions())
    stage = np.array([STAGES.index(s) for s in flat["candidates.stage"]])
    for least, found in ((2, truths.quota), (3, truths.top_m)):
        kept = [int((stage[s] >= least).sum()) for s in flat.requests("test") if s.start < s.stop]
        assert found == int(np.median(kept))


def test_a_world_knows_the_utility(tmp_path: Any, given: Any) -> None:
    config = WorldConfig(num_users=30, num_items=400, num_requests=90, num_days=3, num_retrieved=60)
    write_world(tmp_path / "log", config)
    log, world = open_log(tmp_path / "log"), World.open(tmp_path / "log")
    lists = [
        world.utility(r, np.asarray(log.items.ids.values.fill_null(-1))[items])
        for c in log.all().columns(1, with_ids=True)
        for r, items in [(int(c.scalars["request_id"][0]), c.candidates.values["item"])]
    ]
    offsets = np.concatenate([[0], np.cumsum([len(u) for u in lists])])
    utility = np.concatenate(lists)
    noise = np.random.default_rng(0).normal(size=len(utility))
    scorers = {"true": given(utility, offsets, "score"), "noise": given(noise, offsets, "score")}
    result = evaluate(scorers, log["test"], baselines=(), ks=(25,), num_resamples=20)
    assert result.value("true", "regret@25/U") == 0
    assert result.top_m is not None
    assert result.value("true", "recall@25/U") == 1
    rows = [lists[r] for r in world.splits()["test"]]
    picks = [noise[offsets[r] : offsets[r + 1]] for r in world.splits()["test"]]
    expected = [
        np.sort(u)[::-1][:25].mean() - u[np.argsort(-x)[:25]].mean()
        for u, x in zip(rows, picks, strict=True)
    ]
    assert result.value("noise", "regret@25/U") == pytest.approx(np.mean(expected), abs=1e-12)


def test_what_cannot_exist_has_a_reason(small_log: Callable[..., Log], given: Any) -> None:
    item = Feature(name="item", owner="item", kind="categorical")
    schema = Schema(features=(item,), labels=(Label(name="click"),), stages=("seen", "exposed"),
                    sources={"random": ("seen",), "exposed": ("exposed",)})  # fmt: skip
    rows = [
        {
            "request_id": k,
            "user": k % 2,
            "time": 1_700_000_000_000 + k,
            "candidates.item": list(range(6)),
            "candidates.stage": ["exposed"] * 6,
            "labels.click": [1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        }
        for k in range(4)
    ]
    log = small_log(schema, rows)
    scorer = given(np.arange(24.0), np.arange(5) * 6)
    run = evaluate({"run": scorer}, log.all(), baselines=(), ks=(2,)).runs["run"]
    assert run.skipped["recall@2/T2"] == "every candidate was shown"
    assert run.skipped["recall@2/T3"] == "the log has no score or rank of a ranker"
    assert run.skipped["kendall/ranker"] == run.skipped["survival@2/T1"]
    assert run.skipped["recall@2/U"] == "only a simulated world knows the true utility"
    assert run.skipped["recall@2/T5"] == "no request has one"
    assert run.skipped["recall@2/T1:cold_item"] == "there is no part 'train' to count on"
    assert run.skipped["auc_macro/sources"] == "fewer than two sources have both classes"


def test_bad_options_are_named(flat: Any, given: Any) -> None:
    with pytest.raises(InputError, match="truth 'T6' is not known"):
        TruthOptions(groups=("T6",))
    with pytest.raises(InputError, match="quota is 0; expected at least 1"):
        TruthOptions(quota=0)
    with pytest.raises(InputError, match="ranker 'rankr': no such logged score or rank; did you"):
        evaluate({}, flat.log["test"], ranker="rankr")


def test_a_given_ranker_takes_the_place_of_the_logged_one(flat: Any, given: Any) -> None:
    one = given(noisy(flat), flat.offsets)
    behind = given(noisy(flat), flat.offsets)
    truths = TruthOptions(groups=("T3", "ranker"))
    result = evaluate(
        {"run": one}, flat.log["test"], baselines=(), ranker=behind, truths=truths, cost=False
    )
    assert result.ranker == "given"
    assert result.value("run", "kendall/ranker") == 1
    assert result.value("run", f"overlap@{result.quota}/ranker") == 1
    assert result.value("run", f"score_lost@{result.quota}/ranker") == 0


def test_chance_meets_every_truth_as_expected(flat: Any) -> None:
    """A random order keeps k of n of any truth, agrees with half of the pairs, lies at tau 0."""
    part = flat.log["test"]
    draws: dict[str, list[float]] = {}
    for seed in range(40):
        scorers = make_baselines(["random"], None, flat.log, seed)
        data = collect(part, scorers, ranker=logged_ranker(flat.log.schema))
        found, _ = measure(data, "random", KS, seed, Truths.of(data, flat.log, OPTIONS, seed))
        for key, m in found.items():
            draws.setdefault(key, []).append(m.estimate(1, 0).value)
    truths = Truths.of(data, flat.log, OPTIONS, 0)
    known = np.diff(data.offsets_of(~np.isnan(data.ranker)))
    n = data.lengths
    expected = {"kendall/ranker": 0.0, "consistency/ranker": 0.5, "auc_macro/sources": 0.5}
    for k in (3, QUOTA):
        for name, truth in truths.binary.items():
            has = np.diff(data.offsets_of(truth)) > 0
            if has.any():
                expected[f"recall@{k}/{name}"] = float(np.mean(np.minimum(k, n[has]) / n[has]))
        expected[f"overlap@{k}/ranker"] = float(
            np.mean(np.minimum(k, known[known > 0]) / known[known > 0])
        )
    enough = known >= M
    expected[f"gain@{QUOTA}/ranker"] = float(np.mean(np.minimum(QUOTA, n[enough]) / n[enough]))
    for key, value in expected.items():
        error = np.std(draws[key], ddof=1) / math.sqrt(len(draws[key]))
        assert abs(np.mean(draws[key]) - value) < 4 * error, key
    assert min(draws[f"score_lost@{QUOTA}/ranker"]) > 0


def test_the_ranker_itself_agrees_with_itself(flat: Any, given: Any) -> None:
    heavy = np.nan_to_num(flat["candidates.score.ranker"].astype(np.float64), nan=-1e9)
    scorer = given(heavy, flat.offsets, "order")
    run = evaluate(
        {"run": scorer}, flat.log["test"], baselines=(), ks=KS, truths=OPTIONS, cost=False
    ).runs["run"]
    for key in ("kendall/ranker", "consistency/ranker", f"recall@{QUOTA}/T3"):
        assert run.metrics[key].value == 1, key
    for name in ("overlap", "gain"):
        assert run.metrics[f"{name}@{QUOTA}/ranker"].value == 1
    assert run.metrics[f"score_lost@{QUOTA}/ranker"].value == 0
    assert "within a request only" in run.skipped["auc_macro/sources"]
