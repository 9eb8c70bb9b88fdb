"""MIND: rows against a plain reading of the file."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prerank.adapters.mind import import_mind
from prerank.errors import InputError
from prerank.log import open_log
from prerank.log.impressions.flatten import to_impressions

Sample = Callable[[Path], None]


def _read(path: Path) -> dict[int, dict[str, Any]]:
    with pa.input_stream(str(path), compression="zstd" if path.suffix == ".zst" else None) as file:
        text = file.read().decode()
    rows = {}
    for line in text.splitlines():
        number, user, time, past, shown = line.split("\t")
        moment = dt.datetime.strptime(time, "%m/%d/%Y %I:%M:%S %p").replace(tzinfo=dt.UTC)
        marks = [mark.rsplit("-", 1) for mark in shown.split()]
        rows[int(number)] = {
            "user": user,
            "time": int(moment.timestamp() * 1000),
            "past": past.split(),
            "shown": [(item, float(click)) for item, click in marks],
        }
    return rows


def _check_against_the_file(log_path: Path, behaviors: Path, max_history: int) -> None:
    log = open_log(log_path)
    expected = _read(behaviors)
    tables = [pq.read_table(path) for path in sorted((log_path / "requests").iterdir())]
    requests = pa.concat_tables(tables)
    items, users = log.vocabulary("item").values, log.vocabulary("user").values
    assert sorted(requests["request_id"].to_pylist()) == sorted(expected)
    columns = ("request_id", "user", "time", "history.clicked.item", "history.clicked.time")
    columns += ("candidates.item", "labels.click")
    for number, user, time, past, past_time, shown, click in zip(
        *(requests[name] for name in columns), strict=True
    ):
        row = expected[number.as_py()]
        raw_past = items.take(past.values).to_pylist()
        raw_shown = items.take(shown.values).to_pylist()
        assert (users[user.as_py()].as_py(), time.as_py()) == (row["user"], row["time"])
        assert raw_past == row["past"][-max_history:]
        assert past_time.as_py() == [row["time"] - k for k in range(len(raw_past), 0, -1)]
        assert list(zip(raw_shown, click.as_py(), strict=True)) == row["shown"]


@pytest.mark.parametrize("max_history", [1, 3, 100])
def test_a_small_file_comes_out_as_it_went_in(
    max_history: int, samples: dict[str, Sample], tmp_path: Path
) -> None:
    samples["mind"](tmp_path)
    import_mind(tmp_path, tmp_path / "log", max_history=max_history)
    _check_against_the_file(tmp_path / "log", tmp_path / "behaviors.tsv", max_history)


def test_news_features_where_news_has_rows(samples: dict[str, Sample], tmp_path: Path) -> None:
    samples["mind"](tmp_path)
    report = import_mind(tmp_path, tmp_path / "log")
    rows = pa.concat_tables(to_impressions(open_log(tmp_path / "log"))).to_pylist()
    for row in rows:
        number = int(row["item"][1:])
        found = (row["item.category"], row["item.subcategory"], row["item.title_words"])
        if number == 3:
            assert found == ("sports", None, None)
        elif number < 20:
            assert found == ("news", f"world{number % 3}", 6.0)
        else:
            assert found == (None, None, None)
        assert row["stage"] == "exposed"
    unlisted = sum(int(row["item"][1:]) >= 20 for row in rows)
    assert report.counts["candidates_without_news"] == unlisted
    assert report.counts["clicks"] == sum(row["label.click"] for row in rows)
    assert "rank.exposed" not in rows[0]


def test_parts_go_by_time(samples: dict[str, Sample], tmp_path: Path) -> None:
    samples["mind"](tmp_path)
    report = import_mind(tmp_path, tmp_path / "log")
    log = open_log(tmp_path / "log")
    times, _ = log.request_times()
    ends = []
    for name in ("train", "valid", "test"):
        rows = log[name].rows.within(0, log.num_requests)
        ends += [times[rows].min(), times[rows].max()]
    assert ends == sorted(ends)
    assert ends[1] < ends[2]
    assert ends[3] < ends[4]
    assert report.parts == {"train": 24, "valid": 3, "test": 3}


ROW = "7\tU1\t11/9/2019 6:42:51 PM\tN1\tN2-1 N3-0"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (ROW.replace("PM", ""), r"behaviors\.tsv:2: time '11/9/2019 6:42:51' is not like"),
        (ROW.replace("11/9", "13/9"), r"behaviors\.tsv:2: time"),
        (ROW.replace("N3-0", "N3-2"), r"behaviors\.tsv:2: impression 'N3-2' is not like"),
        (ROW.replace("N3-0", "-0"), r"behaviors\.tsv:2: impression '-0'"),
        (ROW.replace("7\t", "6\t"), r"behaviors\.tsv:2: impression id stands on an earlier"),
        (ROW.replace("7\t", "x\t"), r"behaviors\.tsv:2: 'impression': not read to int64"),
        (ROW.replace("\tN1", ""), r"behaviors\.tsv:2: Expected 5 columns, got 4"),
        (ROW.replace("N2-1 N3-0", ""), r"behaviors\.tsv:2: 'shown' is empty"),
    ],
)
def test_a_bad_row_is_named(
    line: str, message: str, samples: dict[str, Sample], tmp_path: Path
) -> None:
    samples["mind"](tmp_path)
    (tmp_path / "behaviors.tsv").write_text(f"{ROW.replace('7', '6', 1)}\n{line}\n")
    with pytest.raises(InputError, match=message):
        import_mind(tmp_path, tmp_path / "log")


def test_unmarked_impressions_are_not_observed(samples: dict[str, Sample], tmp_path: Path) -> None:
    samples["mind"](tmp_path)
    (tmp_path / "behaviors.tsv").write_text(ROW.replace("-1", "").replace("-0", "") + "\n")
    import_mind(tmp_path, tmp_path / "log")
    (flat,) = to_impressions(open_log(tmp_path / "log"))
    assert flat["label.click"].to_pylist() == [None, None]


def test_an_item_shown_again_is_merged(samples: dict[str, Sample], tmp_path: Path) -> None:
    samples["mind"](tmp_path)
    later = ROW.replace("7", "8", 1).replace("11/9", "11/8").replace("N3-0", "N5-0 N2-0 N3-0")
    (tmp_path / "behaviors.tsv").write_text(ROW.replace("N3-0", "N3-0 N3-1") + f"\n{later}\n")
    report = import_mind(tmp_path, tmp_path / "log")
    assert report.counts["merged_impressions"] == 2
    (flat,) = to_impressions(open_log(tmp_path / "log"))
    found = zip(*(flat[n].to_pylist() for n in ("request_id", "item", "label.click")), strict=True)
    assert list(found) == [(8, "N2", 1), (8, "N5", 0), (8, "N3", 0), (7, "N2", 1), (7, "N3", 1)]


def test_a_news_id_that_stands_twice_keeps_its_first_row(
    samples: dict[str, Sample], tmp_path: Path
) -> None:
    samples["mind"](tmp_path)
    with (tmp_path / "news.tsv").open("a") as file:
        file.write("N0\tother\t\t\t\t\t\t\n")
    report = import_mind(tmp_path, tmp_path / "log")
    assert report.counts["repeated_news"] == 1


def test_the_real_slates(real_data: Path, tmp_path: Path) -> None:
    report = import_mind(real_data / "mind5k", tmp_path / "log")
    assert (report.num_requests, report.num_candidates) == (5_000, 189_359)
    assert report.counts["clicks"] == 7_542
    assert report.num_users == 4_637
    assert 0.027 < 1 - report.counts["candidates_without_news"] / 189_359 < 0.029
    _check_against_the_file(
        tmp_path / "log", real_data / "mind5k" / "behaviors.tsv.zst", max_history=100
    )
    sizes = [
        len(shown)
        for path in (tmp_path / "log" / "requests").iterdir()
        for shown in pq.read_table(path)["candidates.item"]
    ]
    assert (min(sizes), max(sizes)) == (2, 283)
