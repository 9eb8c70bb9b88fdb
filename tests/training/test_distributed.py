"""Several processes on shares of a batch make the update of one process on the whole batch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from prerank.training import FitConfig, distributed, load_run

VALUES = {
    "two_tower": {"width": 4, "tables": {"dim": 4}, "tower": {"hidden": [8]}},
    "mlp": {"width": 4, "tables": {"dim": 4}, "tower": {"hidden": [8]}, "head": {"hidden": [8]}},
}
# 210 requests: 20 batches, of which the last one is a single request.
CONFIG = FitConfig(
    batch_size=11,
    lr=0.05,
    table_lr=0.3,
    clip_norm=0.5,
    schedule="cosine",
    eval_every=7,
    plateau_patience=1,
    checkpoint_every=3,
    eval_metric="loss",
    log_every=4,
)


@pytest.fixture
def together(
    worker: Any, start: Callable[..., Any], ragged: Any, tmp_path: Path
) -> Callable[..., Any]:
    """Run processes to their ends; return exit statuses, stderrs and the spec."""

    def run(size: int, name: str = "spec", model: str = "two_tower", **options: Any) -> Any:
        options = {"config": CONFIG, "dtype": "float64", **options}
        store = tmp_path / f"{name}.store"
        spec = worker.Spec(
            log=str(ragged.log.path),
            model=model,
            values=VALUES[model],
            size=size,
            store=str(store),
            **options,
        )
        processes = [start(spec, rank, name) for rank in range(size)]
        errors = [process.communicate(timeout=60)[1] for process in processes]
        return [process.returncode for process in processes], errors, spec

    return run


def _weights(tmp_path: Path, rank: int, name: str = "spec") -> dict[str, torch.Tensor]:
    return load_file(tmp_path / f"{name}.{rank}")


def _report(tmp_path: Path, rank: int, name: str = "spec") -> dict[str, Any]:
    report: dict[str, Any] = msgspec.json.decode((tmp_path / f"{name}.{rank}.json").read_bytes())
    return report


@pytest.mark.parametrize(
    ("size", "model", "change"),
    [
        (2, "two_tower", {"diagnose_every": 7}),  # by one process alone: the others must not wait
        pytest.param(
            3,
            "mlp",
            {"table_optimizer": "lazy_adam", "table_lr": 0.01, "clip_norm": None},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_equals_one_process_on_whole_batches(
    together: Callable[..., Any],
    worker: Any,
    tmp_path: Path,
    size: int,
    model: str,
    change: dict[str, Any],
) -> None:
    config = msgspec.structs.replace(CONFIG, **change)
    statuses, errors, spec = together(size, model=model, config=config, out=str(tmp_path / "run"))
    assert statuses == [0] * size, errors
    spec.out = None
    alone, report = worker.train(spec, 0)
    assert report.steps == 20
    for rank in range(size):
        found = _weights(tmp_path, rank)
        for name, weight in alone.state_dict().items():
            torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-12, msg=name)
        said = _report(tmp_path, rank)
        assert (said["steps"], said["samples"]) == (report.steps, report.samples)
        assert said["best"]["step"] == report.best.step
        for name, value in report.best.metrics.items():
            assert said["best"]["metrics"][name] == pytest.approx(value, abs=1e-12)
    same = [_weights(tmp_path, rank) for rank in range(size)]
    for other in same[1:]:
        assert all(torch.equal(same[0][name], other[name]) for name in other)


@pytest.mark.slow
def test_dividing_by_the_share_alone_is_something_else(
    together: Callable[..., Any], worker: Any, tmp_path: Path
) -> None:
    """Negative control: shares are uneven, so a mean of means is another loss."""
    statuses, errors, spec = together(2, local_normaliser=True)
    assert statuses == [0, 0], errors
    alone, _ = worker.train(spec, 0)
    found = _weights(tmp_path, 0)["encode.tables.weight"]
    assert float((found - alone.encode.tables.weight.detach()).abs().max()) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("what", ["kill", "raise"])
def test_one_process_fails_and_all_go_on_later(
    together: Callable[..., Any], tmp_path: Path, what: str
) -> None:
    out = str(tmp_path / "run")
    statuses, errors, _ = together(2, out=out, accident=(1, 9, what))
    assert statuses == [1, -9 if what == "kill" else 1]
    assert "another process has failed or does not answer" in errors[0]
    assert errors[0].count("\n") == 1
    statuses, errors, _ = together(2, "again", out=out)
    assert statuses == [0, 0], errors
    assert _report(tmp_path, 1, "again")["resumed_from"] == 7
    if what == "raise":
        return
    statuses, errors, _ = together(2, "straight", out=str(tmp_path / "straight"))
    assert statuses == [0, 0], errors
    straight, again = (_weights(tmp_path, 0, name) for name in ("straight", "again"))
    assert all(torch.equal(straight[name], again[name]) for name in straight)


@pytest.mark.slow
def test_a_failure_of_the_first_process_is_told_to_all(
    together: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").touch()
    statuses, errors, _ = together(2, out=str(tmp_path / "run"))
    assert statuses == [2, 1]
    assert "exists and is no run folder" in errors[0]
    assert "process 0 failed (InputError: " in errors[1]


def test_ctrl_c_in_one_process_stops_all_after_the_update(
    together: Callable[..., Any], tmp_path: Path
) -> None:
    statuses, errors, _ = together(2, out=str(tmp_path / "run"), accident=(1, 5, "interrupt"))
    assert statuses == [130, 130]
    assert all("interrupted at step 5; the same call goes on from step 5" in e for e in errors)
    assert (tmp_path / "run" / "checkpoints" / "step-00000005.json").exists()


@pytest.mark.slow
def test_torchrun_of_the_command_line(ragged: Any, tmp_path: Path) -> None:
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    train = ["-m", "--", "prerank", "train", "two_tower", "--log", str(ragged.log.path), "--json"]
    options = ["--out", str(tmp_path / "run"), "--set", "fit.epochs=1"]
    done = subprocess.run(
        [*launch, *train, *options], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert msgspec.json.decode(done.stdout)["run"] == str(tmp_path / "run")
    assert load_run(tmp_path / "run").transforms is not None


def test_alone_nothing_is_exchanged() -> None:
    value = torch.ones(2)
    assert (distributed.rank(), distributed.size()) == (0, 1)
    assert distributed.average(value) is value
    assert distributed.gather(3) == [3]
    assert distributed.from_first(lambda: 4) == 4
    assert distributed.any_of(True)
    assert distributed.average_gradients([], 5) == 5
    distributed.same_tensors([value])
    assert distributed.tensors_from_first({"a": value})["a"] is value
