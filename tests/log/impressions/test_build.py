"""Flat impressions to requests and back, against a dictionary that says the same thing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pv
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prerank.errors import InputError
from prerank.log import open_log
from prerank.log.impressions.build import from_impressions, group_impressions
from prerank.log.impressions.flatten import to_impressions
from prerank.log.impressions.mapping import ColumnMap, HistoryRule, ImpressionMap
from prerank.schema import Feature

MAPPING = ImpressionMap(
    user="u",
    item="i",
    time="t",
    request_id="r",
    labels={"click": "click", "watch": "watch"},
    engaged="click or watch >= 10",
    features={
        "user": {"gender": ColumnMap(column="gender")},
        "context": {"bid": ColumnMap(column="bid", kind="dense")},
        "item": {
            "category": ColumnMap(column="category"),
            "tags": ColumnMap(column="tags", kind="multi", separator="|"),
            "image": ColumnMap(column="image", kind="vector"),
        },
        "candidate": {"price": ColumnMap(column="price", kind="dense")},
    },
    position="slot",
    stage="stage",
    channel="channel",
    propensity="prop",
    weight="w",
    scores={"final": "s"},
    history={
        "clicked": HistoryRule(
            where="click", max_len=3, features={"watch": ColumnMap(column="watch", kind="dense")}
        ),
        "seen": HistoryRule(max_len=2),
    },
)

# The name that to_impressions gives each column of the flat tables made here.
NAMES = {
    "r": "request_id",
    "u": "user",
    "t": "time",
    "i": "item",
    "click": "label.click",
    "watch": "label.watch",
    "gender": "user.gender",
    "bid": "context.bid",
    "category": "item.category",
    "tags": "item.tags",
    "image": "item.image",
    "price": "candidate.price",
    "slot": "rank.exposed",
    "stage": "stage",
    "channel": "channel",
    "prop": "propensity",
    "w": "weight",
    "s": "score.final",
}

maybe = st.one_of(st.none(), st.integers(0, 20).map(float))


@st.composite
def flat_tables(draw: st.DrawFn) -> pa.Table:
    """Consistent impressions: constant per request and item, no item twice in a request."""
    of_item = draw(
        st.lists(
            st.tuples(st.sampled_from(["x", "y", None]), st.booleans()), min_size=4, max_size=4
        )
    )
    rows: list[dict[str, Any]] = []
    for request in range(draw(st.integers(1, 6))):
        shared = {
            "r": f"r{request}",
            "u": draw(st.integers(0, 2)),
            "t": draw(st.integers(0, 5)),
            "gender": draw(st.sampled_from(["f", "m", None])),
            "bid": draw(maybe),
        }
        for item in draw(st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True)):
            category, tagged = of_item[item]
            rows.append(
                shared
                | {
                    "i": f"item{item}",
                    "category": category,
                    "tags": "a|b" if tagged else "",
                    "image": [float(item), 1.0],
                    "click": draw(st.sampled_from([0, 1, None])),
                    "watch": draw(maybe),
                    "price": draw(maybe),
                    "slot": draw(st.one_of(st.none(), st.integers(0, 9))),
                    "stage": draw(st.sampled_from(["rank", "exposed"])),
                    "channel": draw(st.sampled_from(["i2i", "hot", None])),
                    "prop": 0.5,
                    "w": 2.0,
                    "s": draw(maybe),
                }
            )
    kinds = {"click": pa.int8(), "watch": pa.float32(), "bid": pa.float64(), "slot": pa.int64()}
    kinds |= dict.fromkeys(("gender", "category", "channel"), pa.string())
    kinds |= dict.fromkeys(("price", "s"), pa.float32())
    return pa.table(
        {name: pa.array([row[name] for row in rows], kinds.get(name)) for name in rows[0]}
    )


def _key(row: dict[str, Any]) -> tuple[str, str]:
    return row["request_id"], row["item"]


@given(flat_tables())
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_there_and_back_again(tmp_path_factory: pytest.TempPathFactory, table: pa.Table) -> None:
    out = tmp_path_factory.mktemp("log") / "log"
    report = from_impressions(table, MAPPING, out)
    back = [row for part in to_impressions(open_log(out), batch_size=2) for row in part.to_pylist()]
    expected = [{NAMES[name]: value for name, value in row.items()} for row in table.to_pylist()]
    for row in expected:
        row["observed_until"] = None
        row["item.tags"] = [tag for tag in row["item.tags"].split("|") if tag]
        if table["channel"].null_count == table.num_rows:
            del row["channel"]
    assert sorted(back, key=_key) == sorted(expected, key=_key)
    assert [row["time"] for row in back] == sorted(row["time"] for row in back)
    assert report.num_candidates == table.num_rows
    assert (report.num_merged, report.dropped, report.conflicts) == (0, {}, {})


@given(flat_tables())
@settings(max_examples=40, deadline=None)
def test_histories_are_what_a_loop_finds(table: pa.Table) -> None:
    rows = table.to_pylist()
    _, _, requests, _ = group_impressions(table, MAPPING)
    for request in _rows(requests):
        mine = [r for r in rows if r["u"] == request["user"] and r["t"] < request["time"]]
        events = [(r["t"], r["i"], r["watch"]) for r in mine if r["click"] == 1]
        clicked = sorted(events, key=lambda event: event[0])
        found = zip(
            *(request[f"history.clicked.{name}"] for name in ("time", "item", "watch")), strict=True
        )
        found = list(found)
        assert set(found) <= set(clicked)
        assert len(found) == min(3, len(clicked))
        assert [e[0] for e in found] == [e[0] for e in clicked][-3:]
        seen = sorted(r["t"] for r in mine)[-2:]
        assert request["history.seen.time"] == seen


def _rows(requests: Iterator[pa.Table]) -> list[dict[str, Any]]:
    return [row for table in requests for row in table.to_pylist()]


SMALL = ImpressionMap(
    user="u", item="i", time="t", request_id="r", labels={"click": "c"}, stage=None
)


def _small(**columns: list[Any]) -> pa.Table:
    rows = len(next(iter(columns.values())))
    base = {"r": ["a"] * rows, "u": [1] * rows, "i": list(range(rows)), "t": [0] * rows}
    return pa.table(base | {"c": [0] * rows} | columns)


def test_repeated_exposures_merge_labels_by_maximum_and_are_counted() -> None:
    table = _small(
        i=[7, 8, 7, 7], c=[None, 0, 1, 0], t=[5, 6, 7, 8], p=[0.1, 0.2, 0.3, 0.4],
        s=["rank", "rank", "exposed", "rank"],
    )  # fmt: skip
    mapping = ImpressionMap(
        user="u", item="i", time="t", request_id="r", labels={"click": "c"}, stage="s",
        features={"candidate": {"price": ColumnMap(column="p", kind="dense")}},
    )  # fmt: skip
    _, _, requests, report = group_impressions(table, mapping)
    (row,) = _rows(requests)
    assert row["candidates.item"] == [7, 8]
    assert row["labels.click"] == [1.0, 0.0]
    assert row["candidates.price"] == [0.1, 0.2]
    assert row["candidates.stage"] == ["exposed", "rank"]
    assert (row["time"], report.num_merged, report.conflicts) == (5, 2, {"time": 1})


def test_a_label_never_observed_stays_unobserved_when_merged() -> None:
    _, _, requests, _ = group_impressions(_small(i=[7, 7], c=[None, None]), SMALL)
    assert _rows(requests)[0]["labels.click"] == [None]


def test_conflicts_keep_the_first_value_and_are_counted_per_column() -> None:
    table = _small(
        r=["a", "a", "b", "b"], u=[1, 2, 3, 3], g=["f", "m", None, "m"], i=[1, 2, 1, 2],
        cat=["x", "y", "z", "y"],
    )  # fmt: skip
    mapping = ImpressionMap(
        user="u", item="i", time="t", request_id="r", labels={"click": "c"},
        features={
            "user": {"gender": ColumnMap(column="g")},
            "item": {"category": ColumnMap(column="cat")},
        },
    )  # fmt: skip
    _, items, requests, report = group_impressions(table, mapping)
    first, second = _rows(requests)
    assert (first["user"], first["gender"]) == (1, "f")
    assert (second["user"], second["gender"]) == (3, "m")
    assert report.conflicts == {"user": 1, "user.gender": 1, "item.category": 1}
    assert items.to_pylist() == [
        {"item_id": 1, "category": "x"},
        {"item_id": 2, "category": "y"},
    ]


def test_rows_without_user_item_or_time_are_dropped_and_counted() -> None:
    table = _small(
        u=[None, 1.0, 1.0, float("nan"), 1.0], i=[1, None, 3, None, 5], t=[0, 0, None, 0, 9]
    )
    _, _, requests, report = group_impressions(table, SMALL)
    assert report.dropped == {"u": 2, "i": 1, "t": 1}
    assert [row["candidates.item"] for row in _rows(requests)] == [[5]]
    with pytest.raises(
        InputError, match=r"no impression left of 1 rows; dropped as null: {'u': 1}"
    ):
        group_impressions(_small(u=pa.array([None], pa.int64())), SMALL)


def test_windows_group_one_users_impressions() -> None:
    table = _small(u=["b", "a", "b", "b", "a"], t=[10, 3, 0, 9, 4], i=[1, 2, 3, 4, 2])
    mapping = ImpressionMap(user="u", item="i", time="t", window_ms=10, labels={"click": "c"})
    _, _, requests, report = group_impressions(table, mapping)
    rows = _rows(requests)
    assert [(r["user"], r["time"], r["candidates.item"]) for r in rows] == [
        ("b", 0, [3, 4]),
        ("a", 3, [2]),
        ("b", 10, [1]),
    ]
    assert [r["request_id"] for r in rows] == [0, 1, 2]
    assert report.num_merged == 1


def test_no_event_of_the_request_itself_or_of_its_moment_is_in_its_history() -> None:
    table = _small(r=["a", "a", "b", "c"], t=[5, 6, 5, 7], c=[1, 1, 1, 1])
    mapping = ImpressionMap(
        user="u", item="i", time="t", request_id="r", labels={"click": "c"},
        history={"clicked": HistoryRule(where="click")},
    )  # fmt: skip
    _, _, requests, _ = group_impressions(table, mapping)
    found = {r["request_id"]: r["history.clicked.item"] for r in _rows(requests)}
    assert found["a"] == []
    assert found["b"] == []
    assert sorted(found["c"]) == [0, 1, 2]


def test_requests_come_in_time_order_and_ties_as_first_named() -> None:
    table = _small(r=["z", "y", "x", "y"], t=[3, 3, 1, 3])
    _, _, requests, _ = group_impressions(table, SMALL)
    assert [r["request_id"] for r in _rows(requests)] == ["x", "z", "y"]


def test_slots_counted_from_one_become_ranks_from_zero() -> None:
    mapping = ImpressionMap(
        user="u", item="i", time="t", request_id="r", labels={"click": "c"},
        position="p", first_position=1,
    )  # fmt: skip
    schema, _, requests, _ = group_impressions(_small(p=[2, None, 1]), mapping)
    assert schema.ranks == ("exposed",)
    assert _rows(requests)[0]["candidates.rank.exposed"] == [1, None, 0]
    with pytest.raises(InputError, match="column 'p' holds 0; ranks here count from 1"):
        group_impressions(_small(p=[0, 1]), mapping)


def test_delayed_labels_and_derived_features() -> None:
    mapping = ImpressionMap(
        user="u", item="i", time="t", time_unit="s", window_ms=1000, labels={"buy": "c"},
        engaged="buy", observed_until="until", label_windows_ms={"buy": 86_400_000},
        derived=(Feature(name="hour", owner="context", kind="categorical", transforms=("hour",)),),
    )  # fmt: skip
    schema, _, requests, _ = group_impressions(_small(until=[100, 100], c=[1, None]), mapping)
    (row,) = _rows(requests)
    assert schema.labels[0].window_ms == 86_400_000
    assert row["observed_until"] == 100_000
    assert row["labels.buy"] == [1.0, None]
    assert [f.name for f in schema.features] == ["user", "item", "hour"]


def test_an_unknown_stage_is_named() -> None:
    mapping = ImpressionMap(
        user="u", item="i", time="t", request_id="r", labels={"click": "c"}, stage="s"
    )
    with pytest.raises(InputError, match="column 's' says 'rnak'; did you mean 'rank'"):
        group_impressions(_small(s=["rank", "rnak"]), mapping)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"request_id": None}, "either request_id .* or window_ms"),
        ({"window_ms": 5}, "either request_id .* or window_ms"),
        ({"max_candidates": 5}, "max_candidates .* goes with window_ms"),
        ({"features": {"history": {}}}, "history features go under history"),
        ({"history": {"h": HistoryRule(where="buy")}}, "reads label 'buy'; labels here: click"),
        ({"history": {"h": HistoryRule(max_len=0)}}, "max_len must be 1 or more"),
        ({"label_windows_ms": {"click": 5}}, "needs a label of that name and the column"),
        ({"position": "p", "ranks": {"exposed": "p"}}, "'position' is the rank of stage 'exposed'"),
        (
            {"derived": (Feature(name="age", owner="user", kind="dense"),)},
            "feature 'age' of 'derived' needs a column",
        ),
    ],
)
def test_a_mapping_that_cannot_work_is_refused(change: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {
        "user": "u", "item": "i", "time": "t", "request_id": "r", "labels": {"click": "c"},
    }  # fmt: skip
    with pytest.raises(InputError, match=message):
        ImpressionMap(**(values | change))


def test_a_compressed_csv_becomes_a_log(tmp_path: Path) -> None:
    table = pa.table(
        {
            "uid": ["a", "a", "b"],
            "vid": [1, 2, 1],
            "ts": ["2019-11-09 10:00:00", "2019-11-09 10:00:05", "2019-11-09 09:00:00"],
            "is_click": [1, 0, 0],
        }
    )
    with pa.output_stream(str(tmp_path / "t.csv.zst"), compression="zstd") as stream:
        pv.write_csv(table, stream)
    mapping = ImpressionMap(
        user="uid", item="vid", time="ts", window_ms=60_000, labels={"click": "is_click"}
    )
    counted: list[int] = []
    report = from_impressions(
        tmp_path / "t.csv.zst", mapping, tmp_path / "log", progress=counted.append
    )
    log = open_log(tmp_path / "log")
    assert (log.num_requests, sum(counted), report.num_requests) == (2, 2, 2)
    (flat,) = to_impressions(log)
    assert flat["user"].to_pylist() == ["b", "a", "a"]
    assert flat["label.click"].to_pylist() == [0.0, 1.0, 0.0]
    with pytest.raises(InputError, match="exists already"):
        from_impressions(tmp_path / "t.csv.zst", mapping, tmp_path / "log")
