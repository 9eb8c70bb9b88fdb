"""Damaged logs: detected in one line that names the file, or provably harmless."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prerank.errors import InputError, PrerankError
from prerank.log import CheckReport, Log, Transforms, check_log, open_log


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for key in sorted(value):
            yield from _tensors(value[key])
    elif isinstance(value, tuple):
        for item in value:
            yield from _tensors(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name))


def _everything(path: Path) -> list[torch.Tensor]:
    """Every tensor of every batch of every part, with transforms fitted on the way."""
    log = open_log(path)
    transforms = Transforms.fit(log["train"], min_count=1)
    return [
        tensor
        for name in ("train", "valid", "test")
        for batch in log[name].batches(transforms, 7, prefetch=0)
        for tensor in _tensors(batch)
    ]


def _equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(
        x.dtype == y.dtype
        and x.shape == y.shape
        and torch.equal(x.double().nan_to_num(-77.0), y.double().nan_to_num(-77.0))
        for x, y in zip(a, b, strict=True)
    )


def _outcome(path: Path, good: list[torch.Tensor]) -> tuple[str, CheckReport]:
    """How a damaged log reads, and what the check says; any other error is a failure."""
    try:
        return "same" if _equal(_everything(path), good) else "different", check_log(path)
    except PrerankError as caught:
        message = str(caught)
    assert "\n" not in message
    assert str(path) in message
    return "detected", check_log(path)


def _files(path: Path) -> list[Path]:
    return sorted(p.relative_to(path) for p in path.rglob("*") if p.is_file())


def test_an_undamaged_copy_reads_the_same(rich_log: Log, copy_of: Callable[[Log], Path]) -> None:
    good = _everything(rich_log.path)
    assert len(good) > 100
    outcome, report = _outcome(copy_of(rich_log), good)
    assert (outcome, report.ok) == ("same", True)


def _flip_bytes(rich_log: Log, path: Path, seed: int, number: int) -> dict[str, int]:
    """Flip one byte at a time, half of them near the end, where Parquet keeps its metadata."""
    good, rng = _everything(rich_log.path), random.Random(seed)
    files, seen = _files(path), dict.fromkeys(("detected", "same", "different"), 0)
    for k in range(number):
        file = path / files[k % len(files)]
        whole = file.read_bytes()
        data = bytearray(whole)
        near_end = min(len(data), 3000) if rng.random() < 0.5 else len(data)
        at = len(data) - 1 - rng.randrange(near_end)
        data[at] ^= rng.randrange(1, 256)
        file.write_bytes(bytes(data))
        outcome, report = _outcome(path, good)
        seen[outcome] += 1
        if outcome != "same":
            assert not report.ok, f"byte {at} of {files[k % len(files)]} went unnoticed"
        file.write_bytes(whole)
    return seen


def test_flipped_bytes_are_detected_or_harmless(
    rich_log: Log, copy_of: Callable[[Log], Path]
) -> None:
    seen = _flip_bytes(rich_log, copy_of(rich_log), seed=1, number=60)
    assert seen["detected"] > 40


@pytest.mark.slow
def test_many_flipped_bytes_are_detected_or_harmless(
    rich_log: Log, copy_of: Callable[[Log], Path]
) -> None:
    seen = _flip_bytes(rich_log, copy_of(rich_log), seed=2, number=600)
    assert seen["detected"] > 400
    assert seen["same"] > 20  # a column that is not read, a name that nothing depends on


def test_truncated_files_are_detected(rich_log: Log, copy_of: Callable[[Log], Path]) -> None:
    path = copy_of(rich_log)
    for name in _files(path):
        file = path / name
        whole = file.read_bytes()
        for share in (0.0, 0.3, 0.9, 1.0):
            file.write_bytes(whole[: min(int(len(whole) * share), len(whole) - 1)])
            with pytest.raises(InputError, match=name.name):
                open_log(path)
            report = check_log(path, deep=False)
            assert not report.ok
            assert str(name) in {f.where for f in report.findings}
        file.write_bytes(whole)
    assert check_log(path).ok


@pytest.mark.parametrize("cut", [0, 3, 4, 5, 100, -9, -8, -5, -4, -1])
def test_a_part_truncated_behind_the_manifests_back_is_detected(
    rich_log: Log, copy_of: Callable[[Log], Path], adopt: Callable[[Path], None], cut: int
) -> None:
    path = copy_of(rich_log)
    part = path / "requests" / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:cut])
    adopt(path)
    with pytest.raises(InputError, match=r"part-00001.parquet: cannot be opened .* damaged"):
        _everything(path)
    report = check_log(path)
    assert [f.where for f in report.findings if f.level == "error"] == [
        "requests/part-00001.parquet"
    ]
    assert report.counts["row_groups_unreadable"] == 3  # the others were read


def test_missing_files_are_named(rich_log: Log, copy_of: Callable[[Log], Path]) -> None:
    path = copy_of(rich_log)
    for name in _files(path):
        file = path / name
        whole = file.read_bytes()
        file.unlink()
        report = check_log(path)
        if name.name == "splits.json":
            assert open_log(path).parts == ()
            assert [f.level for f in report.findings] == ["warning"]
        else:
            with pytest.raises(InputError, match=name.name):
                open_log(path)
            assert not report.ok
        assert str(name) in {f.where for f in report.findings}
        file.write_bytes(whole)


def test_requests_without_candidates_are_fine(
    make_log: Callable[..., Log], rich_rows: list[dict[str, Any]]
) -> None:
    def empty(row: dict[str, Any]) -> dict[str, Any]:
        lists = {k: [] for k in row if k.startswith(("candidates.", "labels."))}
        return row | lists

    rows = [empty(row) if k % 3 else row for k, row in enumerate(rich_rows)]
    log = make_log(rows)
    assert check_log(log).ok
    assert check_log(log).counts["requests_without_candidates"] >= 20
    transforms = Transforms.fit(log.all())
    batches = list(log.all().batches(transforms, 2, prefetch=0))
    assert sum(b.num_requests for b in batches) == 30
    assert 0 in {b.num_candidates for b in batches}
    for batch in batches:
        assert int(batch.inputs.offsets[-1]) == batch.num_candidates
        assert batch.evidence.targets.shape == (batch.num_candidates, 2)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"num_requests": 30', '"num_requests": 31', "its files hold 30 requests, expected 31"),
        ('"num_requests": 30', '"num_requests": -1', "Expected `int` >= 0"),
        ('"rows": 12', '"rows": 10', "its files hold 26 requests, expected 30"),
        ('"rows"', '"rwos"', "Object contains unknown field `rwos`"),
        ('"files"', '"fails"', "missing required field `files`"),
        ('"bytes"', r'"by\ntes"', "Object contains unknown field `by tes`"),
        ('"log_id": "', '"log_id": ', "JSON is malformed"),
        ("items.parquet", "items.parqet", "items.parqet: not found"),
        ('"row_group": 4', '"row_group": 5', "expected"),
        ('"num_candidates": ', '"num_candidates": 1', None),
    ],
)
def test_a_wrong_manifest_is_noticed(
    rich_log: Log, copy_of: Callable[[Log], Path], old: str, new: str, says: str | None
) -> None:
    path = copy_of(rich_log)
    manifest = path / "manifest.json"
    text = manifest.read_text()
    assert old in text
    manifest.write_text(text.replace(old, new))
    if says is not None:
        with pytest.raises(InputError, match=says) as error:
            _everything(path)
        assert "\n" not in str(error.value)
    assert not check_log(path).ok


def test_a_schema_that_was_edited_is_read_but_reported(
    rich_log: Log, copy_of: Callable[[Log], Path]
) -> None:
    """What counts as engaged may be edited on purpose; the check still says so."""
    path = copy_of(rich_log)
    schema = path / "schema.json"
    schema.write_text(schema.read_text().replace("click or watch >= 10", "click"))
    assert open_log(path).schema.engaged == "click"
    (finding,) = [f for f in check_log(path).findings if f.level == "error"]
    assert finding.where == "schema.json"
    assert finding.message.startswith("its SHA-256 is not the one of the manifest")
    schema.write_text(schema.read_text().replace('"engaged": "click"', '"engaged": "clock"'))
    with pytest.raises(InputError, match=r"schema\.json: .* label 'clock', which is not declared"):
        open_log(path)
    assert "schema.json" in {f.where for f in check_log(path).findings}


def test_swapped_parts_are_noticed(
    rich_log: Log, copy_of: Callable[[Log], Path], adopt: Callable[[Path], None]
) -> None:
    path = copy_of(rich_log)
    a, b = (path / "requests" / f"part-0000{k}.parquet" for k in (0, 1))
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
    report = check_log(path)
    assert not report.ok
    assert {f.where for f in report.findings if f.level == "error"} >= {
        "requests/part-00000.parquet",
        "requests/part-00001.parquet",
    }
    adopt(path)  # even where sizes and fingerprints agree, time goes back
    messages = [f.message for f in check_log(path).findings if f.level == "error"]
    assert any("time goes back at request row 12" in message for message in messages)


def test_a_folder_that_holds_no_log_gives_a_report(tmp_path: Path) -> None:
    report = check_log(tmp_path)
    assert not report.ok
    assert {f.where for f in report.findings} == {"manifest.json", "schema.json"}
    (tmp_path / "manifest.json").mkdir()
    assert not check_log(tmp_path).ok
    for missing in (tmp_path / "nothing", tmp_path / "manifest.json" / "x"):
        with pytest.raises(InputError, match="no such log"):
            check_log(missing)
    assert np.isfinite(list(report.counts.values())).all()
