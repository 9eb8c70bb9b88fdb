"""Real kills: SIGKILL in mid-epoch, a full disk. What is left is readable and goes on exactly."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from prerank.errors import PrerankError
from prerank.training import FitConfig
from prerank.training.checkpoint import load_latest
from prerank.training.metrics_log import read_metrics

VALUES = {"width": 4, "tables": {"dim": 4}, "tower": {"hidden": [8], "dropout": 0.2}}
CONFIG = FitConfig(
    epochs=3,
    batch_size=16,
    lr=0.1,
    table_lr=0.5,
    table_optimizer="lazy_adam",
    schedule="cosine",
    clip_norm=1.0,
    checkpoint_every=4,
    eval_every=10,
    log_every=3,
    eval_metric="loss",
)
TOTAL = 3 * 14  # 210 requests, 14 batches an epoch


@pytest.mark.slow
def test_killed_three_times_in_mid_epoch_and_resumed(
    worker: Any, start: Callable[..., Any], planted: Any, tmp_path: Path
) -> None:
    """SIGKILL comes at a random moment of a random update; the weights end up the same bits."""
    spec = worker.Spec(log=str(planted.log.path), model="two_tower", values=VALUES, config=CONFIG)
    spec.out = str(tmp_path / "straight")
    straight = start(spec, name="straight")
    assert straight.wait(60) == 0, straight.stderr.read()
    draw = random.Random(time.time_ns())
    spec.out = str(tmp_path / "run")
    kills = []
    for _ in range(3):
        process = start(spec, name="killed")
        at = draw.randint(2, 10)
        lines = [process.stdout.readline() for _ in range(at)]
        assert lines[-1] == f"{at}\n", process.stderr.read()
        time.sleep(draw.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        found, _ = load_latest(tmp_path / "run" / "checkpoints")
        kills.append((at, None if found is None else found.step))
    last = start(spec, name="again")
    assert last.wait(60) == 0, (kills, last.stderr.read())
    ends = [load_file(tmp_path / f"{name}.0") for name in ("again", "straight")]
    for name, weight in ends[1].items():
        assert torch.equal(weight, ends[0][name]), (name, kills)
    reports = [
        msgspec.json.decode((tmp_path / f"{name}.0.json").read_bytes())
        for name in ("again", "straight")
    ]
    assert reports[0]["resumed_from"] == kills[-1][1], kills
    for key in ("steps", "samples", "best", "stopped"):
        assert reports[0][key] == reports[1][key], key
    metrics = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("run", "straight")]
    assert metrics[0] == metrics[1]
    assert reports[0]["steps"] == TOTAL


def _fit(worker: Any, planted: Any, out: Path | None, **change: Any) -> Any:
    config = msgspec.structs.replace(CONFIG, **change)
    spec = worker.Spec(log=str(planted.log.path), model="two_tower", values=VALUES, config=config)
    spec.out = None if out is None else str(out)
    return worker.train(spec, 0)


def test_the_same_seed_twice_is_the_same_bits(worker: Any, planted: Any) -> None:
    first, second = (_fit(worker, planted, None, epochs=1) for _ in range(2))
    other, _ = _fit(worker, planted, None, epochs=1, seed=1)
    weights = first[0].state_dict()
    assert all(torch.equal(weights[k], v) for k, v in second[0].state_dict().items())
    assert first[1].best == second[1].best
    assert not torch.equal(other.encode.tables.weight, weights["encode.tables.weight"]), (
        "negative control"
    )


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("depth", [0, 1, 5])
def test_neither_prefetch_nor_ranks_change_the_order(
    worker: Any, planted: Any, world_size: int, depth: int
) -> None:
    """Request rows of every batch, put together from the shares, in one order of the epoch."""
    transforms = _fit(worker, planted, None, max_steps=1)[0].transforms
    part = planted.log["train"]

    def rows(**options: Any) -> list[list[int]]:
        made = part.batches(transforms, 16, seed=3, epoch=2, shuffle=True, start=5, **options)
        return [batch.evidence.row.tolist() for batch in made]

    batches = rows(prefetch=2)
    order = [row for batch in batches for row in batch]
    assert sorted(order) != order, "it is shuffled"
    shares = [rows(prefetch=depth, rank=k, world_size=world_size) for k in range(world_size)]
    for number, batch in enumerate(batches):
        for k in range(world_size):
            assert shares[k][number] == batch[k::world_size]


@pytest.fixture(scope="module")
def whole(worker: Any, planted: Any) -> dict[str, torch.Tensor]:
    """Weights of a run that nothing disturbed."""
    weights: dict[str, torch.Tensor] = _fit(worker, planted, None)[0].state_dict()
    return weights


def _assert_goes_on(worker: Any, planted: Any, out: Path, whole: dict[str, torch.Tensor]) -> int:
    """The newest checkpoint is whole, nothing half-written is left, resuming ends the same."""
    found, skipped = load_latest(out / "checkpoints")
    assert skipped == []
    assert [p.name for p in out.rglob(".*")] == []
    resumed, report = _fit(worker, planted, out)
    assert report.resumed_from == (None if found is None else found.step)
    for name, weight in resumed.state_dict().items():
        assert torch.equal(weight, whole[name]), name
    return report.resumed_from or 0


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5, 6, 9, 13])
def test_no_space_at_any_write_leaves_the_last_checkpoint(
    worker: Any, planted: Any, whole: dict[str, torch.Tensor], tmp_path: Path, at: int
) -> None:
    """Each durable write of a run in turn finds the disk full when it is forced out."""
    out, count = tmp_path / "run", 0

    def full(_: int) -> None:
        nonlocal count
        count += 1
        if count >= at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(PrerankError, match="cannot be written: No space left") as caught:
            _fit(worker, planted, out)
    assert "\n" not in str(caught.value)
    _assert_goes_on(worker, planted, out, whole)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of 256 KiB; skipped where mounting is not permitted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if done.returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_last_checkpoint(
    worker: Any, planted: Any, whole: dict[str, torch.Tensor], small_disk: Path
) -> None:
    """Something else fills the disk in the middle of training; with space again it goes on."""
    filler, out = small_disk / "filler", small_disk / "run"

    def fill(count: int) -> None:
        if count == 14:
            free = os.statvfs(small_disk)
            filler.write_bytes(bytes(free.f_bavail * free.f_frsize))

    spec = worker.Spec(log=str(planted.log.path), model="two_tower", values=VALUES, config=CONFIG)
    spec.out = str(out)
    with pytest.raises(PrerankError, match=r"cannot be written: .*No space") as caught:
        worker.train(spec, 0, fill)
    assert "\n" not in str(caught.value)
    filler.unlink()
    assert _assert_goes_on(worker, planted, out, whole) >= 10


def test_a_disk_too_small_to_begin_is_one_line(worker: Any, planted: Any, small_disk: Path) -> None:
    free = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize))
    with pytest.raises(PrerankError, match="No space left") as caught:
        _fit(worker, planted, small_disk / "run")
    assert "\n" not in str(caught.value)
