"""``prerank diagnose`` and ``--figures`` end to end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
RECIPE = """
what: per-source loss
model: {name: two_tower, width: 4, tables: {dim: 4}}
objective: {name: ghcl, bce: 0.3}
sampling: {name: hap, quotas: {rank: 3, prerank: 5, random: 2.0}}
fit: {epochs: 2, batch_size: 8, diagnose_every: 2, eval_metric: loss}
"""


@pytest.fixture(scope="module")
def run(cli: Cli, world_log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diagnose")
    (folder / "ghcl.yaml").write_text(RECIPE)
    done = cli("train", folder / "ghcl.yaml", "--log", world_log, "--out", folder / "run")
    assert done.status == 0, done.err
    return Path(folder / "run")


def test_json_has_every_measure_with_its_counts(
    cli: Cli, run: Path, world_log: Path, tmp_path: Path
) -> None:
    argv = ("diagnose", run, "--log", world_log, "--batches", 3, "--figures", tmp_path / "figs")
    found = cli(*argv, "--json").json
    assert set(found) == {
        *("run", "log", "part", "seed", "num_batches", "num_requests", "batch_size"),
        *("sources", "values", "ratios", "conflicts", "training", "warnings", "figures"),
    }
    assert (found["part"], found["batch_size"], found["num_batches"]) == ("valid", 8, 3)
    assert found["sources"] == ["exposed", "rank", "prerank", "random"]
    for kind in ("norm/dense/contrast", "norm/dense/negative", "norm/table/negative"):
        assert found["values"][f"{kind}/random"]["mean"] > 0
        assert f"{kind}/exposed:random" in found["ratios"]
    spread = found["values"]["negatives/rank"]
    assert set(spread) == {"mean", "sd", "low", "high", "batches"}
    assert spread["mean"] <= 3 * 8
    assert "dense/exposed:rank" in found["conflicts"]
    steps = [line["step"] for line in found["training"]]
    assert steps == list(range(1, steps[-1] + 1, 2))
    names = {Path(path).name for path in found["figures"]}
    stems = ("diagnosis", "diagnosis-training")
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("svg", "png")}
    assert all(Path(path).stat().st_size > 1000 for path in found["figures"])
    assert cli(*argv[:-2], "--json").json["values"] == found["values"]


def test_people_get_tables_and_definitions(cli: Cli, run: Path, world_log: Path) -> None:
    done = cli("diagnose", run, "--log", world_log, "--batches", 2)
    for text in ("negative side, dense", "contrast, table", "exposed:random", "conflict rate"):
        assert text in done.out
    assert "over training (updates)" in done.out
    assert "partly arithmetic" in done.err


def test_a_plain_loss_and_what_is_missing(cli: Cli, runs: dict[str, Path], world_log: Path) -> None:
    done = cli("diagnose", runs["mlp"], "--log", world_log, "--batches", 1)
    assert "train with --set fit.diagnose_every=N" in done.err
    assert "warning: source 'random' is left out" in done.err
    assert "warning: one batch has no intervals" in done.err
    found = cli("diagnose", runs["mlp"], "--log", world_log, "--batches", 1, "--json").json
    assert found["sources"] == ["exposed", "rank", "prerank"]
    assert found["values"]["mass/rank"]["low"] is None


def test_what_cannot_be_diagnosed(cli: Cli, run: Path, world_log: Path, tmp_path: Path) -> None:
    argv = ("diagnose", "--log", world_log)
    assert cli(*argv, tmp_path).error.endswith("expected what training wrote")
    assert "no part 'vaild'" in cli(*argv, run, "--part", "vaild").error
    (tmp_path / "cascade.json").write_text("{}")
    assert "diagnose one of its runs" in cli(*argv, tmp_path).error
    error = cli(*argv, run, "--figures", run / "run.json").error
    assert "is a file; expected a folder" in error


def test_evaluate_draws_too(
    cli: Cli, runs: dict[str, Path], world_log: Path, tmp_path: Path
) -> None:
    argv = ("evaluate", runs["mlp"], "--log", world_log, "--resamples", 10, "--k", "5,10")
    done = cli(*argv, "--figures", tmp_path)
    drawn = [Path(line) for line in done.out.splitlines() if line.endswith((".svg", ".png"))]
    assert {"gauc-T1.svg", "recall-10-T1.png", "auc-per-source.svg"} <= {p.name for p in drawn}
    assert all(path.stat().st_size > 1000 for path in drawn)
    found = cli(*argv, "--figures", tmp_path, "--json").json
    assert found["figures"] == [str(path) for path in drawn]


def test_without_matplotlib_nothing_is_computed(
    cli: Cli, run: Path, world_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for command in ("diagnose", "evaluate"):
        done = cli(command, run, "--log", world_log, "--figures", tmp_path)
        assert done.status == 2
        assert "pip install 'prerank[report]'" in done.error
