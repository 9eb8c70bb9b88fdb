"""Diagnosis in training and of finished runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from prerank.config import from_values
from prerank.errors import InputError
from prerank.log import Log, open_log, write_log
from prerank.models import get
from prerank.objectives import get as get_objective
from prerank.sampling import get as get_sampler
from prerank.training import FitConfig, fit
from prerank.training.combine import get as get_rule
from prerank.training.diagnosis.hook import weights_of
from prerank.training.diagnosis.run import diagnose_run, load_sampler
from prerank.training.loop import Trainer
from prerank.training.metrics_log import read_metrics
from prerank.world import WorldConfig

SOURCES = ("exposed", "rank", "prerank", "random")
CONFIG = FitConfig(batch_size=16, lr=0.02, log_every=3, eval_every=4, eval_metric="loss")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    config = WorldConfig(
        num_users=30,
        num_items=200,
        num_requests=160,
        num_days=3,
        num_retrieved=30,
        num_preranked=16,
        num_ranked=8,
        num_exposed=4,
    )
    world = config.build()
    path = tmp_path_factory.mktemp("diagnosis") / "log"
    splits = {"train": np.arange(120), "valid": np.arange(120, 160)}
    write_log(path, world.schema, world.requests(), world.items(), splits=splits)
    return open_log(path)


@pytest.fixture(scope="module")
def train(log: Log) -> Callable[..., Any]:
    def run(out: Path, rule: Any = None, **change: Any) -> Any:
        torch.manual_seed(0)
        kind: Any = get("two_tower")
        values = {"width": 4, "tables": {"dim": 4}, "tower": {"hidden": [8], "dropout": 0.2}}
        model = from_values(kind.Config, values, where="test").build(log.schema)
        objective = get_objective("ghcl").Config(bce=0.3).build(log.schema)
        sampler = get_sampler("hap").Config(quotas={"rank": 2, "prerank": 4, "random": 2.0})
        options = {"valid": log["valid"], "combine": rule, "out": out, "progress": False}
        return fit(
            model,
            log["train"],
            objective,
            config=msgspec.structs.replace(CONFIG, **change),
            sampler=sampler.build(log["train"]),
            **options,
        )

    return run


class _StopError(Exception):
    pass


def _weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


def test_training_comes_out_the_same_with_and_without(
    train: Callable[..., Any], tmp_path: Path
) -> None:
    train(tmp_path / "plain")
    train(tmp_path / "seen", diagnose_every=3)
    assert _weights(tmp_path / "plain") == _weights(tmp_path / "seen")
    lines = {name: read_metrics(tmp_path / name / "metrics.jsonl") for name in ("plain", "seen")}
    found = [line for line in lines["seen"] if line["kind"] == "diagnosis"]
    assert [line["step"] for line in found] == [1, 4, 7]
    assert found[0]["negatives/random"] > 0
    assert found[0]["seconds"] > 0
    assert {"norm/dense/contrast/rank", "norm/table/negative/random"} < set(found[0])
    rest = [line for line in lines["seen"] if line["kind"] != "diagnosis"]
    assert rest == lines["plain"]
    assert [line["step"] for line in lines["seen"]] == sorted(s["step"] for s in lines["seen"])


def test_a_resumed_run_has_every_line_once(train: Callable[..., Any], tmp_path: Path) -> None:
    train(tmp_path / "whole", diagnose_every=2, checkpoint_every=2)
    for calls in (0, 2, 1, 3):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Trainer, "update", _stopping(calls))
            with pytest.raises(_StopError):
                train(tmp_path / "cut", diagnose_every=2, checkpoint_every=2)
    train(tmp_path / "cut", diagnose_every=2, checkpoint_every=2)
    found = [_timeless(tmp_path / name) for name in ("whole", "cut")]
    assert found[0] == found[1]
    assert _weights(tmp_path / "whole") == _weights(tmp_path / "cut")


def _stopping(calls: int) -> Callable[[Trainer, Any], None]:
    """Return an update that fails after some calls, when the diagnosis before it is written."""
    left = itertools.count(calls, -1)
    update = Trainer.update

    def stop(trainer: Trainer, batch: Any) -> None:
        if not next(left):
            raise _StopError
        update(trainer, batch)

    return stop


def _timeless(out: Path) -> list[dict[str, Any]]:
    lines = read_metrics(out / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def test_a_finished_run_is_diagnosed_with_its_own_sampler(
    train: Callable[..., Any], log: Log, tmp_path: Path
) -> None:
    train(tmp_path / "run", diagnose_every=5)
    seen: list[int] = []
    found = diagnose_run(tmp_path / "run", log["valid"], num_batches=2, progress=seen.append)
    assert seen == [1, 1]
    assert (found.summary.num_batches, found.num_requests, found.batch_size) == (2, 32, 16)
    assert found.summary.sources == SOURCES
    assert found.summary.values["negatives/rank"].mean <= 2 * 16
    assert [line["step"] for line in found.training] == [1, 6]
    assert found.warnings == ()
    again = diagnose_run(tmp_path / "run", log["valid"], num_batches=2)
    assert again.summary == found.summary
    other = diagnose_run(tmp_path / "run", log["valid"], num_batches=2, seed=1)
    assert other.summary != found.summary
    few = diagnose_run(tmp_path / "run", log["valid"], num_batches=9, batch_size=40)
    assert few.warnings[0] == "part 'valid' has 1 batches, not 9"
    assert "one batch has no intervals" in few.warnings[1]


def test_a_part_without_negatives_is_refused(
    train: Callable[..., Any], log: Log, tmp_path: Path
) -> None:
    train(tmp_path / "run")
    run = tmp_path / "run" / "run.json"
    values = msgspec.json.decode(run.read_bytes())
    values["sampler"]["config"] |= {"quotas": {"exposed": 0}, "drawn": None}
    run.write_bytes(msgspec.json.encode(values))
    with pytest.raises(InputError, match="no negatives that the run's objective reads"):
        diagnose_run(tmp_path / "run", log["valid"], num_batches=1)


def test_samplers_are_rebuilt_as_recorded(
    train: Callable[..., Any], log: Log, tmp_path: Path
) -> None:
    train(tmp_path / "run")
    built = load_sampler(tmp_path / "run", log["valid"])
    assert built is not None
    assert built.describe()["quotas"] == {"rank": 2, "prerank": 4, "random": 2.0}


def test_learned_weights_count_as_last_logged(
    train: Callable[..., Any], log: Log, tmp_path: Path
) -> None:
    rule = get_rule("harmonised").Config(rate=1.0, momentum=0.0).build()
    train(tmp_path / "run", rule=rule)
    found = diagnose_run(tmp_path / "run", log["valid"], num_batches=2)
    metrics = tmp_path / "run" / "metrics.jsonl"
    every = read_metrics(metrics)
    best = max(line["step"] for line in every if line.get("is_best"))
    kept = [line for line in every if line["kind"] != "train"]
    lines = [line for line in every if line["kind"] == "train" and line["step"] <= best]
    assert found.warnings == ()
    metrics.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in kept))
    plain = diagnose_run(tmp_path / "run", log["valid"], num_batches=2)
    values = [f.summary.values for f in (found, plain)]
    logged = {name: [line[f"combine/weight/{name}"] for line in lines] for name in SOURCES}
    for name in SOURCES:
        ratio = values[0][f"per_sample/{name}"].mean / values[1][f"per_sample/{name}"].mean
        assert ratio == pytest.approx(logged[name][-1])
        assert ratio != pytest.approx(1.0, abs=1e-3)
    assert weights_of(rule) == rule.weights


def test_a_rule_that_is_not_seen_is_named(
    train: Callable[..., Any], log: Log, tmp_path: Path
) -> None:
    train(tmp_path / "run", rule=get_rule("pcgrad").Config().build())
    found = diagnose_run(tmp_path / "run", log["valid"], num_batches=2)
    assert found.warnings == (
        "the combine rule 'pcgrad' is not seen: shown are gradients before it",
    )
