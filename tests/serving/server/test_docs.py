"""Shell blocks of the page on the server (those in Python run where the page is collected)."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[3] / "docs" / "serving-http.md"
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
TOKEN = "0123456789abcdef0123456789"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_of_the_page(
    start_server: Callable[..., Any], make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(TOKEN)
    plain, guarded = (block for block in BLOCKS if "curl" in block)
    server = start_server(make_bundle("one"))
    found = run(plain, server.url, tmp_path)
    assert '"ids":[1000134,1000065]' in found
    assert '{"ok":true,"model":"one"}' in found
    assert "prerank_requests_total" in found
    server = start_server(make_bundle("one"), options={"token": TOKEN})
    assert '"version":"one"' in run(guarded, server.url, tmp_path)
    (tmp_path / "token").write_text("another-token-of-some-length")
    assert "unauthorized" in run(guarded, server.url, tmp_path)


def run(block: str, url: str, folder: Path) -> str:
    text = block.replace("http://127.0.0.1:8080", url)
    assert text != block
    command = ["bash", "-euo", "pipefail", "-c", text]
    return subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True, timeout=60
    ).stdout
