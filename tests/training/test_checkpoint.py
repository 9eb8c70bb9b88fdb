from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import nn

from prerank.errors import InputError, PrerankError
from prerank.training import checkpoint as module
from prerank.training.checkpoint import (
    load_checkpoint,
    load_latest,
    load_tensors,
    named_parameters,
    optimiser_tensors,
    prune_checkpoints,
    restore_optimiser,
    save_checkpoint,
    save_tensors,
)

TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.tensor(3.5, dtype=torch.float64),
    "c": torch.tensor([True, False]),
    "d": torch.zeros(0, 4, dtype=torch.int64),
}
STATE = {"epoch": 2, "best": {"step": 10, "value": 0.1 + 0.2}, "none": None, "list": [1, 2.5]}


def test_round_trip(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 10, TENSORS, STATE)
    found = load_checkpoint(tmp_path, 10)
    assert (found.step, found.state) == (10, STATE)
    assert found.tensors.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert found.tensors[name].dtype == value.dtype
        assert torch.equal(found.tensors[name], value)


def test_tied_and_overlapping_tensors_are_stored_in_full(tmp_path: Path) -> None:
    base = torch.arange(8.0)
    tied = {"a": base, "b": base, "c": base[2:4], "d": base.view(2, 4).t()}
    save_tensors(tied, tmp_path / "t.safetensors")
    found = load_tensors(tmp_path / "t.safetensors")
    assert all(torch.equal(found[name], value) for name, value in tied.items())


def _cuts(path: Path, every: bool) -> list[int]:
    size = path.stat().st_size
    return list(range(size)) if every else sorted(random.Random(0).sample(range(size), 60))


@pytest.mark.parametrize("name", ["step-00000020.json", "step-00000020.safetensors"])
def test_a_checkpoint_cut_at_any_byte_is_skipped(tmp_path: Path, name: str) -> None:
    save_checkpoint(tmp_path, 10, TENSORS, STATE)
    save_checkpoint(tmp_path, 20, TENSORS, STATE)
    path = tmp_path / name
    whole = path.read_bytes()
    for cut in _cuts(path, every=True):
        path.write_bytes(whole[:cut])
        found, skipped = load_latest(tmp_path)
        assert found is not None
        assert found.step == 10, cut
        assert len(skipped) == 1
        assert str(path) in skipped[0]
    path.write_bytes(whole)
    found, skipped = load_latest(tmp_path)
    assert found is not None
    assert (found.step, skipped) == (20, [])


@pytest.mark.parametrize("name", ["step-00000020.json", "step-00000020.safetensors"])
def test_a_changed_byte_never_goes_unnoticed(tmp_path: Path, name: str) -> None:
    save_checkpoint(tmp_path, 20, TENSORS, STATE)
    path = tmp_path / name
    whole = path.read_bytes()
    for at in _cuts(path, every=False):
        for bit in (1, 32):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
            try:
                found = load_checkpoint(tmp_path, 20)
            except InputError:
                continue
            # White space of the JSON may change; what it says may not.
            assert name.endswith("json")
            assert chr(whole[at]).isspace()
            assert found.state == STATE


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_missing_half_is_skipped(tmp_path: Path, suffix: str) -> None:
    save_checkpoint(tmp_path, 10, TENSORS, STATE)
    save_checkpoint(tmp_path, 20, TENSORS, STATE)
    (tmp_path / "step-00000020").with_suffix(suffix).unlink()
    found, skipped = load_latest(tmp_path)
    assert found is not None
    assert found.step == 10
    # Without its JSON, which is written last, it never was one.
    assert [line.rpartition(" ")[2] for line in skipped] == ["found"] * (suffix != ".json")


def test_tensors_of_another_step_do_not_pass(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 10, TENSORS, STATE)
    save_checkpoint(tmp_path, 20, {**TENSORS, "a": torch.ones(2, 3)}, STATE)
    (tmp_path / "step-00000010.safetensors").replace(tmp_path / "step-00000020.safetensors")
    with pytest.raises(InputError, match="cut or changed"):
        load_checkpoint(tmp_path, 20)
    (tmp_path / "step-00000010.json").replace(tmp_path / "step-00000030.json")
    with pytest.raises(InputError, match="SHA-256 differs"):
        load_checkpoint(tmp_path, 30)


def test_a_checkpoint_whose_best_is_damaged_is_skipped(tmp_path: Path) -> None:
    for step, best in ((10, 10), (20, 20), (30, 20)):
        save_checkpoint(tmp_path, step, TENSORS, {"best": {"step": best}})
    (tmp_path / "step-00000020.safetensors").write_bytes(b"")
    found, skipped = load_latest(tmp_path)
    assert found is not None
    assert (found.step, len(skipped)) == (10, 2)


def test_nothing_there(tmp_path: Path) -> None:
    assert load_latest(tmp_path / "absent") == (None, [])


def test_pruning_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    for step in range(0, 60, 10):
        save_checkpoint(tmp_path, step, TENSORS, {"best": {"step": min(step, 10)}})
    (tmp_path / ".step-00000099.safetensors.abc").write_bytes(b"left behind")
    prune_checkpoints(tmp_path, 50, keep=2)
    kept = sorted(p.name for p in tmp_path.iterdir())
    assert kept == [
        f"step-{step:08d}.{suffix}" for step in (10, 40, 50) for suffix in ("json", "safetensors")
    ]


def test_pruning_does_not_count_damaged_later_ones(tmp_path: Path) -> None:
    for step in (0, 5, 10, 80, 90):
        save_checkpoint(tmp_path, step, TENSORS, {})
    for step in (80, 90):
        (tmp_path / f"step-{step:08d}.json").write_text("{}")
    prune_checkpoints(tmp_path, 10, keep=2)
    found, skipped = load_latest(tmp_path)
    assert found is not None
    assert (found.step, len(skipped)) == (10, 2)
    assert load_checkpoint(tmp_path, 5).step == 5
    assert not (tmp_path / "step-00000000.json").exists()


def test_a_failed_write_leaves_the_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, 10, TENSORS, STATE)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(
        PrerankError, match=r"step-00000020\.safetensors: cannot be written: No space"
    ):
        save_checkpoint(tmp_path, 20, TENSORS, STATE)
    found, skipped = load_latest(tmp_path)
    assert found is not None
    assert (found.step, skipped) == (10, [])
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("fused", [False, True])
def test_an_optimiser_goes_on_as_if_never_stored(tmp_path: Path, fused: bool) -> None:
    def start() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)

    def step(model: nn.Module, optimiser: torch.optim.Optimizer, k: int) -> None:
        optimiser.zero_grad()
        model(torch.full((4, 3), float(k))).pow(2).sum().backward()
        optimiser.step()

    model, optimiser = start()
    for k in range(3):
        step(model, optimiser, k)
    stored = optimiser_tensors(optimiser, named_parameters(model))
    save_tensors(stored, tmp_path / "o.safetensors")
    again, fresh = start()
    again.load_state_dict(model.state_dict())
    restore_optimiser(fresh, named_parameters(again), load_tensors(tmp_path / "o.safetensors"))
    for k in range(3, 6):
        step(model, optimiser, k)
        step(again, fresh, k)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
