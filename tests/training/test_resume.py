"""A run that is stopped and goes on equals one that never stopped, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from prerank.config import to_values
from prerank.errors import InputError
from prerank.training import FitConfig, InterruptedRunError, fit
from prerank.training.checkpoint import load_checkpoint
from prerank.training.metrics_log import read_metrics

CONFIG = FitConfig(
    epochs=3,
    batch_size=32,
    lr=0.1,
    table_lr=0.5,
    schedule="cosine",
    warmup_steps=3,
    clip_norm=1.0,
    plateau_patience=1,
    checkpoint_every=3,
    eval_every=2,
    log_every=2,
    eval_metric="loss",
)
TOTAL = 21  # 210 requests, 7 batches an epoch


class _Stop(Exception):  # noqa: N818
    pass


class _Fails:
    """An objective that calls something after a number of updates."""

    def __init__(self, bce: Any, after: int, what: Callable[[], None]) -> None:
        self.config, self.bce, self.left, self.what = bce.config, bce, after, what

    def __call__(self, scores: Any, batch: Any) -> Any:
        if torch.is_grad_enabled():
            self.left -= 1
            if self.left < 0:
                self.what()
        return self.bce(scores, batch)


def _raise() -> None:
    raise _Stop


@pytest.fixture(scope="module")
def train(planted: Any, new_model: Callable[..., Any], bce: Any) -> Callable[..., Any]:
    def run(out: Path, after: int = 10**9, what: Callable[[], None] = _raise, **change: Any) -> Any:
        model = new_model(storage=change.pop("storage", "fp32"))
        config = msgspec.structs.replace(CONFIG, **change)
        report = fit(
            model,
            planted.log["train"],
            _Fails(bce, after, what),
            valid=planted.log["valid"],
            config=config,
            out=out,
            progress=False,
        )
        return model, report

    return run


def _assert_same(a: Any, b: Any) -> None:
    (model_a, report_a), (model_b, report_b) = a, b
    for (name, x), (_, y) in zip(
        model_a.state_dict().items(), model_b.state_dict().items(), strict=True
    ):
        assert torch.equal(x, y), name
    assert report_a.best == report_b.best
    assert (report_a.steps, report_a.samples) == (report_b.steps, report_b.samples)


@pytest.fixture(scope="module")
def straight_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume") / "straight"


@pytest.fixture(scope="module")
def straight(train: Callable[..., Any], straight_out: Path) -> Any:
    """Train without a stop, once for all tests."""
    return train(straight_out)


@pytest.mark.parametrize("stops", [[0], [1], [4], [7], [8], [20], [2, 9, 3]])
def test_stopped_anywhere_and_resumed(
    train: Callable[..., Any], straight: Any, straight_out: Path, tmp_path: Path, stops: list[int]
) -> None:
    out = tmp_path / "run"
    for after in stops:
        with pytest.raises(_Stop):
            train(out, after)
    resumed = train(out)
    _assert_same(straight, resumed)
    assert resumed[1].resumed_from is not None or stops == [0]
    assert resumed[1].skipped == ()
    files = (straight_out / "metrics.jsonl", out / "metrics.jsonl")
    whole, again = (read_metrics(file) for file in files)
    assert again == whole
    steps = [(x["step"], x["kind"]) for x in again]
    assert len(set(steps)) == len(steps)


@pytest.mark.parametrize(
    "change",
    [
        {"table_optimizer": "adagrad"},
        {"table_optimizer": "lazy_adam", "table_lr": 0.01},
        {"table_optimizer": "lazy_adam", "table_lr": 0.01, "storage": "bf16"},
        {"storage": "bf16"},
    ],
)
def test_state_of_every_table_optimiser_is_kept(
    train: Callable[..., Any], tmp_path: Path, change: dict[str, Any]
) -> None:
    whole = train(tmp_path / "whole", **change)
    with pytest.raises(_Stop):
        train(tmp_path / "run", 10, **change)
    _assert_same(whole, train(tmp_path / "run", **change))


def test_the_state_to_restore_was_not_trivial(straight: Any, straight_out: Path) -> None:
    last = load_checkpoint(straight_out / "checkpoints", TOTAL)
    assert last.state["plateau"]["scale"] < 1
    assert last.state["waited"] > 0
    assert straight[1].best.step < TOTAL


def test_dropout_and_history_made_it_hard(
    train: Callable[..., Any], straight: Any, tmp_path: Path
) -> None:
    """Negative control: another seed, hence other dropout and order, ends elsewhere."""
    other, _ = train(tmp_path / "other", seed=1)
    assert not torch.equal(other.encode.tables.weight, straight[0].encode.tables.weight)


def test_a_damaged_last_checkpoint_costs_time_only(
    train: Callable[..., Any], straight: Any, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(_Stop):
        train(out, 13)
    last = max((out / "checkpoints").glob("*.safetensors"))
    last.write_bytes(last.read_bytes()[:-7])
    with (out / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 1')
    resumed = train(out)
    _assert_same(straight, resumed)
    assert resumed[1].resumed_from == 10
    assert len(resumed[1].skipped) == 1
    assert last.name in resumed[1].skipped[0]


def test_all_checkpoints_damaged_starts_over(
    train: Callable[..., Any], straight: Any, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(_Stop):
        train(out, 13)
    for path in (out / "checkpoints").glob("*.json"):
        path.write_text("{}")
    resumed = train(out)
    _assert_same(straight, resumed)
    assert resumed[1].resumed_from is None
    assert len(resumed[1].skipped) >= 2


def test_ctrl_c_ends_the_update_and_stores_it(
    train: Callable[..., Any], straight: Any, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(InterruptedRunError, match="interrupted at step 5; the same call goes on"):
        train(out, 4, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert signal.getsignal(signal.SIGINT) is handler
    assert (out / "checkpoints" / "step-00000005.json").exists()
    resumed = train(out)
    assert resumed[1].resumed_from == 5
    _assert_same(straight, resumed)


def test_ctrl_c_twice_falls_back_to_the_last_checkpoint(
    train: Callable[..., Any], straight: Any, tmp_path: Path
) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    out = tmp_path / "run"
    with pytest.raises(InterruptedRunError, match="goes on from step 4") as caught:
        train(out, 4, twice)
    assert caught.value.exit_code == 130
    assert "\n" not in str(caught.value)
    _assert_same(straight, train(out))


def test_ctrl_c_without_a_folder_says_so(
    planted: Any, new_model: Callable[..., Any], bce: Any
) -> None:
    objective = _Fails(bce, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(InterruptedRunError, match="step 3; nothing was stored"):
        fit(new_model(), planted.log["train"], objective, config=CONFIG_ALONE, progress=False)


CONFIG_ALONE = FitConfig(batch_size=32)

_KILLED = """
import os, sys, msgspec, torch
from prerank.config import from_values
from prerank.log import open_log
from prerank.models import get
from prerank.objectives import get as get_objective
from prerank.training import FitConfig, fit

path, out, values, config = sys.argv[1:]
torch.set_num_threads(1)
log = open_log(path)
kind = get("two_tower")
model = from_values(kind.Config, msgspec.json.decode(values), where="test").build(log.schema)
bce = get_objective("bce").Config().build(log.schema)

class Dies:
    config = bce.config
    left = 11
    def __call__(self, scores, batch):
        self.left -= torch.is_grad_enabled()
        if self.left < 0:
            os._exit(9)
        return bce(scores, batch)
Dies.__module__, Dies.__qualname__ = "test_resume", "_Fails"

torch.manual_seed(0)
model = from_values(kind.Config, msgspec.json.decode(values), where="test").build(log.schema)
config = msgspec.json.decode(config, type=FitConfig)
fit(model, log["train"], Dies(), valid=log["valid"], config=config, out=out, progress=False)
"""


def test_a_killed_process_is_resumed_by_another(
    planted: Any, train: Callable[..., Any], straight: Any, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    values = msgspec.json.encode(to_values(straight[0].config)).decode()
    config = msgspec.json.encode(CONFIG).decode()
    command = [sys.executable, "-c", _KILLED, str(planted.log.path), str(out), values, config]
    assert subprocess.run(command, check=False).returncode == 9
    text = (out / "run.json").read_text()
    (out / "run.json").write_text(text.replace("test_resume:_Fails", _Fails.__module__ + ":_Fails"))
    resumed = train(out)
    assert resumed[1].resumed_from == 10
    _assert_same(straight, resumed)


def test_a_complete_run_returns_at_once(
    train: Callable[..., Any], straight: Any, straight_out: Path
) -> None:
    before = (straight_out / "run.json").read_bytes()
    again = train(straight_out, 0)  # any update would raise
    _assert_same(straight, again)
    assert again[1].resumed_from == TOTAL
    assert again[1].run == str(straight_out)
    assert not again[0].training
    assert (straight_out / "run.json").read_bytes() == before


def test_another_configuration_is_refused(
    train: Callable[..., Any], straight: Any, straight_out: Path
) -> None:
    with pytest.raises(InputError, match=r"fit\.lr was 0\.1, is 0\.5\); choose") as caught:
        train(straight_out, lr=0.5)
    assert "\n" not in str(caught.value)


def test_what_cannot_change_the_result_may_differ(
    train: Callable[..., Any], straight: Any, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(_Stop):
        train(out, 13)
    resumed = train(out, checkpoint_every=1, keep_checkpoints=5, threads=1)
    _assert_same(straight, resumed)


def test_another_part_is_refused(
    planted: Any, new_model: Callable[..., Any], bce: Any, tmp_path: Path
) -> None:
    config = FitConfig(max_steps=1)
    fit(new_model(), planted.log["train"], bce, config=config, out=tmp_path / "r", progress=False)
    with pytest.raises(InputError, match=r"parts\.train\.part was train, is valid"):
        fit(
            new_model(),
            planted.log["valid"],
            bce,
            config=config,
            out=tmp_path / "r",
            progress=False,
        )
