"""``prerank data funnel``: its report, its options, its errors, and going on after a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
QUICK = (
    *(
        "--set",
        "rows_per_shard=8",
        "--set",
        "refits=1",
        "--set",
        "num_pool=5",
        "--set",
        "rank_fit.epochs=1",
    ),
    *("--set", "quotas.retrieval=40", "--set", "quotas.prerank=20", "--set", "quotas.rank=12"),
)


@pytest.fixture(scope="module")
def world(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("world") / "log"
    size = ("--requests", "160", "--items", "300", "--users", "40", "--days", "4")
    assert cli("data", "world", path, *size, "--set", "num_exposed=6").status == 0
    return path


@pytest.fixture(scope="module")
def built(cli: Cli, world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("funnel") / "log"
    return out, cli("data", "funnel", world, out, *QUICK, "--json")


def test_report(built: tuple[Path, Any], cli: Cli) -> None:
    out, result = built
    found = result.json
    assert found["log"] == str(out)
    assert found["counts"]["stage:exposed"] == 6 * found["requests"]
    assert 0 <= found["rates"]["would_survive"] <= 1
    assert found["record"]["quotas"] == {"retrieval": 40, "prerank": 20, "rank": 12}
    assert found["record"]["config"]["rank_fit"]["epochs"] == 1
    assert {"auc", "survivors", "matched", "placebo"} <= found["judged"]["realness"].keys()
    assert set(found["judged"]["ladder"]) == {"all", "survivors"}
    assert cli("data", "check", out).status == 0
    assert not out.with_name("log.work").exists()


def test_people_read_the_same_numbers(cli: Cli, world: Path, tmp_path: Path) -> None:
    result = cli("data", "funnel", world, tmp_path / "log", *QUICK, "--requests", "60")
    assert result.status == 0
    assert "60 requests" in result.out
    for words in ("stage:rank", "real would_survive", "survivors", "ladder (all)", "placebo"):
        assert words in result.out
    assert "serving: 60 requests" in result.err


def test_errors_are_one_line(
    cli: Cli, built: tuple[Path, Any], world: Path, tmp_path: Path
) -> None:
    out, _ = built
    new = tmp_path / "new"
    assert "exists already" in cli("data", "funnel", world, out).error
    wrong = cli("data", "funnel", world, new, "--set", "fold=3")
    assert "unknown key 'fold'; did you mean 'folds'?" in wrong.error
    wrong = cli("data", "funnel", world, new, "--set", "quotas=3", "--set", "quotas.rank=3")
    assert "--set quotas.rank" in wrong.error
    both = cli("data", "funnel", world, new, "--requests", "5", "--set", "max_requests=5")
    assert "give one of them" in both.error
    assert "no such log" in cli("data", "funnel", tmp_path / "none", new).error
    assert not new.exists()


@pytest.mark.slow
def test_killed_command_goes_on(world: Path, built: tuple[Path, Any], tmp_path: Path) -> None:
    out = tmp_path / "log"
    words = ["data", "funnel", str(world), str(out), *QUICK]
    command = [sys.executable, "-m", "prerank.cli.main", *words, "--json", "--no-judge"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    shards = out.with_name("log.work") / "shards"
    while process.poll() is None and len(list(shards.glob("*.parquet"))) < 3:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    counts = json.loads(done.stdout)["counts"]
    assert counts == built[1].json["counts"]
