"""Tables with something wrong in them are refused by file, row group and column."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prerank.errors import InputError
from prerank.log import Log, Transforms, check_log, open_log

Change = Callable[[pa.Table], pa.Table]
PART = "requests/part-00000.parquet"


def _read_all(path: Path) -> None:
    log = open_log(path)
    transforms = Transforms.fit(log.all())
    for _ in log.all().batches(transforms, 7, prefetch=0):
        pass


def _set(column: str, edit: Callable[[list[Any]], None]) -> Change:
    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        edit(values)
        array = pa.array(values, type=table[column].type)
        return table.set_column(table.column_names.index(column), column, array)

    return change


def _long(values: list[Any]) -> list[Any]:
    """A row with candidates of the second row group, where the tampering happens."""
    return next(row for row in values[4:8] if row)


def _put(value: Any) -> Callable[[list[Any]], None]:
    def edit(values: list[Any]) -> None:
        _long(values)[0] = value

    return edit


def _shorten(values: list[Any]) -> None:
    _long(values).pop()


@pytest.mark.parametrize(
    ("column", "change", "says"),
    [
        ("candidates.item", _put(99), "has index 99, outside its 14 rows of vocabulary 'item'"),
        ("candidates.item", _put(-1), "has index -1, outside its 14 rows"),
        ("candidates.item", _put(None), "has a null"),
        ("candidates.slot", _put(77), "has index 77, outside its 5 rows of vocabulary 'slot'"),
        ("history.clicks.item", _put(99), "has index 99, outside its 14 rows"),
        ("interests", _put(50), "has index 50, outside its 5 rows of vocabulary 'interests'"),
        ("candidates.stage", _put(5), "has index 5, outside its 5 names"),
        ("candidates.channel", _put(2), "has index 2, outside its 2 names"),
        ("candidates.affinity", _put(float("nan")), "has 1 values that are not finite"),
        ("candidates.affinity", _put(float("inf")), "has 1 values that are not finite"),
        ("candidates.weight", _shorten, "has lists of another length than 'candidates'"),
        ("labels.click", _shorten, "has lists of another length than 'candidates'"),
        ("history.clicks.act", _shorten, "has lists of another length than 'history.clicks'"),
        ("profile", _shorten, "is not 2 wide in every row"),
    ],
)
def test_a_tampered_list_is_refused_by_name(
    rich_log: Log,
    copy_of: Callable[[Log], Path],
    tamper: Callable[..., None],
    column: str,
    change: Callable[[list[Any]], None],
    says: str,
) -> None:
    path = copy_of(rich_log)
    tamper(path, PART, _set(column, change))
    with pytest.raises(InputError, match=says) as error:
        _read_all(path)
    assert f"{path}/{PART}: row group 1: column '{column}' {says}" in str(error.value)
    assert "\n" not in str(error.value)
    assert "the log is damaged" in str(error.value)
    report = check_log(path)
    assert [f.where for f in report.findings if f.level == "error"] == [PART]
    assert report.counts["row_groups_unreadable"] == 1


def _first(value: Any) -> Callable[[list[Any]], None]:
    def edit(values: list[Any]) -> None:
        values[5] = value

    return edit


def _cast(column: str, kind: pa.DataType) -> Change:
    def change(table: pa.Table) -> pa.Table:
        index = table.column_names.index(column)
        return table.set_column(index, column, table[column].cast(kind))

    return change


def _age_nan(values: list[Any]) -> None:
    values[5] = float("nan")


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        (PART, _set("user", _first(50)), "column 'user' has index 50, outside its 7 rows"),
        (PART, _set("user", _first(None)), "column 'user' has a null"),
        (PART, _set("age", _age_nan), "column 'age' has 1 values that are not finite"),
        (PART, _set("time", _first(None)), "column 'time' has a null"),
        (PART, _cast("time", pa.string()), "column 'time' holds string, expected int64"),
        (PART, _cast("segment", pa.int64()), "column 'segment' holds int64, expected int32"),
        (
            PART,
            _cast("labels.click", pa.list_(pa.string())),
            "column 'labels.click' holds string, expected float",
        ),
        (PART, lambda t: t.drop(["labels.buy"]), "no column 'labels.buy', which schema.json"),
        (
            PART,
            lambda t: t.drop(["candidates.item"]).append_column("candidates.item", t["time"]),
            "column 'candidates.item' is not a list in every row",
        ),
        (PART, _set("candidates.item", _first(None)), "is not a list in every row"),
        (PART, lambda t: t.slice(0, 7), "row group 1 has 3 rows, expected 4"),
        (PART, lambda t: t.slice(0, 4), "row group 1 cannot be read"),
        ("items.parquet", lambda t: t.slice(0, 9), "9 rows, but schema.json counts 14 items"),
        ("items.parquet", lambda t: t.drop(["emb"]), "no column 'emb'"),
        ("items.parquet", _set("genre", _first(9)), "column 'genre' has index 9, outside its 4"),
        ("items.parquet", _set("genre", _first(None)), "column 'genre' has a null"),
        ("items.parquet", _set("emb", _first([1.0])), "column 'emb' is not 3 wide in every row"),
        ("items.parquet", _set("emb", _first(None)), "column 'emb' is not a list in every row"),
        ("items.parquet", _set("tags", _first([88])), "column 'tags' has index 88, outside its 5"),
        ("items.parquet", _set("price", _age_nan), "column 'price' has 1 values that are not"),
        ("items.parquet", _set("item_id", _first(0)), "a raw value is null or stands twice"),
        ("vocab/user.parquet", lambda t: t.slice(0, 6), "6 rows, but schema.json counts 7"),
        (
            "vocab/user.parquet",
            _set("value", lambda v: v.reverse()),
            "rows 0 and 1 are reserved and must be null",
        ),
    ],
)
def test_a_tampered_table_is_refused_by_name(
    rich_log: Log,
    copy_of: Callable[[Log], Path],
    tamper: Callable[..., None],
    name: str,
    change: Change,
    says: str,
) -> None:
    path = copy_of(rich_log)
    tamper(path, name, change)
    with pytest.raises(InputError, match=says) as error:
        _read_all(path)
    assert f"{path}/{name}: " in str(error.value)
    assert "\n" not in str(error.value)
    report = check_log(path)
    assert {f.where for f in report.findings if f.level == "error"} == {name}


def test_a_history_that_reaches_its_request_is_refused(
    rich_log: Log, copy_of: Callable[[Log], Path], tamper: Callable[..., None]
) -> None:
    path = copy_of(rich_log)
    times = pq.read_table(path / PART)["time"].to_pylist()
    lists = pq.read_table(path / PART)["history.likes.time"].to_pylist()
    row = next(r for r in range(4, 8) if lists[r])

    def reach(values: list[Any]) -> None:
        values[row][-1] = times[row]

    tamper(path, PART, _set("history.likes.time", reach))
    says = f"'history.likes' of request row {row} reaches the request's own time or past it"
    with pytest.raises(InputError, match=says):
        _read_all(path)
    (finding,) = [f for f in check_log(path).findings if f.level == "error"]
    assert (finding.where, says in finding.message) == (PART, True)
