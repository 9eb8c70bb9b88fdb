"""The writer: what it refuses and how it says so; what it stores of odd but lawful input."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prerank.errors import InputError
from prerank.log import Log, open_log, write_log
from prerank.log.format.files import read_json
from prerank.log.split import Splits
from prerank.schema import Feature, Label, Schema

SCHEMA = Schema(
    features=(
        Feature(name="item", owner="item", kind="categorical"),
        Feature(name="price", owner="item", kind="dense"),
        Feature(name="emb", owner="item", kind="vector", dim=2),
        Feature(name="device", owner="context", kind="categorical"),
        Feature(name="x", owner="candidate", kind="dense"),
    ),
    streams=("clicks",),
    labels=(Label(name="click"),),
    ranks=("rank",),
)
TIME = 1_600_000_000_000


def _table(**change: Any) -> pa.Table:
    """Two requests of SCHEMA; a changed column of None is left out."""
    columns: dict[str, Any] = {
        "request_id": [1, 2],
        "user": ["u", "v"],
        "time": [TIME, TIME + 1],
        "device": ["phone", None],
        "history.clicks.item": [[10], []],
        "history.clicks.time": [[TIME - 5], []],
        "candidates.item": [[10, 20], [20]],
        "candidates.stage": [["exposed", "rank"], ["pool"]],
        "candidates.rank.rank": [[0, 1], [None]],
        "candidates.x": [[0.5, None], [1.0]],
        "labels.click": [[1.0, None], [None]],
    }
    columns |= change
    return pa.table({k.replace("__", "."): v for k, v in columns.items() if v is not None})


def _items(**change: Any) -> pa.Table:
    return pa.table({"item_id": [10, 30], "price": [1.0, 2.0]} | change)


def _columns(log: Log) -> Any:
    (columns,) = log.all().columns(100, with_ids=True)
    return columns


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"clock": [1, 2]}, "column 'clock' is not in the schema; known: "),
        ({"devise": ["a", "b"]}, "column 'devise' is not in the schema; did you mean 'device'?"),
        ({"time": None}, "requests: no column 'time', which every table of requests needs"),
        ({"request_id": None}, "no column 'request_id'"),
        ({"candidates.stage": None}, "no column 'candidates.stage'"),
        ({"history.clicks.time": None}, "no column 'history.clicks.time'"),
        ({"time": [TIME, None]}, "column 'time' has a null"),
        ({"time": [TIME, TIME - 1]}, "time goes back at request 2; sort the requests by time"),
        ({"time": ["yesterday", "now"]}, "column 'time' is string; expected int64"),
        ({"user": ["u", None]}, "column 'user' has a null; every request needs its user"),
        ({"request_id": [1, None]}, "column 'request_id' has a null"),
        (
            {"candidates.stage": [["exposed", "rnk"], ["pool"]]},
            "column 'candidates.stage' says 'rnk'; did you mean 'rank'?",
        ),
        (
            {"candidates.stage": [["exposed", None], ["pool"]]},
            "column 'candidates.stage' has a null; expected one of",
        ),
        (
            {"labels.click": [[1.0, None], []]},
            "request 2: list 'labels.click' has 0 values, 'candidates.item' 1; lists of one group",
        ),
        (
            {"history.clicks.item": [[10, 20], []]},
            "request 1: list 'history.clicks.time' has 1 values, 'history.clicks.item' 2",
        ),
        ({"labels.click": [1.0, 0.0]}, "column 'labels.click' is double; expected a list per row"),
        ({"candidates.x": [["a", "b"], ["c"]]}, "column 'candidates.x' is string; expected double"),
        ({"candidates.item": [[10, 10], [20]]}, "request 1 lists item 10 twice"),
        ({"candidates.item": [[1.5, 2.0], [2.0]]}, "raw values are double; expected integers"),
        (
            {"history.clicks.time": [[TIME], []]},
            "request 1: 'history.clicks.time' reaches the request's own time or past it",
        ),
        (
            {
                "history.clicks.time": [[TIME - 5, TIME - 6], []],
                "history.clicks.item": [[10, 20], []],
            },
            "request 1: 'history.clicks.time' is not sorted; put the oldest event first",
        ),
        ({"history.clicks.time": [[None], []]}, "column 'history.clicks.time' has a null time"),
    ],
)
def test_bad_requests_are_refused_by_name_and_leave_nothing(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError) as error:
        write_log(tmp_path / "log", SCHEMA, [_table(**change)], _items())
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("items", "says"),
    [
        (
            pa.table({"id": [1]}),
            "items: column 'id' is not in the schema; known: emb, item_id, price",
        ),
        (pa.table({"price": [1.0]}), "items: no column 'item_id'"),
        (_items(item_id=[10, 10]), "items: column 'item_id' has a null or repeated id"),
        (_items(item_id=[10, None]), "items: column 'item_id' has a null or repeated id"),
        (_items(item_id=["a", "b"]), "vocabulary 'item': raw values are int64, but earlier ones"),
        (_items(emb=[[1.0], [2.0]]), "items: vector 'emb' is not 2 wide everywhere"),
        (_items(price=["a", "b"]), "column 'price' is string; expected double"),
    ],
)
def test_bad_items_are_refused_by_name(tmp_path: Path, items: pa.Table, says: str) -> None:
    with pytest.raises(InputError) as error:
        write_log(tmp_path / "log", SCHEMA, [_table()], items)
    assert says in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_time_may_not_go_back_between_tables(tmp_path: Path) -> None:
    late = _table(time=[TIME - 9, TIME])
    with pytest.raises(InputError, match="time goes back at request 1"):
        write_log(tmp_path / "log", SCHEMA, [_table(), late])


def test_request_ids_have_one_type(tmp_path: Path) -> None:
    named = _table(request_id=["a", "b"], time=[TIME + 5, TIME + 6])
    with pytest.raises(InputError, match="'request_id' is string, but earlier tables had int64"):
        write_log(tmp_path / "log", SCHEMA, [_table(), named])
    small = _table(request_id=pa.array([8, 9], pa.int16()), time=[TIME + 5, TIME + 6])
    write_log(tmp_path / "log", SCHEMA, [_table(), small])
    assert _columns(open_log(tmp_path / "log")).scalars["request_id"].tolist() == [1, 2, 8, 9]


def test_an_empty_input_is_refused(tmp_path: Path) -> None:
    for tables in ([], [_table().slice(0, 0)]):
        with pytest.raises(InputError, match="no request to write; the input is empty"):
            write_log(tmp_path / "log", SCHEMA, tables)
    assert list(tmp_path.iterdir()) == []


def test_the_report_counts_and_progress_adds_up(tmp_path: Path) -> None:
    done: list[int] = []
    second = _table(
        time=[TIME + 5, TIME + 6],
        candidates__item=None,
        **{"candidates.item": [[10, 20], []]},
        **{k: [[None, None], []] for k in ("candidates.rank.rank", "labels.click")},
        **{"candidates.x": [[float("inf"), float("nan")], []]},
        **{"candidates.stage": [["pool", "pool"], []]},
    )
    report = write_log(tmp_path / "log", SCHEMA, [_table(), second], _items(), progress=done.append)
    assert done == [2, 2]
    assert (report.num_requests, report.num_candidates, report.num_items) == (4, 5, 3)
    assert report.counts == {
        "requests": 4,
        "candidates": 5,
        "requests_without_candidates": 1,
        "not_finite:candidates.x": 2,
    }
    log = open_log(tmp_path / "log")
    assert log.manifest.counts == report.counts
    assert log.num_requests == 4
    values = _columns(log).candidates.values["x"]
    assert np.isnan(values[[1, 3, 4]]).all()  # null, infinite, NaN: all missing


def test_columns_left_out_are_missing_everywhere(tmp_path: Path) -> None:
    table = _table(
        device=None, **{"candidates.x": None, "labels.click": None, "candidates.rank.rank": None}
    )
    write_log(tmp_path / "log", SCHEMA, [table], pa.table({"item_id": [10]}))
    log = open_log(tmp_path / "log")
    columns = _columns(log)
    assert columns.scalars["device"].tolist() == [0, 0]
    assert columns.scalars["observed_until"].tolist() == [-1, -1]
    values = columns.candidates.values
    assert np.isnan(values["x"]).all()
    assert np.isnan(values["labels.click"]).all()
    assert values["rank.rank"].tolist() == [-1, -1, -1]
    assert np.isnan(log.items.scalars["price"]).all()
    assert log.items.scalars["emb"].shape == (4, 2)
    assert np.isnan(log.items.scalars["emb"]).all()


def test_a_missing_vector_is_missing_values(tmp_path: Path) -> None:
    for name, kind in (("a", pa.list_(pa.float64())), ("b", pa.list_(pa.float32(), 2))):
        emb = pa.array([None, [1.0, 2.0]], type=kind)
        write_log(tmp_path / name, SCHEMA, [_table()], _items(emb=emb))
        found = open_log(tmp_path / name).items.scalars["emb"][2:]
        np.testing.assert_array_equal(found, [[np.nan] * 2, [1.0, 2.0], [np.nan] * 2])


def test_null_lists_are_empty_lists(tmp_path: Path) -> None:
    table = _table(
        **{
            "history.clicks.item": pa.array([[10], None], pa.list_(pa.int64())),
            "history.clicks.time": pa.array([[TIME - 5], None], pa.list_(pa.int64())),
        }
    )
    write_log(tmp_path / "log", SCHEMA, [table])
    assert _columns(open_log(tmp_path / "log")).groups["history.clicks"].offsets.tolist() == [
        0,
        1,
        1,
    ]


def test_timestamps_become_milliseconds_in_utc(tmp_path: Path) -> None:
    moment = dt.datetime(2020, 9, 13, 12, 26, 40, 250_000, tzinfo=dt.UTC)
    ms = int(moment.timestamp() * 1000)
    for name, kind in (
        ("us", pa.timestamp("us", tz="UTC")),
        ("tokyo", pa.timestamp("ns", tz="Asia/Tokyo")),
        ("naive", pa.timestamp("ms")),
    ):
        aware = pa.timestamp("us", tz="UTC")
        times = pa.array([moment] * 2, aware)
        times = times.cast(pa.timestamp("us")).cast(kind) if name == "naive" else times.cast(kind)
        table = _table(time=times)
        write_log(tmp_path / name, SCHEMA, [table])
        assert _columns(open_log(tmp_path / name)).scalars["time"].tolist() == [ms, ms]


def test_large_whole_numbers_are_dense_values_too(tmp_path: Path) -> None:
    counts = [[2**25 + 2, None], [3]]
    write_log(tmp_path / "log", SCHEMA, [_table(**{"candidates.x": counts})])
    assert _columns(open_log(tmp_path / "log")).candidates.values["x"][0] == 2**25 + 2


def test_item_ids_of_any_integer_type_join_those_of_requests(tmp_path: Path) -> None:
    items = _items(item_id=pa.array([30, 10], pa.int16()))
    write_log(tmp_path / "log", SCHEMA, [_table()], items)
    log = open_log(tmp_path / "log")
    assert log.items.ids.values.to_pylist() == [None, None, 30, 10, 20]
    np.testing.assert_array_equal(log.items.scalars["price"], [np.nan, np.nan, 1, 2, np.nan])
    assert log.schema.vocabularies == {"user": 4, "item": 5, "device": 3}


def test_row_groups_do_not_depend_on_the_cut_into_tables(
    tmp_path: Path,
    to_table: Callable[..., pa.Table],
    make_rows: Callable[..., Any],
    small_groups: Callable[..., Any],
    schema: Schema,
) -> None:
    table = to_table(make_rows(23, seed=5))
    for chunk in (1, 4, 7, 23):
        pieces = [table.slice(i, chunk) for i in range(0, 23, chunk)]
        with small_groups(5, 2):
            write_log(tmp_path / str(chunk), schema, pieces)
            write_log(tmp_path / f"{chunk} again", schema, pieces)
        log = open_log(tmp_path / str(chunk))
        assert open_log(tmp_path / f"{chunk} again").manifest.files == log.manifest.files
        files = [entry for name, entry in log.manifest.files.items() if "requests/" in name]
        assert [(f.rows, f.row_group) for f in files] == [(10, 5), (10, 5), (3, 5)]
        for name, entry in log.manifest.files.items():
            if entry.rows:
                meta = pq.ParquetFile(log.path / name).metadata
                sizes = [meta.row_group(g).num_rows for g in range(meta.num_row_groups)]
                assert max(sizes) <= 5
                assert sum(sizes) == entry.rows


def test_row_groups_hold_so_many_candidates_whatever_the_first_table(tmp_path: Path) -> None:
    def table(lo: int, hi: int, width: int) -> pa.Table:
        rows = hi - lo
        items, none = [list(range(width))] * rows, [[None] * width] * rows
        return _table(
            request_id=list(range(lo, hi)),
            user=["u"] * rows,
            time=[TIME] * rows,
            device=None,
            **{
                "history.clicks.item": [[]] * rows,
                "history.clicks.time": pa.array([[]] * rows, pa.list_(pa.int64())),
                "candidates.item": items,
                "candidates.stage": [["pool"] * width] * rows,
                "candidates.rank.rank": none,
                "candidates.x": none,
                "labels.click": none,
            },
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prerank.log.format.parts._GROUP_CANDIDATES", 1000)
        patch.setattr("prerank.log.format.parts._GROUP_REQUESTS", (2, 8192))
        write_log(tmp_path / "log", SCHEMA, [table(0, 1, 1), table(1, 200, 100)])
    log = open_log(tmp_path / "log")
    sizes = np.diff(log._starts)
    assert sizes.max() <= 20  # not 1000, as one request with one candidate would suggest


def test_splits_and_extra_files_belong_to_the_log(tmp_path: Path) -> None:
    splits = {"train": np.array([0]), "test": np.array([1])}
    write_log(
        tmp_path / "log",
        SCHEMA,
        [_table()],
        splits=splits,
        splits_rule="mine",
        extra={"truth": [1]},
    )
    assert read_json(tmp_path / "log" / "splits.json", Splits).rule == "mine"
    assert read_json(tmp_path / "log" / "truth.json", list) == [1]
    assert {"schema.json", "truth.json"} < set(open_log(tmp_path / "log").manifest.files)
    for bad, says in (({"a": np.array([2])}, "outside"), ({"a": [0], "b": [0]}, "overlap")):
        with pytest.raises(InputError, match=says):
            write_log(tmp_path / "bad", SCHEMA, [_table()], splits=bad)  # type: ignore[arg-type]
    assert not (tmp_path / "bad").exists()
