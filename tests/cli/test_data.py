from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prerank import adapters
from prerank.log import open_log
from prerank.world import World

Cli = Callable[..., Any]


@pytest.fixture
def mind(tmp_path: Path) -> Path:
    """Ten impressions in MIND's layout."""
    folder = tmp_path / "mind"
    folder.mkdir()
    rows = [
        f"{n}\tU{n % 3}\t11/1{n % 5}/2019 9:0{n}:00 AM\tN{n}\tN{n + 1}-1 N{n + 2}-0"
        for n in range(10)
    ]
    (folder / "behaviors.tsv").write_text("\n".join(rows) + "\n")
    news = [f"N{n}\tnews\tworld\tA title\t\t\t\t" for n in range(10)]
    (folder / "news.tsv").write_text("\n".join(news) + "\n")
    return folder


@pytest.fixture
def movielens(tmp_path: Path) -> Path:
    """Three users with 15 ratings each in MovieLens-1M's layout."""
    folder = tmp_path / "ml"
    folder.mkdir()
    ratings = [
        f"{u}::{i}::{1 + (u + i) % 5}::{978_300_000 + 60 * i}" for u in (1, 2, 3) for i in range(15)
    ]
    (folder / "ratings.dat").write_text("\n".join(ratings) + "\n")
    movies = [f"{i}::Movie {i} ({1980 + i})::Drama|Comedy" for i in range(15)]
    (folder / "movies.dat").write_text("\n".join(movies) + "\n")
    users = [f"{u}::F::25::1::01234" for u in (1, 2)]
    (folder / "users.dat").write_text("\n".join(users) + "\n")
    return folder


def test_world_writes_the_log_of_its_options(
    cli: Cli, tmp_path: Path, small_world: tuple[str, ...]
) -> None:
    out = tmp_path / "made" / "log"
    found = cli("data", "world", out, *small_world, "--seed", 4, "--json").json
    log = open_log(out)
    assert found["log"] == str(out)
    assert found["requests"] == log.num_requests == 120
    assert found["parts"] == {"train": 40, "valid": 40, "test": 40}
    assert found["candidates"] == found["report"]["num_candidates"]
    assert World.open(out).config.seed == 4
    assert World.open(out).config.num_exposed == 5


def test_world_says_what_it_made_and_what_to_do_next(
    cli: Cli, tmp_path: Path, small_world: tuple[str, ...]
) -> None:
    out = tmp_path / "a log"
    result = cli("data", "world", out, *small_world)
    assert result.out.startswith(f"{out}: 120 requests, ")
    assert "parts: train 40, valid 40, test 40\n" in result.out
    assert result.err.startswith(f"next: prerank data check '{out}'\n")


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--set", "gpa=2"], "world: unknown key 'gpa'; did you mean 'gap'?"),
        (["--set", "gap=wide"], "world: 'gap' is 'wide'; expected float, got str"),
        (["--set", "gap=[1"], "--set gap=[1: not valid YAML: "),
        (["--set", "gap"], "--set gap: expected key=value"),
        (["--set", "=3"], "--set =3: expected key=value"),
        (["--set", "gap=1", "--set", "gap=2"], "--set gap=2: 'gap' is given twice"),
        (
            ["--requests", "9", "--set", "num_requests=8"],
            "--requests and --set num_requests: give one of them",
        ),
        (["--seed", "1", "--set", "seed=2"], "--seed and --set seed: give one of them"),
        (["--set", f"seed={1 << 64}"], "world: seed is 18446744073709551616, expected from 0 to"),
        (["--set", "num_preranked=500"], "world: num_preranked is 500, more than num_retrieved ("),
    ],
)
def test_world_refuses_bad_values(cli: Cli, tmp_path: Path, argv: list[str], line: str) -> None:
    result = cli("data", "world", tmp_path / "log", *argv)
    assert result.status == 2
    assert result.error.startswith(f"prerank: {line}")
    assert not any(tmp_path.iterdir())


def test_an_existing_log_is_never_written_over(
    cli: Cli, own_log: Path, mind: Path, small_world: tuple[str, ...]
) -> None:
    before = {path: path.read_bytes() for path in own_log.rglob("*") if path.is_file()}
    for argv in (["world", own_log, *small_world], ["import", "mind", mind, own_log]):
        result = cli("data", *argv)
        assert result.status == 2
        assert result.error == (
            f"prerank: {own_log}: exists already; choose another name or remove it first"
        )
    assert before == {path: path.read_bytes() for path in own_log.rglob("*") if path.is_file()}


def test_import_of_mind_with_and_without_json(cli: Cli, mind: Path, tmp_path: Path) -> None:
    found = cli("data", "import", "mind", mind, tmp_path / "a", "--json").json
    assert found["requests"] == 10
    assert found["candidates"] == 20
    assert sum(found["parts"].values()) == 10
    assert found["report"]["counts"]["clicks"] == 10
    assert open_log(tmp_path / "a").num_requests == 10
    result = cli("data", "import", "mind", mind, tmp_path / "b")
    assert result.out.startswith(f"{tmp_path / 'b'}: 10 requests, 20 candidates, ")
    assert "counts: clicks 10" in result.out
    assert "note: times have no zone" in result.err
    assert result.err.splitlines()[-2].startswith("next: prerank data check ")


def test_import_of_movielens_takes_its_options(cli: Cli, movielens: Path, tmp_path: Path) -> None:
    one = cli("data", "import", "movielens", movielens, tmp_path / "a", "--json").json
    assert (one["requests"], one["candidates"]) == (6, 45)
    two = cli(
        *("data", "import", "movielens", movielens, tmp_path / "b"),
        *("--set", "slate=5", "--set", "max_history=3", "--json"),
    ).json
    assert (two["requests"], two["candidates"]) == (9, 45)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["slat=5"], "--set slat: movielens has no such option; did you mean 'slate'?"),
        (["progress=5"], "--set progress: movielens has no such option; known: "),
        (["slate=five"], "--set slate=five: expected int, got str"),
        (["slate=0"], "movielens: slate is 0; expected 1 or more"),
    ],
)
def test_import_refuses_bad_options(
    cli: Cli, movielens: Path, tmp_path: Path, argv: list[str], line: str
) -> None:
    result = cli("data", "import", "movielens", movielens, tmp_path / "log", "--set", *argv)
    assert result.status == 2
    assert result.error.startswith(f"prerank: {line}")
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("name", adapters.TABLE)
def test_every_layout_needs_its_source(cli: Cli, name: str, tmp_path: Path) -> None:
    result = cli("data", "import", name, tmp_path / "none", tmp_path / "log")
    assert result.status == 2
    assert result.error.startswith(f"prerank: {tmp_path / 'none'}: not found; expected ")
    (tmp_path / "empty").mkdir()
    result = cli("data", "import", name, tmp_path / "empty", tmp_path / "log")
    assert result.status == 2
    assert result.error.startswith(f"prerank: {tmp_path / 'empty'}: no file ")
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("name", ["movielens", "mind"])
def test_import_says_what_is_missing(cli: Cli, name: str, tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("hello")
    result = cli("data", "import", name, tmp_path, tmp_path / "log")
    assert result.status == 2
    wanted = {"movielens": "ratings.dat or *.inter", "mind": "behaviors.tsv"}[name]
    assert result.error.startswith(f"prerank: {tmp_path}: no file {wanted} ")
    assert result.error.endswith("it holds readme.txt")
    assert not (tmp_path / "log").exists()


def test_import_names_file_and_line_of_a_bad_record(cli: Cli, mind: Path, tmp_path: Path) -> None:
    path = mind / "behaviors.tsv"
    path.write_text(path.read_text().replace("9:03:00 AM", "9 o'clock"))
    result = cli("data", "import", "mind", mind, tmp_path / "log")
    assert result.status == 2
    assert result.error.startswith(f"prerank: {path}:4: ")
    assert "9 o'clock" in result.error


@pytest.mark.parametrize("name", adapters.TABLE)
def test_every_layout_refuses_what_is_no_option(cli: Cli, name: str, tmp_path: Path) -> None:
    argv = ("data", "import", name, tmp_path, tmp_path / "log", "--set", "no_such_option=1")
    result = cli(*argv)
    assert result.status == 2
    line = f"prerank: --set no_such_option: {name} has no such option; "
    assert result.error.startswith(line)


def test_import_knows_its_layouts(cli: Cli, tmp_path: Path) -> None:
    result = cli("data", "import", "movilens", tmp_path, tmp_path / "log")
    assert result.status == 2
    assert result.error == "prerank: no adapter 'movilens'; did you mean 'movielens'?"


def test_split_by_both_rules(cli: Cli, own_log: Path) -> None:
    by_time = cli("data", "split", own_log, "--fractions", "0.5,0.25,0.25", "--json").json
    assert by_time == {
        "log": str(own_log),
        "by": "time",
        "parts": {"train": 60, "valid": 30, "test": 30},
    }
    log = open_log(own_log)
    assert log.parts == ("train", "valid", "test")
    result = cli("data", "split", own_log, "--by", "user-order", "--names", "a, b, c")
    assert [line.split()[0] for line in result.out.splitlines()] == ["a", "b", "c"]
    assert all(line.endswith(" requests") for line in result.out.splitlines())
    log = open_log(own_log)
    assert sum(log[name].num_requests for name in log.parts) == 120


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--by", "usr"], "--by usr: expected time or user-order"),
        (["--fractions", ""], "--fractions '': expected numbers that add up to 1, like 0.8,0.1,0."),
        (["--fractions", "a,b"], "--fractions 'a,b': expected numbers that add up to 1"),
        (["--fractions", "0.5,0.6,0"], "split: fractions (0.5, 0.6, 0.0) for parts ('train', "),
        (["--fractions", "nan,0.5,0.5"], "split: fractions (nan, 0.5, 0.5) for parts "),
        (["--fractions", "0.9,0.1"], "split: fractions (0.9, 0.1) for parts ('train', 'valid', 't"),
        (["--fractions", "1.5,-0.5,0"], "split: fractions (1.5, -0.5, 0.0) for parts "),
        (["--names", ""], "--names '': a name is empty; expected one like train,valid,test"),
        (["--names", "a,a,b"], "split: by 'time' into parts ('a', 'a', 'b'); expected"),
    ],
)
def test_split_refuses_bad_options(cli: Cli, own_log: Path, argv: list[str], line: str) -> None:
    before = (own_log / "splits.json").read_bytes()
    result = cli("data", "split", own_log, *argv)
    assert result.status == 2
    assert result.error.startswith(f"prerank: {line}")
    assert (own_log / "splits.json").read_bytes() == before


def test_check_of_a_good_log(cli: Cli, world_log: Path) -> None:
    found = cli("data", "check", world_log, "--json").json
    assert set(found) == {"ok", "findings", "counts"}
    assert found["ok"] is True
    assert found["counts"]["requests"] == 120
    result = cli("data", "check", world_log, "--quick")
    assert result.status == 0
    assert result.out.splitlines()[0].split() == ["requests", "120"]
    assert result.out.splitlines()[-1].startswith("ok (0 errors, ")


def test_check_of_a_damaged_log_fails_with_status_1(cli: Cli, own_log: Path) -> None:
    part = next((own_log / "requests").iterdir())
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 0xFF
    part.write_bytes(data)
    result = cli("data", "check", own_log, "--json")
    assert result.status == 1
    assert result.json["ok"] is False
    errors = [f for f in result.json["findings"] if f["level"] == "error"]
    assert {"level", "where", "message"} == set(errors[0])
    assert errors[0]["where"] == f"requests/{part.name}"
    result = cli("data", "check", own_log)
    assert result.status == 1
    assert result.out.splitlines()[-1].startswith("NOT OK (")
    assert f"error: requests/{part.name}: " in result.out


def test_check_of_a_half_written_log(cli: Cli, own_log: Path) -> None:
    (own_log / "manifest.json").unlink()
    result = cli("data", "check", own_log, "--json")
    assert result.status == 1
    assert result.json["ok"] is False
    assert result.json["findings"][0]["where"] == "manifest.json"


@pytest.mark.parametrize("command", [["check"], ["split"], ["check", "--json"]])
def test_there_must_be_a_log(cli: Cli, tmp_path: Path, command: list[str]) -> None:
    result = cli("data", *command, tmp_path / "none")
    assert result.status == 2
    assert result.error.startswith(f"prerank: {tmp_path / 'none'}: no such log; expected a folder")


def test_a_log_without_parts_says_how_to_get_them(cli: Cli, own_log: Path, tmp_path: Path) -> None:
    (own_log / "splits.json").unlink()
    manifest = json.loads((own_log / "manifest.json").read_text())
    manifest["files"].pop("splits.json", None)
    (own_log / "manifest.json").write_text(json.dumps(manifest))
    result = cli("train", "mlp", "--log", own_log, "--out", tmp_path / "run")
    assert result.status == 2
    assert result.error == (
        f"prerank: {own_log}: no part 'train'; the log has none; run: prerank data split {own_log}"
    )
