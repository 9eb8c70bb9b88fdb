from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prerank.errors import InputError
from prerank.serving.server.auth import Guard, check_exposure, is_loopback, read_token

TOKEN = "s3cret-token-of-32-characters-ok"


@given(st.text(max_size=60))
def test_nothing_but_the_token_is_admitted(value: str) -> None:
    guard = Guard(TOKEN)
    assert not guard.admits(value)
    assert not guard.admits(f"Bearer {TOKEN}{value}x")
    assert not guard.admits(f"Bearer {TOKEN[: len(value)]}") or len(value) >= len(TOKEN)
    assert guard.admits(f"Bearer {TOKEN}")
    assert Guard().admits(value)


def test_tokens_come_from_files_and_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    assert read_token(str(file)) == TOKEN
    monkeypatch.setattr(sys, "stdin", io.StringIO(f" {TOKEN}\n"))
    assert read_token("-") == TOKEN


@pytest.mark.parametrize("text", ["", "short", "with blanks in the middle of it", "ünïcödé" * 4])
def test_poor_tokens_are_refused_without_being_told(tmp_path: Path, text: str) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        read_token(str(file))
    assert not text or text not in str(caught.value)


def test_a_token_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_token(str(tmp_path / "none"))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.org", ""])
def test_others_are_served_with_a_token_only(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(InputError, match="--token-file"):
        check_exposure(host, "", waived=False)
    check_exposure(host, TOKEN, waived=False)
    check_exposure(host, "", waived=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_is_served_without(host: str) -> None:
    check_exposure(host, "", waived=False)
