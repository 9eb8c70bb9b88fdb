"""The shell blocks of the page on own data, run as they stand, in a folder with small data."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from prerank.log.impressions.infer import load_map

PAGE = Path(__file__).resolve().parents[3] / "docs" / "own-data.md"

Write = Callable[..., None]


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_commands_lead_to_evaluated_models(
    tmp_path: Path, write_shop: Write, write_events: Write
) -> None:
    pytest.importorskip("duckdb")
    write_shop(tmp_path / "shop.csv", 60)
    write_events(tmp_path / "UserBehavior.csv")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    said = []
    for block in _blocks("sh"):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=tmp_path,
            env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{done.stderr}"
        said.append(done.stdout)
    assert sum("gauc/T1" in text and "item_mean" in text for text in said) == 2
    logs = [tmp_path / "logs" / name for name in ("shop", "shop-again")]
    first, again = (
        {p.relative_to(log): p.read_bytes() for p in log.rglob("*") if p.is_file()} for log in logs
    )
    assert first == again


def test_the_drafts_shown_are_maps(tmp_path: Path) -> None:
    shop, events = _blocks("yaml")
    for text in (shop, events):
        (tmp_path / "map.yaml").write_text(
            text if "window_ms" in text else text + "window_ms: 1800000\n"
        )
        load_map(tmp_path / "map.yaml").schema()
