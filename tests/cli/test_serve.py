from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0: other machines reach it, so a token is needed"),
        (["--token-file", "/nonexistent"], "--token-file /nonexistent: cannot be read"),
        (["--set", "max_quue=3"], "did you mean 'max_queue'?"),
        (["--set", "max_queue=0"], "--set: 'max_queue' is 0"),
        (["--set", "port=3"], "use its own option"),
        (["--port", "99999"], "--port 99999"),
    ],
)
def test_usage_errors_are_one_line(cli: Cli, tmp_path: Path, words: list[str], says: str) -> None:
    (tmp_path / "manifest.json").touch()
    found = cli("serve", tmp_path, *words)
    assert found.status == 2
    assert says in found.error


def test_a_bundle_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    found = cli("serve", tmp_path / "none", "--port", 0)
    assert found.status == 2
    assert "no such folder; expected a bundle" in found.error


def test_a_taken_port_is_named(cli: Cli, tmp_path: Path) -> None:
    from prerank.serving.server.listener import bind

    (tmp_path / "manifest.json").touch()
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        found = cli("serve", tmp_path, "--port", port)
    assert found.status == 2
    assert f"--port {port}: Address already in use" in found.error


def test_a_folder_that_is_no_bundle_is_refused(cli: Cli, tmp_path: Path) -> None:
    found = cli("serve", tmp_path, "--port", 0)
    assert found.status == 2
    assert f"{tmp_path}/manifest.json: not found; expected a bundle" in found.error
