"""Late labels against a join by dictionary; side columns and what they stand beside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prerank.errors import InputError
from prerank.log import Log, Transforms, check_log, open_log
from prerank.log.growth import JoinReport, add_columns, append_log, join_labels
from prerank.log.inputs.evidence import label_columns

Row = dict[str, Any]
Late = list[tuple[Any, Any, float | None]]


def _table(late: Late, label: str = "click", **more: Any) -> pa.Table:
    ids, items, values = (list(column) for column in zip(*late, strict=True))
    columns = {"request_id": ids, "item": items, label: pa.array(values, pa.float64()), **more}
    return pa.table(columns)


def _joined(rows: list[Row], late: Late, label: str) -> tuple[list[list[Any]], int, int]:
    """The labels after a join by dictionary, the rows that matched, the candidates changed."""
    shown = {(r["request_id"], i) for r in rows for i in r["candidates.item"]}
    given = {(r, i): v for r, i, v in late if v is not None}
    num_matched = sum((r, i) in shown for r, i, _ in late)
    before = [r.get(f"labels.{label}") or [None] * len(r["candidates.item"]) for r in rows]
    after = [
        [
            given.get((row["request_id"], item), old)
            for item, old in zip(row["candidates.item"], stored, strict=True)
        ]
        for row, stored in zip(rows, before, strict=True)
    ]
    changed = sum(
        a != b for x, y in zip(before, after, strict=True) for a, b in zip(x, y, strict=True)
    )
    return after, num_matched, changed


_values = st.one_of(st.none(), st.sampled_from([0.0, 1.0, 2.5]))
_late = st.lists(
    st.tuples(
        st.sampled_from([*(f"r{k}" for k in range(33)), "x"]),
        st.sampled_from([*range(0, 120, 10), 77]),
        _values,
    ),
    min_size=1,
    max_size=60,
)


@settings(
    max_examples=8,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(late=_late, label=st.sampled_from(["click", "rated"]))
def test_join_is_a_join_by_dictionary(
    late: Late,
    label: str,
    rich_log: Log,
    rich_rows: list[Row],
    copy_of: Callable[[Log], Path],
    stored_rows: Callable[[Log], list[Row]],
) -> None:
    path = copy_of(rich_log)
    report = join_labels(path, _table(late, label))
    labels, num_matched, changed = _joined(rich_rows, late, label)
    log = open_log(path)
    for row, expected, kept in zip(stored_rows(log), labels, rich_rows, strict=True):
        assert row.pop(f"labels.{label}") == expected
        assert row == {k: v for k, v in kept.items() if k != f"labels.{label}"}
    unmatched = len(late) - num_matched
    assert report == JoinReport(len(late), num_matched, unmatched, {label: changed})
    assert check_log(log, deep=False).ok


def test_a_second_join_builds_on_the_first_and_on_appended_rows(
    grown_log: Log, many_rows: list[Row], stored_rows: Callable[[Log], list[Row]]
) -> None:
    pairs = [(r["request_id"], i) for r in many_rows for i in r["candidates.item"]]
    first: Late = [(r, i, 1.0) for r, i in pairs[::3]]
    second: Late = [(r, i, 2.0) for r, i in pairs[::5]]
    for late in (first, second):
        join_labels(grown_log.path, _table(late, "rated"))
    labels, _, _ = _joined(many_rows, first + second, "rated")
    log = open_log(grown_log.path)
    assert [row["labels.rated"] for row in stored_rows(log)] == labels
    assert log.schema.lineage.revision == 3
    report = check_log(log)
    assert report.ok, report.findings


def test_integer_ids_and_text_of_them(plain_log: Callable[..., Log], tmp_path: Path) -> None:
    log = plain_log(range(20, 30), ["u"] * 10, clicks=lambda row, k: None, out=tmp_path / "log")
    for ids, value in (([3, 99], 1.0), (["3", "99"], 0.0)):
        report = join_labels(log.path, _table([(i, 3, value) for i in ids]))
        assert (report.num_matched, report.num_unmatched) == (1, 1)
        columns = next(open_log(log.path).all().columns(10))
        assert columns.candidates.values["labels.click"][6] == value
    dropped = join_labels(log.path, _table([(None, 3, 1.0), (3, None, 1.0)]))
    assert dropped.num_unmatched == 2
    none = join_labels(log.path, _table([(3, 3, 1.0)]).slice(0, 0))
    assert none.num_rows == none.num_matched == 0
    with pytest.raises(InputError, match="'request_id' is string; the log has int64"):
        join_labels(log.path, _table([("a", 3, 1.0)]))
    with pytest.raises(InputError, match=r"column 'item': .*raw values are string"):
        join_labels(log.path, _table([(3, "b", 1.0)]))


def test_a_request_id_that_stands_twice_gets_its_label_twice(
    plain_log: Callable[..., Log], to_table: Callable[..., pa.Table], tmp_path: Path
) -> None:
    log = plain_log(range(6), ["u"] * 6, clicks=lambda row, k: None, out=tmp_path / "log")
    again = {
        "request_id": 2,
        "user": "u",
        "time": 9,
        "candidates.item": [7, 2],
        "candidates.stage": ["exposed", "exposed"],
    }
    append_log(log.path, [to_table([again])])
    report = join_labels(log.path, _table([(2, 7, 1.0), (2, 7, 3.0), (2, 2, 2.0)]))
    assert report == JoinReport(3, 3, 0, {"click": 4})
    columns = next(open_log(log.path).all().columns(10))
    labels = columns.candidates.values["labels.click"]
    np.testing.assert_array_equal(labels[[4, 5, 12, 13]], [2.0, 3.0, 3.0, 2.0])


def test_observed_until_only_moves_forward(
    grown_log: Log, many_rows: list[Row], stored_rows: Callable[[Log], list[Row]]
) -> None:
    middle = many_rows[25]["time"]
    expected = [row["observed_until"] for row in many_rows]
    for until in (middle, middle - 10**7, middle + 5):
        join_labels(grown_log.path, _table([("r1", 0, None)]), observed_until=until)
        expected = [max(until, -1 if e is None else e) for e in expected]
        assert [row["observed_until"] for row in stored_rows(open_log(grown_log.path))] == expected


def test_delayed_labels_become_negative_when_the_window_closes(
    grown_log: Log, many_rows: list[Row]
) -> None:
    day = 86_400_000
    until = many_rows[40]["time"] + 3
    late: Late = [(r["request_id"], i, 1.0) for r in many_rows[::4] for i in r["candidates.item"]]
    table = _table(late, "paid")
    join_labels(grown_log.path, table, observed_until=until, window_ms={"paid": 2 * day})
    log = open_log(grown_log.path)
    assert log.schema.labels[-1].window_ms == 2 * day
    columns = next(log.all().columns(50))
    paid = iter(label_columns(columns, log.schema)["paid"].tolist())
    kinds = set()
    for k, row in enumerate(many_rows):
        observed = max(until, row["observed_until"] or -1)
        rest = 0.0 if observed >= row["time"] + 2 * day else float("nan")
        for _ in row["candidates.item"]:
            expected = 1.0 if k % 4 == 0 else rest
            assert next(paid) == pytest.approx(expected, nan_ok=True)
            kinds.add(str(expected))
    assert kinds == {"1.0", "0.0", "nan"}


def test_labels_change_evidence_and_nothing_that_models_read(
    grown_log: Log, many_rows: list[Row], tensors_of: Callable[..., Any], same: Callable[..., bool]
) -> None:
    transforms = Transforms.fit(grown_log.all(), min_count=1)
    columns = next(grown_log.all().columns(50))
    before = transforms.batch(columns, grown_log)
    late: Late = [(r["request_id"], i, 1.0) for r in many_rows for i in r["candidates.item"]]
    join_labels(grown_log.path, _table(late))
    log = open_log(grown_log.path)
    after = transforms.batch(next(log.all().columns(50)), log)
    assert (after.evidence.engaged == 1).all()
    assert not (before.evidence.engaged == 1).all()
    assert (after.inputs.items.categorical == before.inputs.items.categorical).all()
    assert (after.inputs.candidate.dense == before.inputs.candidate.dense).all()


@pytest.mark.parametrize(
    ("columns", "options", "says"),
    [
        ({"request_id": ["r1"], "click": [1.0]}, {}, "no column 'item'"),
        ({"request_id": ["r1"], "item": [0]}, {}, "no label column"),
        ({"request_id": ["r1"], "item": [0], "click": ["yes"]}, {}, "'click' is string; expected"),
        ({"request_id": ["r1"], "item": [0], "click": [float("inf")]}, {}, "a value is infinite"),
        ({"request_id": ["r1"], "item": [0], "../x": [1.0]}, {}, "a name is of letters"),
        (
            {"request_id": ["r1"], "item": [0], "buy": [1.0]},
            {"window_ms": {"buy": 5}},
            "window of 'buy' is 5 ms, but the log has the label with 10000",
        ),
        (
            {"request_id": ["r1"], "item": [0], "buy": [1.0]},
            {"window_ms": {"bui": 5}},
            "did you mean 'buy'",
        ),
    ],
)
def test_bad_tables_leave_the_log_as_it_was(
    base_log: Log,
    snapshot: Callable[[Path], dict[str, bytes]],
    columns: dict[str, Any],
    options: dict[str, Any],
    says: str,
) -> None:
    before = snapshot(base_log.path.parent)
    if "r1" in columns["request_id"] and "item" in columns:  # one that is a candidate of r1
        first = next(base_log.all().columns(30))
        place = int(first.candidates.offsets[np.flatnonzero(np.diff(first.candidates.offsets))[0]])
        row = int(np.searchsorted(first.candidates.offsets, place, side="right")) - 1
        raw = base_log.items.ids.decode(first.candidates.values["item"][place : place + 1])
        columns = {**columns, "request_id": [f"r{row}"], "item": raw}
    with pytest.raises(InputError, match=says) as caught:
        join_labels(base_log.path, pa.table(columns), **options)
    assert "\n" not in str(caught.value)
    assert snapshot(base_log.path.parent) == before


def test_plan_sees_the_log_under_the_lock(base_log: Log) -> None:
    seen = []

    def plan(log: Log) -> Any:
        seen.append(log.schema.lineage.revision)
        with pytest.raises(InputError, match="another process is changing"):
            join_labels(base_log.path, _table([("r1", 0, 1.0)]))
        return log.schema, [], lambda columns: {}

    add_columns(base_log.path, plan)
    assert seen == [0]
    assert open_log(base_log.path).schema.lineage.revision == 1
