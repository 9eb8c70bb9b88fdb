from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from prerank.evaluation.runs import TierFile, save_cascade

Cli = Callable[..., Any]


def test_the_file_holds_every_candidate_once(
    cli: Cli, runs: dict[str, Path], world_log: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "scores.parquet"
    found = cli("score", runs["mlp"], "--log", world_log, "--out", out, "--json").json
    assert {"run", "out", "requests", "candidates", "seconds", "candidates_per_s"} == set(found)
    rows = pq.read_table(out).to_pylist()
    log = pq.read_table(world_log / "requests")
    assert [row["request_id"] for row in rows] == log["request_id"].to_pylist()
    assert found["requests"] == len(rows) == 120
    assert found["candidates"] == sum(len(row["item"]) for row in rows)
    for row, items in zip(rows, log["candidates.item"].to_pylist(), strict=True):
        assert len(row["item"]) == len(items)
        assert sorted(row["position"]) == list(range(len(items)))
        best_first = np.array(row["logit.engaged"])[np.argsort(row["position"])]
        assert (np.diff(best_first) <= 0).all()


def test_a_part_for_people(
    cli: Cli, runs: dict[str, Path], world_log: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scores.parquet"
    argv = ("score", runs["mlp"], "--log", world_log, "--out", out, "--part", "test")
    assert cli(*argv, "--batch-size", 7).out.startswith(f"{out}: 40 requests, ")
    result = cli(*argv)
    assert result.status == 2
    assert result.error == (
        f"prerank: {out}: exists already; choose another name or remove it first"
    )


def test_batches_do_not_change_scores(
    cli: Cli, runs: dict[str, Path], world_log: Path, tmp_path: Path
) -> None:
    tables = []
    for size in (3, 256):
        out = tmp_path / f"{size}.parquet"
        argv = ("score", runs["two_tower"], "--log", world_log, "--out", out, "--batch-size", size)
        assert cli(*argv).status == 0
        logits = pq.read_table(out)["logit.engaged"].combine_chunks().values
        tables.append(logits.to_numpy())
    np.testing.assert_allclose(tables[0], tables[1], rtol=0, atol=1e-5)


def test_what_cannot_be_scored_is_said(
    cli: Cli, runs: dict[str, Path], world_log: Path, tmp_path: Path
) -> None:
    cascade = tmp_path / "cascade"
    save_cascade(cascade, [TierFile(str(runs["two_tower"]), 0.5), TierFile(str(runs["mlp"]))])
    out, file = tmp_path / "scores.parquet", tmp_path / "file"
    file.write_text("")
    for argv, status, line in (
        ((cascade, "--out", out), 2, f"{cascade}: a cascade has an order and no scores; score one"),
        ((tmp_path, "--out", out), 2, f"{tmp_path}: no run there (run.json is missing)"),
        ((runs["mlp"], "--out", out, "--part", "tst"), 2, f"{world_log}: no part 'tst'; did you m"),
        ((runs["mlp"], "--out", file / "x"), 1, f"{file / 'x'}: cannot be written: "),
    ):
        result = cli("score", *argv, "--log", world_log)
        assert result.status == status
        assert result.error.startswith(f"prerank: {line}")
    assert not out.exists()


@pytest.mark.parametrize("size", ["0", "-3"])
def test_batches_hold_something(cli: Cli, tmp_path: Path, size: str) -> None:
    argv = ("score", tmp_path, "--log", tmp_path, "--out", tmp_path / "s", "--batch-size", size)
    result = cli(*argv)
    assert result.status == 2
    assert result.error.startswith(f"prerank score: --batch-size {size}: expected a number grea")
