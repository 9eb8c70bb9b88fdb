from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

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
