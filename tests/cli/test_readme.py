from __future__ import annotations

import random
import re
import shlex
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]

README = Path(__file__).resolve().parents[2] / "README.md"


def commands() -> list[list[str]]:
    """The commands in the README's shell blocks, in order."""
    blocks = re.findall(r"^```(?:bash|sh|console)\n(.*?)^```", README.read_text(), re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    words = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [line for line in words if line[:1] == ["prerank"]]


@pytest.fixture
def ml1m(tmp_path: Path) -> Path:
    """MovieLens-1M's archive, much smaller."""
    draw = random.Random(0)
    ratings = [
        f"{user}::{item}::{draw.randrange(1, 6)}::{978_300_000 + 100 * step}"
        for user in range(12)
        for step, item in enumerate(draw.sample(range(40), 35))
    ]
    files = {
        "ratings.dat": ratings,
        "movies.dat": [f"{item}::Movie {item} ({1960 + item})::Drama" for item in range(40)],
        "users.dat": [f"{user}::F::25::1::01234" for user in range(12)],
    }
    path = tmp_path / "ml-1m.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, lines in files.items():
            archive.writestr(f"ml-1m/{name}", "\n".join(lines) + "\n")
    return path


def test_the_commands_of_the_readme_work_one_after_the_other(
    cli: Cli, ml1m: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ml1m.parent)
    done = []
    for _, *argv in commands():
        if argv[0] in ("demo", "bench"):  # minutes long, and shown by their own tests
            continue
        result = cli(*argv)
        assert result.status == 0, (argv, result.err)
        done.append(argv[0])
    assert {"data", "train", "evaluate", "score"} <= set(done)
