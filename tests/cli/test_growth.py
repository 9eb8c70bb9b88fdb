"""The second day from the command line: append, join-labels, stats, score --into, train --from."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prerank.log import open_log, split_log, write_log
from prerank.log.format.raw import raw_items, raw_requests

Cli = Callable[..., Any]
DAY = 86_400_000


@pytest.fixture(scope="session")
def days(world_log: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The small world as two logs, ``monday`` (two thirds, split) and ``tuesday``."""
    folder = tmp_path_factory.mktemp("days")
    log = open_log(world_log)
    whole = pa.concat_tables(list(raw_requests(log)))
    bare = msgspec.structs.replace(log.schema, vocabularies={}, lineage=type(log.schema.lineage)())
    cut = whole.num_rows * 2 // 3
    items = raw_items(log)
    for name, table in (("monday", whole.slice(0, cut)), ("tuesday", whole.slice(cut))):
        write_log(folder / name, bare, [table], items)
    split_log(open_log(folder / "monday"))
    return {name: folder / name for name in ("monday", "tuesday")}


@pytest.fixture
def monday(days: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(days["monday"], tmp_path / "log"))


def test_a_second_day(cli: Cli, monday: Path, days: dict[str, Path], tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    small = ("--set", "fit.epochs=1", "--set", "fit.min_count=1")
    assert cli("train", "two_tower", "--log", monday, "--out", first, *small).status == 0
    done = cli("data", "append", monday, days["tuesday"], "--part", "tuesday", "--json").json
    assert done["requests"] == 120
    assert (done["part"], done["revision"]) == ("tuesday", 1)
    assert done["report"]["num_requests"] == 40

    evaluated = cli("evaluate", first, "--log", monday, "--part", "tuesday", "--json")
    assert evaluated.json["part"] == "tuesday"
    refused = cli("evaluate", first, "--log", monday, "--part", "train")
    assert (refused.status, "trained on" in refused.error) == (2, True)

    more = ("--from", first, "--part", "tuesday", "--keep-optimizer", *small)
    trained = cli("train", "two_tower", "--log", monday, "--out", second, *more, "--json")
    assert trained.status == 0, trained.err
    drift = trained.json["drift"]
    assert drift["vocabularies"]["user"]["ids"] > 0
    assert set(drift["before_training"]) >= {"loss"}
    assert "drift: the run on the new requests" in trained.err
    assert json.loads((second / "drift.json").read_text()) == drift
    again = cli("train", "two_tower", "--log", monday, "--out", second, *more)
    assert (again.status, "was complete already" in again.out) == (0, True)
    for part in ("train", "tuesday"):
        seen = cli("evaluate", second, "--log", monday, "--part", part)
        assert (seen.status, "trained on" in seen.error) == (2, True)
    assert cli("data", "check", monday).status == 0


def test_late_labels_from_a_csv(cli: Cli, monday: Path, tmp_path: Path) -> None:
    log = open_log(monday)
    columns = next(log.all().columns(10, with_ids=True))
    items = log.items.ids.decode(columns.candidates.values["item"]).to_pylist()
    owner = np.repeat(columns.scalars["request_id"], np.diff(columns.candidates.offsets)).tolist()
    with (tmp_path / "late.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["request_id", "item", "buy"])
        writer.writerows([[r, i, 1] for r, i in list(zip(owner, items, strict=True))[:7]])
        writer.writerow([owner[0], -5, 1])
    until = "2031-01-01"
    words = ("data", "join-labels", monday, tmp_path / "late.csv", "--window", "buy=7d")
    done = cli(*words, "--observed-until", until, "--json").json
    assert done["num_matched"] == 7
    assert done["num_unmatched"] == 1
    assert done["changed"] == {"buy": 7}
    assert done["observed_until"] == 1_924_992_000_000
    grown = open_log(monday)
    assert grown.schema.labels[-1].window_ms == 7 * DAY
    labels = np.concatenate(
        [b.evidence.labels["buy"] for b in grown.all().batches(_transforms(grown), 50, prefetch=0)]
    )
    assert (labels.sum(), np.isnan(labels).sum()) == (7, 0)  # the windows are over
    shown = cli(*words[:4])
    assert "7 of 8 rows matched a candidate, 1 did not" in shown.out
    assert "changed labels: buy 0" in shown.out


def _transforms(log: Any) -> Any:
    from prerank.log import Transforms

    return Transforms.fit(log["train"])


def test_statistics_become_features(cli: Cli, monday: Path, tmp_path: Path) -> None:
    done = cli("data", "stats", monday, "--windows", "12h,1d", "--every", "12h", "--json").json
    assert done["features"] == [
        *("impressions_12h", "engaged_rate_12h"),
        *("impressions_1d", "engaged_rate_1d"),
    ]
    assert done["num_impressions"] > 0
    words = ("train", "two_tower", "--log", monday, "--out", tmp_path / "run")
    assert cli(*words, "--set", "fit.epochs=1").status == 0
    assert cli("data", "check", monday).status == 0


def test_teacher_scores_are_evidence_and_models_do_not_see_them(
    cli: Cli, monday: Path, days: dict[str, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ("train", "mlp", "--log", monday, "--out", run, "--set", "fit.epochs=1")
    assert cli(*words).status == 0
    out = tmp_path / "scores.parquet"
    assert cli("score", run, "--log", monday, "--out", out).status == 0
    expected = pq.read_table(out)["logit.engaged"].combine_chunks().flatten().to_numpy()

    log = open_log(monday)
    transforms = _transforms(log)
    before = next(log.all().batches(transforms, 200, prefetch=0))
    done = cli("score", run, "--into", monday, "--as", "teacher", "--json").json
    assert (done["into"], done["as"], done["scores"]) == (str(monday), "teacher", ["teacher"])
    assert done["requests"] == 80
    log = open_log(monday)
    assert log.schema.scores == ("ranker", "teacher")
    after = next(log.all().batches(transforms, 200, prefetch=0))
    np.testing.assert_allclose(after.evidence.scores["teacher"], expected, atol=1e-5)
    np.testing.assert_array_equal(after.evidence.scores["ranker"], before.evidence.scores["ranker"])
    for name in ("dense", "categorical"):
        old, new = (getattr(b.inputs.candidate, name) for b in (before, after))
        assert old.shape == new.shape
        assert (old == new).all()
    assert cli("data", "check", monday).status == 0

    # Tomorrow's rows have none until they are scored; only they are.
    assert cli("data", "append", monday, days["tuesday"], "--part", "tuesday").status == 0
    log = open_log(monday)
    fresh = next(log["tuesday"].batches(transforms, 200, prefetch=0)).evidence.scores["teacher"]
    assert fresh.isnan().all()
    words = ("score", run, "--into", monday, "--as", "teacher", "--part", "tuesday")
    assert cli(*words, "--json").json["requests"] == 40
    log = open_log(monday)
    whole = next(log.all().batches(transforms, 200, prefetch=0)).evidence.scores["teacher"]
    assert not whole.isnan().any()
    np.testing.assert_array_equal(whole[: len(expected)], after.evidence.scores["teacher"])


def test_a_flat_table_is_appended_with_its_map(cli: Cli, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def write(name: str, first: int, last: int) -> Path:
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["uid", "vid", "ts", "click"])
            for k in range(first, last):
                # One impression an hour; every user comes with a session of three.
                row = [f"u{k // 3 % 5}", 100 + rng.integers(20), 1_700_000_000 + 3600 * k, k % 2]
                writer.writerow(row)
        return tmp_path / name

    monday, tuesday = write("monday.csv", 0, 90), write("tuesday.csv", 90, 120)
    both = tmp_path / "both.csv"
    lines = tuesday.read_text().splitlines(keepends=True)
    both.write_text(monday.read_text() + "".join(lines[1:]))
    mapping = tmp_path / "map.yaml"
    mapping.write_text(
        "user: uid\nitem: vid\ntime: ts\ntime_unit: s\nwindow_ms: 10800000\n"
        "labels: {click: click}\nhistory: {clicked: {where: click}}\n"
    )
    log, whole = tmp_path / "log", tmp_path / "whole"
    for src, out in ((monday, log), (both, whole)):
        done = cli("data", "import", "parquet", src, out, "--map", mapping)
        assert done.status == 0, done.err
    refused = cli("data", "append", log, both, "--map", mapping)
    assert "append only requests that come later" in refused.error
    done = cli("data", "append", log, both, "--map", mapping, "--skip-old", "--part", "tuesday")
    assert done.status == 0, done.err
    rows, expected = (
        [row for table in raw_requests(open_log(path)) for row in table.to_pylist()]
        for path in (log, whole)
    )
    assert len({row["request_id"] for row in rows}) == len(rows)
    for row in (*rows, *expected):
        row.pop("request_id")
    assert rows == expected  # histories reach back over the days before
    assert open_log(log)["tuesday"].num_requests == 10


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("data", "append", "{log}", "{log}"), "cannot be appended to itself"),
        (("data", "append", "{log}", "{log}/manifest.json"), "give --map FILE"),
        (("data", "append", "{log}", "{out}/none"), "no such log"),
        (("data", "append", "{log}", "{tuesday}", "--part", " "), "--part"),
        (("data", "append", "{log}", "{tuesday}", "--part", "train"), "exists already"),
        (("data", "join-labels", "{log}", "{out}/none.csv"), "not found"),
        (("data", "join-labels", "{log}", "{late}", "--window", "buy"), "expected LABEL=LENGTH"),
        (("data", "join-labels", "{log}", "{late}", "--window", "buy=7w"), "window '7w'"),
        (("data", "join-labels", "{log}", "{late}", "--window", "bye=7d"), "did you mean 'buy'"),
        (("data", "join-labels", "{log}", "{late}", "--observed-until", "soon"), "expected a time"),
        (("data", "stats", "{log}", "--windows", "7"), "window '7'"),
        (("data", "stats", "{log}", "--windows", "7h"), "no multiple of 1d"),
        (("data", "stats", "{log}", "--prior", "-1"), "prior -1"),
        (("score", "{run}", "--log", "{log}"), "give one of --out FILE"),
        (("score", "{run}", "--log", "{log}", "--out", "x", "--into", "{log}"), "give one of"),
        (("score", "{run}", "--into", "{log}"), "--as: missing"),
        (("score", "{run}", "--out", "x"), "--log: missing"),
        (("score", "{run}", "--log", "{log}", "--out", "x", "--as", "t"), "--as: names scores"),
        (("score", "{run}", "--into", "{log}", "--as", "ranker"), "came with scores 'ranker'"),
        (("score", "{run}", "--into", "{log}", "--as", "a/b"), "a name is of letters"),
        (("score", "{run}", "--into", "{log}", "--as", "t", "--part", "non"), "no part 'non'"),
        (
            ("train", "mlp", "--log", "{log}", "--out", "{out}/r", "--noise", "1"),
            "only with --from",
        ),
        (
            ("train", "mlp", "--log", "{log}", "--out", "{out}/r", "--from", "{out}/none"),
            "no run there",
        ),
        (
            ("train", "two_tower", "--log", "{log}", "--out", "{out}/r", "--from", "{run}"),
            "use the model of the run",
        ),
    ],
)
def test_bad_usage_is_one_line_and_changes_nothing(
    cli: Cli,
    days: dict[str, Path],
    runs: dict[str, Path],
    tmp_path: Path,
    words: tuple[str, ...],
    says: str,
) -> None:
    late = tmp_path / "late.csv"
    late.write_text("request_id,item,buy\n0,1000000,1\n")
    places = {"log": days["monday"], "out": tmp_path, "late": late, "run": runs["mlp"]}
    before = (days["monday"] / "manifest.json").read_bytes()
    done = cli(*(word.format(**places, tuesday=days["tuesday"]) for word in words))
    assert done.status == 2
    assert says in done.error
    assert (days["monday"] / "manifest.json").read_bytes() == before
    assert not (tmp_path / "r").exists()


def test_another_layout_is_refused_by_what_differs(
    cli: Cli, monday: Path, days: dict[str, Path], tmp_path: Path
) -> None:
    log = open_log(days["tuesday"])
    table = pa.concat_tables(list(raw_requests(log)))
    features = tuple(f for f in log.schema.features if f.name != "device")
    bare = msgspec.structs.replace(log.schema, features=features, vocabularies={})
    write_log(tmp_path / "other", bare, [table.drop_columns(["device"])], raw_items(log))
    says = cli("data", "append", monday, tmp_path / "other").error
    assert "context feature 'device' is in one of the two only" in says


def test_the_commands_of_the_page(
    cli: Cli, days: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shell blocks of the page on the daily loop, as they stand."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(days["monday"], "logs/shop")
    shutil.copytree(days["tuesday"], "logs/tuesday")
    Path("orders.csv").write_text("request_id,item,buy\n0,1000000,1\n")
    for run in ("monday", "teacher"):
        words = ("train", "mlp", "--log", "logs/shop", "--out", f"runs/{run}")
        assert cli(*words, "--set", "fit.epochs=1").status == 0
    page = Path(__file__).resolve().parents[2] / "docs" / "daily-loop.md"
    blocks = re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) == 6
    for line in lines:
        program, *given = shlex.split(line)
        assert program == "prerank"
        done = cli(*given)
        assert done.status == 0, f"{line}\n{done.err}"
    assert open_log("logs/shop").schema.scores == ("ranker", "teacher")
