from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prerank.cascade import Cascade, Gap, Mass, Threshold
from prerank.evaluation.runs import load_scorer

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def runs(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A log and a folder with two trained runs."""
    folder = tmp_path_factory.mktemp("cascade")
    log = folder / "log"
    made = cli("data", "world", log, "--requests", 300, "--items", 300, "--users", 40, "--days", 4)
    assert made.status == 0, made.err
    for recipe in ("two_tower", "mlp"):
        trained = cli("train", recipe, "--log", log, "--out", folder / recipe)
        assert trained.status == 0, trained.err
    return log, folder


def make(cli: Cli, runs: tuple[Path, Path], out: Path, *options: object) -> Any:
    folder = runs[1]
    return cli("cascade", folder / "two_tower", folder / "mlp", *options, "--out", out)


def test_a_share_makes_a_cascade_that_evaluates(
    cli: Cli, runs: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "cascade"
    made = make(cli, runs, out, "--forward", 0.3, "--json")
    assert made.status == 0, made.err
    assert made.json == {"out": str(out), "tiers": ["TwoTower -> 30 %", "MLPPreranker"]}
    result = cli("evaluate", out, "--log", runs[0], "--json")
    assert result.status == 0, result.err
    assert "cascade" in result.json["runs"]


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (("--promise", 0.5, "--top-m", 5), Mass),
        (("--mean", 20, "--rule", "threshold"), Threshold),
        (("--mean", 20, "--rule", "gap", "--place", 10), Gap),
        (("--promise", 0.5, "--rule", "gap", "--place", 10, "--top-m", 5), Gap),
    ],
)
def test_a_level_is_found_on_a_part(
    cli: Cli,
    runs: tuple[Path, Path],
    tmp_path: Path,
    options: tuple[object, ...],
    kind: type[Any],
) -> None:
    made = make(cli, runs, tmp_path, *options, "--log", runs[0])
    assert made.status == 0, made.err
    assert "on average on part 'valid'" in made.err
    cascade = load_scorer(tmp_path)
    assert isinstance(cascade, Cascade)
    rule = cascade.tiers[0].forward
    assert isinstance(rule, kind)
    if isinstance(rule, Gap):
        assert rule.place == 10
    if options[0] == "--promise":
        assert rule.promise is not None
        assert (rule.promise.epsilon, rule.promise.top_m) == (0.5, 5)
    else:
        assert rule.budget is not None
        assert rule.budget.realised <= 20.0 + 1e-9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give one of --forward, --promise and --mean"),
        (("--forward", 0.3, "--mean", 5), "give one of --forward, --promise and --mean"),
        (("--forward", "x"), "--forward x: expected a share like 0.3 or a count like 200"),
        (("--forward", 0.3, "--forward", 0.1), "2 runs and 2 --forward; give one for each run but"),
        (("--forward", 1.5), "forward is 1.5; expected a share in (0, 1]"),
        (("--forward", 0.3, "--tail", "cut"), "tail"),
        (("--mean", 5), "--mean needs --log LOG to calibrate on"),
        (("--mean", 5, "--rule", "gap"), "--rule gap and --place N, whose score is its mark: give"),
        (("--mean", 5, "--place", 3), "--rule gap and --place N, whose score is its mark: give"),
        (("--forward", 0.3, "--rule", "share"), "--rule share is of --promise and --mean; give"),
    ],
)
def test_what_makes_no_cascade_is_refused(
    cli: Cli, runs: tuple[Path, Path], tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    result = make(cli, runs, tmp_path / "out", *options)
    assert result.status == 2
    assert message in result.error
    assert not (tmp_path / "out").exists()


def test_one_run_and_an_unknown_rule_are_refused(
    cli: Cli, runs: tuple[Path, Path], tmp_path: Path
) -> None:
    alone = cli("cascade", runs[1] / "mlp", "--forward", 0.3, "--out", tmp_path)
    assert "one run is no cascade" in alone.error
    unknown = make(cli, runs, tmp_path, "--mean", 5, "--log", runs[0], "--rule", "mas")
    assert unknown.error == "prerank: --rule mas: not known; did you mean 'mass'?"
