"""Rules and objectives that remember something: stopped and resumed, bit for bit; processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from prerank.batch import RequestBatch
from prerank.log import Log, open_log, write_log
from prerank.models.two_tower import TwoTower
from prerank.objectives.ghcl import GHCL
from prerank.schema import Feature, Label, Schema
from prerank.training import FitConfig, fit
from prerank.training.checkpoint import load_checkpoint
from prerank.training.combine import get
from prerank.training.metrics_log import read_metrics

CONFIG = FitConfig(epochs=2, batch_size=8, lr=0.05, table_lr=0.3, checkpoint_every=3, log_every=1)


class _Stop(Exception):  # noqa: N818
    pass


class Stopping(GHCL):
    """A GHCL that fails after some updates."""

    left = 10**9

    def __call__(self, scores: Any, batch: RequestBatch) -> Any:
        if torch.is_grad_enabled():
            self.left -= 1
            if self.left < 0:
                raise _Stop
        return super().__call__(scores, batch)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    rng = np.random.default_rng(0)
    num, each = 40, 8
    stage = np.tile([*["exposed"] * 3, "rank", "retrieval", "pool", "rank", "pool"], (num, 1))
    click = np.full((num, each), np.nan)
    click[:, :3] = rng.random((num, 3)) < 0.5
    schema = Schema(
        features=(
            Feature(name="group", owner="user", kind="categorical"),
            Feature(name="item", owner="item", kind="categorical"),
        ),
        labels=(Label(name="click"),),
    )
    table = pa.table(
        {
            "request_id": np.arange(num),
            "user": rng.integers(0, 9, num),
            "time": 1_700_000_000_000 + np.arange(num) * 60_000,
            "group": rng.integers(0, 2, num),
            "candidates.item": rng.permuted(np.tile(np.arange(12), (num, 1)), axis=1)[
                :, :each
            ].tolist(),
            "candidates.stage": stage.tolist(),
            "labels.click": [[None if np.isnan(x) else x for x in row] for row in click.tolist()],
        }
    )
    path = tmp_path_factory.mktemp("combine") / "log"
    write_log(path, schema, [table])
    return open_log(path)


@pytest.fixture
def train(log: Log) -> Callable[..., Any]:
    def run(out: Path, rule: str, after: int = 10**9, **values: Any) -> Any:
        torch.manual_seed(0)
        model = TwoTower.Config(width=4).build(log.schema)
        objective = Stopping(log.schema, GHCL.Config(density=4, **values.pop("objective", {})))
        objective.left = after
        combine = get(rule).Config(**values).build()
        fit(model, log.all(), objective, config=CONFIG, combine=combine, out=out, progress=False)
        return model

    return run


RULES = [
    ("sum", {}),
    ("pcgrad", {"objective": {"grouping": "mixed"}}),
    ("inverse_norm", {"every": 3}),
    ("harmonised", {"every": 2}),
    ("harmonised", {"measure": "dense", "every": 3, "objective": {"grouping": "mixed"}}),
]


@pytest.mark.parametrize(("rule", "values"), RULES)
def test_stopped_and_resumed(
    train: Callable[..., Any], tmp_path: Path, rule: str, values: dict[str, Any]
) -> None:
    whole = train(tmp_path / "whole", rule, **values)
    with pytest.raises(_Stop):
        train(tmp_path / "run", rule, 7, **values)
    again = train(tmp_path / "run", rule, **values)
    for (name, x), y in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(x, y), name
    lines = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "run")]
    assert lines[0] == lines[1]
    tensors = load_checkpoint(tmp_path / "run" / "checkpoints", 10).tensors
    assert float(tensors["objective:density/nce"].sum()) == pytest.approx(1.0)
    if rule != "sum":
        assert int(tensors["combine:calls"]) == 10


def test_rules_make_a_difference_and_say_so(train: Callable[..., Any], tmp_path: Path) -> None:
    found = {}
    for rule in ("sum", "pcgrad", "inverse_norm", "harmonised"):
        model = train(tmp_path / rule, rule)
        found[rule] = model.state_dict()["encode.tables.weight"]
        last = read_metrics(tmp_path / rule / "metrics.jsonl")[-1]
        said = {key for key in last if key.startswith("combine/")}
        assert bool(said) == (rule != "sum")
        if rule == "harmonised":
            assert {f"combine/weight/{s}" for s in ("exposed", "rank", "prerank", "random")} < said
    for rule in ("pcgrad", "inverse_norm", "harmonised"):
        assert not torch.allclose(found["sum"], found[rule])
