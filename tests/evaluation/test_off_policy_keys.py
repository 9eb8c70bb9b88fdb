"""A log with propensities tells what another order would have earned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from prerank.evaluation import evaluate
from prerank.log import open_log, write_log
from prerank.schema import Feature, Label, Schema

NUM_REQUESTS, NUM_ITEMS = 3000, 6


class ByItem:
    """Scores an item by a fixed table."""

    def __init__(self, table: np.ndarray, kind: str) -> None:
        self.table, self.kind = table, kind

    def __call__(self, columns: Any, log: Any, evidence: Any) -> np.ndarray:
        raw = log.items.ids.decode(evidence.item.numpy()).to_numpy(zero_copy_only=False)
        return self.table[raw.astype(int)][:, None]


@pytest.fixture(scope="module")
def bandit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    chance = rng.uniform(0.1, 0.8, NUM_ITEMS)
    propensity = rng.dirichlet(np.full(NUM_ITEMS, 4.0))
    shown = rng.choice(NUM_ITEMS, NUM_REQUESTS, p=propensity)
    click = rng.random(NUM_REQUESTS) < chance[shown]
    items = list(range(NUM_ITEMS))
    rows = pa.table(
        {
            "request_id": list(range(NUM_REQUESTS)),
            "user": rng.integers(0, 400, NUM_REQUESTS),
            "time": 1_700_000_000_000 + np.arange(NUM_REQUESTS),
            "candidates.item": [items] * NUM_REQUESTS,
            "candidates.stage": [["exposed" if i == s else "rank" for i in items] for s in shown],
            "candidates.propensity": [propensity.tolist()] * NUM_REQUESTS,
            "labels.click": [
                [float(c) if i == s else None for i in items]
                for s, c in zip(shown, click, strict=True)
            ],
        }
    )
    schema = Schema(
        features=(Feature(name="item", owner="item", kind="categorical"),),
        labels=(Label(name="click"),),
        has_propensity=True,
    )
    path = tmp_path_factory.mktemp("bandit") / "log"
    write_log(path, schema, [rows])
    return path, chance, propensity


def test_the_value_of_another_order_is_found(
    bandit: tuple[Path, np.ndarray, np.ndarray],
) -> None:
    path, chance, _ = bandit
    rng = np.random.default_rng(1)
    table = rng.normal(size=NUM_ITEMS)
    logit = np.log(chance / (1 - chance))
    scorers = {"other": ByItem(table, "score"), "right": ByItem(logit, "logit")}
    result = evaluate(scorers, open_log(path).all(), baselines=(), ks=(1, 2), num_resamples=200)
    for name, scores in (("other", table), ("right", logit)):
        best = np.argsort(-scores)
        for k in (1, 2):
            truth = chance[best[:k]].sum()
            found = result.runs[name].metrics[f"ips@{k}/T1"]
            half = found.high - found.low
            assert abs(found.value - truth) < half, (name, k)
    robust = result.runs["right"].metrics["dr@2/T1"]
    plain = result.runs["right"].metrics["ips@2/T1"]
    truth = np.sort(chance)[-2:].sum()
    assert abs(robust.value - truth) < robust.high - robust.low
    assert robust.high - robust.low < plain.high - plain.low, "a right model narrows the interval"
    assert "dr@1/T1" not in result.runs["other"].metrics


def test_by_hand(bandit: tuple[Path, np.ndarray, np.ndarray]) -> None:
    path, _, propensity = bandit
    table = np.arange(NUM_ITEMS, dtype=float)
    log = open_log(path)
    found = (
        evaluate({"m": ByItem(table, "score")}, log.all(), baselines=(), ks=(2,), num_resamples=10)
        .runs["m"]
        .metrics
    )
    total = weights = 0.0
    for columns in log.all().columns(500):
        values = columns.candidates.values
        for item, stage, click in zip(
            values["item"], values["stage"], values["labels.click"], strict=True
        ):
            raw = int(log.items.ids.values[int(item)].as_py())
            if stage == 4 and raw >= NUM_ITEMS - 2:
                total += float(click) / float(np.float32(propensity[raw]))
                weights += 1 / float(np.float32(propensity[raw]))
    assert found["ips@2/T1"].value == pytest.approx(total / NUM_REQUESTS, rel=1e-9)
    assert found["snips@2/T1"].value == pytest.approx(total / weights, rel=1e-9)
