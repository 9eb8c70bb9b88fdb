"""The file of scores: every row, by computation one request at a time; whole or absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from prerank.errors import InputError, PrerankError
from prerank.evaluation.scoring import score_part
from prerank.models import MLPPreranker


@pytest.mark.parametrize("batch_size", [5, 256])
def test_the_file_holds_the_models_logits(
    flat: Any, runs: Any, tmp_path: Path, batch_size: int
) -> None:
    part, seen = flat.log["test"], []
    out = tmp_path / "deep" / "scores.parquet"
    report = score_part(runs.mlp, part, out, batch_size=batch_size, progress=seen.append)
    assert [path.name for path in out.parent.iterdir()] == ["scores.parquet"]
    table = pq.read_table(out)
    assert table.column_names == ["request_id", "item", "logit.engaged", "position"]
    rows = flat.world.splits()["test"]
    num_candidates = int(flat.within("test").sum())
    assert report["requests"] == table.num_rows == sum(seen) == len(rows)
    assert report["candidates"] == num_candidates
    rate = report["candidates"] / report["seconds"]
    assert report["candidates_per_s"] == pytest.approx(rate)
    transforms = runs.mlp.transforms
    for line, row, columns in zip(table.to_pylist(), rows, part.columns(1), strict=True):
        mine = slice(flat.offsets[row], flat.offsets[row + 1])
        assert line["request_id"] == flat.table["request_id"][int(row)].as_py()
        assert line["item"] == flat["candidates.item"][mine].tolist()
        with torch.no_grad():
            logits = runs.mlp(transforms.batch(columns, flat.log).inputs).logits[:, 0]
        np.testing.assert_allclose(line["logit.engaged"], logits, rtol=1e-4, atol=1e-6)
        order = np.argsort(-np.array(line["logit.engaged"]), kind="stable")
        assert [line["position"][i] for i in order] == list(range(len(order)))


def test_two_tasks_and_equal_scores(two_tasks: Any, tmp_path: Path, train: Any) -> None:
    model = train("two_tower", two_tasks.log["train"])
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    score_part(model, two_tasks.log["test"], tmp_path / "a")
    table = pq.read_table(tmp_path / "a")
    assert table.column_names == ["request_id", "item", "logit.click", "logit.long", "position"]
    places = table["position"].to_pylist()
    assert all(sorted(p) == list(range(len(p))) for p in places)
    assert any(p != sorted(p) for p in places)  # ties do not follow the log
    score_part(model, two_tasks.log["test"], tmp_path / "b", batch_size=3)
    assert pq.read_table(tmp_path / "b").equals(table)


def test_the_log_may_declare_other_tasks(
    flat: Any, two_tasks: Any, runs: Any, tmp_path: Path
) -> None:
    """Scores need no truth, so the tasks are the model's."""
    score_part(runs.mlp, two_tasks.log["test"], tmp_path / "scores.parquet")
    table = pq.read_table(tmp_path / "scores.parquet")
    assert table.column_names == ["request_id", "item", "logit.engaged", "position"]


def test_names_of_requests_may_be_text(flat: Any, runs: Any, tmp_path: Path) -> None:
    from prerank.log import open_log, write_log

    names = [f"req-{k}" for k in range(flat.table.num_rows)]
    table = flat.table.set_column(0, "request_id", [names])
    write_log(tmp_path / "log", flat.world.schema, [table], flat.world.items())
    score_part(runs.mlp, open_log(tmp_path / "log").all(), tmp_path / "out")
    assert pq.read_table(tmp_path / "out")["request_id"].to_pylist() == names


def test_nothing_is_overwritten_and_nothing_half_written(
    flat: Any, runs: Any, tmp_path: Path
) -> None:
    part = flat.log["test"]
    out = tmp_path / "scores.parquet"
    out.write_text("mine")
    with pytest.raises(InputError, match="exists already; choose another name"):
        score_part(runs.mlp, part, out)
    assert out.read_text() == "mine"
    out.unlink()

    (tmp_path / "file").write_text("")
    with pytest.raises(PrerankError, match=r"cannot be written: (Not a directory|File exists)"):
        score_part(runs.mlp, part, tmp_path / "file" / "scores.parquet")
    (tmp_path / "file").unlink()

    def full(num_requests: int) -> None:
        assert next(tmp_path.iterdir()).name.endswith(".partial")
        raise OSError(28, "No space left on device")

    with pytest.raises(PrerankError, match=r"scores\.parquet: cannot be written: No space left"):
        score_part(runs.mlp, part, out, batch_size=10, progress=full)
    with pytest.raises(KeyboardInterrupt):
        score_part(runs.mlp, part, out, progress=_interrupt)
    assert not list(tmp_path.iterdir())


def _interrupt(num_requests: int) -> None:
    raise KeyboardInterrupt


def test_an_untrained_model_is_refused(flat: Any, tmp_path: Path) -> None:
    model = MLPPreranker.Config().build(flat.log.schema)
    with pytest.raises(InputError, match="MLPPreranker was not trained"):
        score_part(model, flat.log["test"], tmp_path / "scores.parquet")
    assert not list(tmp_path.iterdir())
