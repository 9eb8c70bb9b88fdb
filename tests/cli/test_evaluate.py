from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]

BASELINES = ["random", "popularity", "retrieval", "item_mean", "item_mean+user_mean"]


@pytest.fixture(scope="session")
def found(cli: Cli, runs: dict[str, Path], world_log: Path) -> dict[str, Any]:
    """The JSON of both runs beside the usual baselines."""
    argv = ("evaluate", *runs.values(), "--log", world_log, "--k", "5,10", "--resamples", "50")
    result = cli(*argv, "--json")
    assert result.status == 0
    assert isinstance(result.json, dict)
    return result.json


def test_the_json_others_rely_on(found: dict[str, Any], world_log: Path) -> None:
    assert {"runs", "log", "part", "seed"} <= set(found)
    assert (found["log"], found["part"], found["seed"]) == (str(world_log), "test", 0)
    assert list(found["runs"]) == ["two_tower", "mlp", *BASELINES]
    for name, run in found["runs"].items():
        assert set(run) == {"metrics", "cost", "skipped"}
        if name == "retrieval":  # this log does not say what retrieval found first
            assert not run["metrics"]
            assert set(run["skipped"].values()) == {
                "the order of retrieval is not logged (candidates.rank.retrieval)"
            }
            continue
        assert {"recall@5/T1", "recall@10/T1", "gauc/T1", "auc/source:rank"} <= set(run["metrics"])
        for key, metric in run["metrics"].items():
            assert {"value", "low", "high"} <= set(metric)
            assert metric["low"] is None or metric["low"] <= metric["high"], key
        assert all(isinstance(reason, str) for reason in run["skipped"].values())
        assert not set(run["skipped"]) & set(run["metrics"])
        assert (run["cost"] is None) == (name in BASELINES)
    assert set(found["runs"]["mlp"]["cost"]) == {
        "us_per_request",
        "us_per_item",
        "us_per_candidate",
        "flops_per_candidate",
        "params_dense",
        "params_table",
        *("num_candidates", "num_requests", "peak_mb", "device", "threads"),
    }


def test_the_same_command_gives_the_same_metrics(
    cli: Cli, found: dict[str, Any], runs: dict[str, Path], world_log: Path
) -> None:
    argv = ("evaluate", *runs.values(), "--log", world_log, "--k", "10,5,5", "--resamples", 50)
    again = cli(*argv, "--json").json
    assert again["differences"] == found["differences"]
    for name, run in again["runs"].items():
        assert run["metrics"] == found["runs"][name]["metrics"]


def test_tables_for_people(
    cli: Cli, found: dict[str, Any], runs: dict[str, Path], world_log: Path
) -> None:
    argv = ("evaluate", *runs.values(), "--log", world_log, "--k", "5,10", "--resamples", "50")
    result = cli(*argv)
    lines = result.out.splitlines()
    assert lines[0] == f"{world_log}, part test"
    head = [word for word in lines[1].split("  ") if word]
    assert [word.strip().replace(" ", "") for word in head] == ["metric", *found["runs"]]
    gauc = next(line.split() for line in lines if line.startswith("gauc/T1"))
    rows = [run["metrics"].get("gauc/T1") for run in found["runs"].values()]
    shown = ["-" if row is None else f"{row['value']:.4f}" for row in rows]
    assert gauc[1:] == shown
    for title in ("of gauc/T1, 95", "of recall@10/T1, 95", "cost of a request of"):
        assert any(title in line for line in lines)
    assert "counts: requests 40, " in result.err
    assert "skipped: " in result.err
    assert all(line == line.rstrip() for line in lines)


def test_without_baselines_and_cut_offs(cli: Cli, runs: dict[str, Path], world_log: Path) -> None:
    argv = ("evaluate", runs["mlp"], "--log", world_log, "--baselines", "", "--k", "")
    found = cli(*argv, "--resamples", 10, "--json").json
    assert list(found["runs"]) == ["mlp"]
    quota = found["quota"]
    cuts = {key.split("/")[0].partition("@")[2] for key in found["runs"]["mlp"]["metrics"]}
    assert cuts - {""} <= {str(k) for k in (quota // 2, quota, 2 * quota)}
    result = cli(*argv, "--resamples", 10)
    assert result.status == 0
    assert "paired differences" not in result.out


def test_the_part_a_run_was_trained_on_needs_permission(
    cli: Cli, runs: dict[str, Path], world_log: Path
) -> None:
    argv = ("evaluate", runs["mlp"], "--log", world_log, "--part", "train", "--resamples", 10)
    result = cli(*argv)
    assert result.status == 2
    assert result.error == (
        f"prerank: {runs['mlp']}: trained on 40 of the 40 requests of part 'train'; evaluate "
        "another part, or give --allow-seen"
    )
    assert cli(*argv, "--allow-seen", "--json").json["part"] == "train"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--k", "x"], "--k x: expected whole numbers from 1, like 10,50,100"),
        (["--k", "0"], "--k 0: expected whole numbers from 1"),
        (["--k", "10,-5"], "--k 10,-5: expected whole numbers from 1"),
        (["--k", "1.5"], "--k 1.5: expected whole numbers from 1"),
        (["--baselines", "popularty"], "baseline 'popularty' is not known; did you mean 'populari"),
        (["--device", "gpu"], "--device 'gpu': Expected one of cpu, cuda, "),
    ],
)
def test_bad_options_are_named(
    cli: Cli, runs: dict[str, Path], world_log: Path, argv: list[str], line: str
) -> None:
    result = cli("evaluate", runs["mlp"], "--log", world_log, *argv)
    assert result.status == 2
    assert result.error.startswith(f"prerank: {line}")


def test_unknown_parts_runs_and_logs(
    cli: Cli, runs: dict[str, Path], world_log: Path, tmp_path: Path
) -> None:
    mlp = runs["mlp"]
    for argv, line in (
        ((mlp, "--log", world_log, "--part", "tset"), "no part 'tset'; did you mean 'test'?"),
        ((tmp_path, "--log", world_log), f"{tmp_path}: no run there (run.json is missing); exp"),
        ((mlp, mlp, "--log", world_log), f"{mlp}: given twice; name every run once"),
        ((mlp, "--log", tmp_path), f"{tmp_path}: not a whole request log (manifest.json"),
        ((mlp, "--log", tmp_path / "none"), f"{tmp_path / 'none'}: no such log; expected a fold"),
    ):
        result = cli("evaluate", *argv)
        assert result.status == 2
        assert line in result.error


def test_runs_of_one_name_keep_apart(
    cli: Cli, runs: dict[str, Path], world_log: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(runs["mlp"], tmp_path / "mlp"))
    argv = ("--log", world_log, "--baselines", "", "--resamples", 10, "--json")
    found = cli("evaluate", runs["mlp"], other, *argv).json
    assert list(found["runs"]) == [str(runs["mlp"]), str(other)]


def test_runs_that_differ_in_their_seed_are_one_group(
    cli: Cli, runs: dict[str, Path], world_log: Path, tmp_path: Path
) -> None:
    other = tmp_path / "mlp1"
    assert cli("train", "mlp", "--log", world_log, "--out", other, "--seed", 1).status == 0
    argv = ("evaluate", runs["two_tower"], runs["mlp"], other, "--log", world_log, "--k", 5)
    argv = (*argv, "--baselines", "", "--resamples", 5, "--seeds")
    found = cli(*argv, "--json").json["seeds"]
    assert found["seeds"] == [0]
    assert set(found["groups"]) == {"two_tower", "mlp"}
    assert "over seeds 0: mean, sd" in cli(*argv).out
    result = cli("evaluate", runs["mlp"], runs["mlp"].parent / "mlp", *argv[4:])
    assert "given twice" in result.error


def test_ablation_and_how_often_the_part_was_opened(
    cli: Cli, runs: dict[str, Path], world_log: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(runs["mlp"], tmp_path / "own"))
    (own / "opened.json").unlink(missing_ok=True)
    argv = ("evaluate", own, "--log", world_log, "--baselines", "", "--resamples", 5, "--ablate")
    found = cli(*argv, "--json").json
    assert found["opened"] == {"own": 1}
    assert found["undated_statistics"] == []
    assert {"item.item", "history.click", "all:item"} <= set(found["ablation"]["own"]["groups"])
    again = cli(*argv)
    assert "part 'test' has been opened 2 times" in again.err
    assert "what is lost when features are permuted" in again.out
    quiet = cli(*argv[:-1], "--part", "valid", "--json").json
    assert quiet["opened"] == {"own": 0}


def test_a_run_can_be_the_ranker(cli: Cli, runs: dict[str, Path], world_log: Path) -> None:
    argv = ("evaluate", runs["mlp"], "--log", world_log, "--baselines", "", "--resamples", 5)
    found = cli(*argv, "--ranker", runs["mlp"], "--truths", "T3,ranker", "--json").json
    assert found["ranker"] == "given"
    assert found["runs"]["mlp"]["metrics"]["consistency/ranker"]["value"] == 1
    assert cli(*argv, "--ranker", "rnker").error.endswith("did you mean 'ranker'?")
    assert "truth 'T9' is not known" in cli(*argv, "--truths", "T9").error
