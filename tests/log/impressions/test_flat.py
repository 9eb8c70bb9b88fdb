"""Values of flat tables: converted, or refused by name."""

from __future__ import annotations

import datetime as dt

import pyarrow as pa
import pytest

from prerank.errors import InputError
from prerank.log.impressions.flat import feature_values, ids, numbers, times, words
from prerank.log.impressions.mapping import ColumnMap

MOMENT = dt.datetime(2019, 11, 9, 18, 42, 51, 999_999, tzinfo=dt.UTC)
MOMENT_MS = 1_573_324_971_999


@pytest.mark.parametrize(
    ("values", "unit"),
    [
        (pa.array([MOMENT], pa.timestamp("us", "UTC")), "s"),
        (pa.array([MOMENT], pa.timestamp("ns", "Asia/Tokyo")), "s"),
        (pa.array([MOMENT.replace(tzinfo=None)], pa.timestamp("us")), "s"),
        (pa.array([MOMENT_MS * 1000 + 999]), "us"),
        (pa.array([MOMENT_MS * 1_000_000 + 1]), "ns"),
        (pa.array([MOMENT_MS]), "ms"),
        (pa.array([MOMENT_MS / 1000]), "s"),
        (pa.array(["2019-11-09T18:42:51.999999Z"]), "s"),
        (pa.array(["2019-11-09 18:42:51.999"]), "s"),
        (pa.array([" 2019-11-10T03:42:51.999+09:00 "]), "s"),
    ],
)
def test_times_are_utc_milliseconds_rounded_down(values: pa.Array, unit: str) -> None:
    found = times(pa.table({"t": values}), "t", unit)  # type: ignore[arg-type]
    assert found.type == pa.int64()
    assert found.to_pylist() == [MOMENT_MS]


def test_times_before_1970_round_down_too() -> None:
    assert times(pa.table({"t": [-1, None]}), "t", "us").to_pylist() == [-1, None]


def test_dates_and_bad_times() -> None:
    assert times(pa.table({"t": [dt.date(1970, 1, 2)]}), "t", "s").to_pylist() == [86_400_000]
    with pytest.raises(InputError, match=r"column 't'.*'yesterday.*expected ISO 8601"):
        times(pa.table({"t": ["2019-11-09", "yesterday"]}), "t", "s")
    with pytest.raises(InputError, match="column 't' is bool; expected times"):
        times(pa.table({"t": [True]}), "t", "s")


def test_ids_are_integers_or_text() -> None:
    table = pa.table(
        {
            "gaps": pa.array([1.0, None, float("nan")]),
            "small": pa.array([1, 2, 3], pa.int8()),
            "coded": pa.array(["a", "b", "a"]).dictionary_encode(),
            "real": [0.5, 1.0, 2.0],
            "day": pa.array([dt.date(2020, 1, 1)] * 3),
        }
    )
    assert ids(table, "gaps").to_pylist() == [1, None, None]
    assert ids(table, "small").type == pa.int64()
    assert ids(table, "coded").to_pylist() == ["a", "b", "a"]
    for column in ("real", "day"):
        with pytest.raises(InputError, match=f"column '{column}' is .*an id or category"):
            ids(table, column)


def test_ids_above_two_to_the_24_stay_exact() -> None:
    big = [2**24 + 1, 2**53 + 1, -5]
    assert ids(pa.table({"i": big}), "i").to_pylist() == big


def test_numbers_and_words() -> None:
    table = pa.table({"flag": [True, None], "word": ["a", "b"], "half": [0.5, 1.0]})
    assert numbers(table, "flag").to_pylist() == [1.0, None]
    assert words(table, "word").to_pylist() == ["a", "b"]
    with pytest.raises(InputError, match="'word' is string; expected numbers"):
        numbers(table, "word")
    with pytest.raises(InputError, match="'half' holds fractions"):
        numbers(table, "half", pa.int32())
    with pytest.raises(InputError, match="'flag' is bool; expected names"):
        words(table, "flag")


def test_multi_values_from_text_and_lists() -> None:
    table = pa.table({"text": ["a| b|", "", None], "list": [["x"], None, []], "one": [1, 2, 3]})
    text, _ = feature_values(table, ColumnMap(column="text", kind="multi", separator="|"))
    assert text.to_pylist() == [["a", "b"], [], None]
    lists, _ = feature_values(table, ColumnMap(column="list", kind="multi"))
    assert lists.to_pylist() == [["x"], None, []]
    for column in ("text", "one"):
        with pytest.raises(InputError, match=f"'{column}' is .*; give its separator"):
            feature_values(table, ColumnMap(column=column, kind="multi"))


def test_vectors_have_one_width() -> None:
    spec = ColumnMap(column="v", kind="vector")
    values, width = feature_values(pa.table({"v": [[1.0, 2.0], None]}), spec)
    assert (values.to_pylist(), width) == ([[1.0, 2.0], None], 2)
    fixed = pa.array([[1.0, 2.0]], pa.list_(pa.float64(), 2))
    assert feature_values(pa.table({"v": fixed}), spec)[1] == 2
    with pytest.raises(InputError, match="vectors of 2 different widths"):
        feature_values(pa.table({"v": [[1.0], [1.0, 2.0]]}), spec)
