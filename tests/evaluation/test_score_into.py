"""Scores stored in a log: every task, only the rows asked for, the log whole whatever happens."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prerank.errors import InputError
from prerank.evaluation.scoring import score_into
from prerank.log import check_log, open_log


@pytest.fixture
def path(flat: Any, tmp_path: Path) -> Path:
    """A copy of the log, to be changed."""
    return Path(shutil.copytree(flat.log.path, tmp_path / "log"))


def _one_by_one(model: Any, log: Any, part: str) -> np.ndarray:
    """The logits ``[I, T]`` of a part, one request at a time."""
    with torch.no_grad():
        batches = [model.transforms.batch(c, log) for c in log[part].columns(1)]
        return np.concatenate([model(b.inputs).logits.numpy() for b in batches])


@pytest.mark.parametrize("batch_size", [7, 256])
def test_only_the_part_is_scored(flat: Any, runs: Any, path: Path, batch_size: int) -> None:
    seen: list[int] = []
    report = score_into(
        runs.mlp, path, "t", part="test", batch_size=batch_size, progress=seen.append
    )
    log = open_log(path)
    assert sum(seen) == log.num_requests
    assert report["requests"] == log["test"].num_requests
    assert report["candidates"] == int(flat.within("test").sum())
    expected = _one_by_one(runs.mlp, flat.log, "test")[:, 0]
    pieces = {
        name: np.concatenate([c.candidates.values["score.t"] for c in log[name].columns(64)])
        for name in log.parts
    }
    np.testing.assert_allclose(pieces["test"], expected, atol=1e-5)
    assert all(np.isnan(v).all() for name, v in pieces.items() if name != "test")
    assert check_log(log).ok


def test_a_model_of_several_tasks_has_a_score_for_each(
    flat: Any, runs: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prerank.evaluation import scoring

    class Twice(scoring.ModelScorer):
        def __call__(self, *args: Any) -> Any:
            logits = super().__call__(*args)
            return np.concatenate([logits, -2 * logits], axis=1)

    monkeypatch.setattr(scoring, "ModelScorer", Twice)
    names = property(lambda self: ("click", "long"))
    monkeypatch.setattr(type(runs.mlp.schema), "task_names", names)
    report = score_into(runs.mlp, path, "t")
    assert report["scores"] == ["t.click", "t.long"]
    monkeypatch.undo()
    log = open_log(path)
    assert log.schema.scores[-2:] == ("t.click", "t.long")
    for columns in log.all().columns(64):
        values = columns.candidates.values
        np.testing.assert_array_equal(-2 * values["score.t.click"], values["score.t.long"])


def test_a_score_that_is_not_finite_leaves_the_log(runs: Any, path: Path) -> None:
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    with torch.no_grad():
        last = list(runs.mlp.parameters())[-1]
        kept = last.clone()
        last.fill_(float("nan"))
    try:
        with pytest.raises(InputError, match="not finite"):
            score_into(runs.mlp, path, "t")
    finally:
        with torch.no_grad():
            last.copy_(kept)
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before
