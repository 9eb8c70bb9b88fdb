from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

Cli = Callable[..., Any]

_RESULT = {
    "set": {"name": "tiny", "what": "made up"},
    "requests": {"train": 1},
    "candidates_per_request": 3.0,
    "quota": 2,
    "top_m": 1,
    "lines": {
        "ghcl": {
            "what": "GHCL",
            "metrics": {"auc/macro": {"value": None, "sd_seeds": None, "seeds": 1}},
        }
    },
    "differences": {},
    "shares": {},
    "gradients": {},
    "machine": {"cpu": "none", "torch": "0"},
}


def test_the_page_is_written_from_results(cli: Cli, tmp_path: Path) -> None:
    path, out = tmp_path / "results.json", tmp_path / "docs" / "study.md"
    path.write_bytes(msgspec.json.encode(_RESULT))
    done = cli("bench", "hap-page", str(path), "--out", str(out))
    assert done.status == 0
    text = out.read_text(encoding="utf-8")
    assert "## Answers" in text
    assert "not measured yet" in text


def test_what_are_no_results_is_refused_in_one_line(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    for content in ("{", "{}"):
        path.write_text(content, encoding="utf-8")
        done = cli("bench", "hap-page", str(path), "--out", str(tmp_path / "x.md"))
        assert done.status == 2
        assert "give what bench hap wrote" in done.err
        assert not (tmp_path / "x.md").exists()
    done = cli("bench", "hap-page", str(tmp_path / "none.json"), "--out", str(tmp_path / "x.md"))
    assert done.status == 2
    assert "cannot be read" in done.err


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_terminated_study_goes_on(
    cli: Cli,
    start_cli: Callable[..., subprocess.Popen[str]],
    world_log: Path,
    tmp_path: Path,
    workers: int,
) -> None:
    command = ["bench", "hap", "world", "--log", world_log, "--out", tmp_path, "--no-judge"]
    command += ["--lines", "ghcl", "--seeds", 1]
    with start_cli([*command, "--workers", workers]) as process:
        until = time.monotonic() + 120
        while not list(tmp_path.rglob("result.json")):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode in (143, -signal.SIGTERM)
    done = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert done
    again = cli(*command)
    assert again.status == 0
    assert f"{len(done)} of 4 are done" in again.err or len(done) == 4
    found = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert len(found) == 4
    assert done.items() <= found.items()
    assert not any("failed" in msgspec.json.decode(path.read_bytes()) for path in found)
