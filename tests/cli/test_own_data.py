from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prerank.log import open_log

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 requests of 8 users with 5 of 30 items each, as a flat table."""
    draw = random.Random(0)
    lines = ["request_id,user_id,item_id,timestamp,click,price"]
    for request in range(40):
        user, time = draw.randrange(8), 1_700_000_000 + 60 * request
        for item in draw.sample(range(30), 5):
            click = int(draw.random() < 0.3)
            lines.append(f"{request},u{user},i{item},{time},{click},{item / 2}")
    path = tmp_path_factory.mktemp("own") / "events.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def mapping(cli: Cli, events: Path, tmp_path: Path) -> Path:
    """The drafted map."""
    path = tmp_path / "map.yaml"
    assert cli("data", "infer", events, "-o", path).status == 0
    return path


def test_a_draft_is_the_same_on_stdout_in_a_file_and_in_json(
    cli: Cli, events: Path, mapping: Path
) -> None:
    found = cli("data", "infer", events, "--json").json
    assert found["rows"] == 200
    assert found["usable"] is True
    assert found["text"] == mapping.read_text() == cli("data", "infer", events).out
    assert set(found["evidence"]) >= {"user_id", "item_id", "timestamp", "click"}
    result = cli("data", "infer", events, "-o", mapping)
    assert result.status == 2
    assert result.error.startswith(f"prerank: {mapping}: exists already")


def test_the_drafted_map_imports_the_table(
    cli: Cli, events: Path, mapping: Path, tmp_path: Path
) -> None:
    argv = ("data", "import", "parquet", events)
    result = cli(*argv, tmp_path / "a", "--map", mapping)
    assert result.out.startswith(f"{tmp_path / 'a'}: 40 requests, 200 candidates, 30 items\n")
    found = cli(*argv, tmp_path / "b", "--map", mapping, "--split", "user-order", "--json").json
    assert (found["requests"], found["candidates"], found["items"]) == (40, 200, 30)
    assert sum(found["parts"].values()) == 40
    assert found["parts"] != {n: open_log(tmp_path / "a")[n].num_requests for n in found["parts"]}
    assert cli("data", "check", tmp_path / "a").status == 0


@pytest.mark.parametrize(
    ("name", "argv", "line"),
    [
        ("parquet", [], "--map: missing; draft one with: prerank data infer SRC -o map.yaml"),
        ("parquet", ["--map", "none.yaml"], "none.yaml: cannot be read: No such file or direct"),
        ("parquet", ["--map", "MAP", "--split", "tme"], "--split tme: expected time or user-ord"),
        ("parquet", ["--map", "MAP", "--set", "a=1"], "--set a=1: the map holds the values of an"),
        ("parquet", ["--map", "BAD"], "{events}: no column 'itm_id'; did you mean 'item_id'?"),
        ("mind", ["--map", "MAP"], "--map: only for your own table (data import parquet), not min"),
        ("mnd", ["--map", "MAP"], "no adapter 'mnd'; did you mean 'mind'?"),
    ],
)
def test_bad_input_is_named(
    cli: Cli,
    events: Path,
    mapping: Path,
    tmp_path: Path,
    name: str,
    argv: list[str],
    line: str,
) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(mapping.read_text().replace("item_id", "itm_id"))
    words = [{"MAP": mapping, "BAD": bad}.get(word, word) for word in argv]
    result = cli("data", "import", name, events, tmp_path / "log", *words)
    assert result.status == 2
    assert result.error.startswith(f"prerank: {line.format(events=events)}")
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("argv", [["infer"], ["import", "parquet"]])
def test_there_must_be_a_table(cli: Cli, mapping: Path, tmp_path: Path, argv: list[str]) -> None:
    rest = [tmp_path / "log", "--map", mapping] if argv[0] == "import" else []
    result = cli("data", *argv, tmp_path / "none.csv", *rest)
    assert result.status == 2
    assert result.error.startswith(f"prerank: {tmp_path / 'none.csv'}: not found; expected ")
