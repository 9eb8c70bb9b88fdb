"""The check of a whole log: counts by brute force, and every kind of finding provoked."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prerank.log import CheckReport, Finding, Log, check_log, open_log, split_log
from prerank.log.feature_tally import auc
from prerank.log.files import Manifest, digest, log_id_of, read_json, write_json
from prerank.log.tally import latest_before
from prerank.schema import Feature, Label, Schema

Row = dict[str, Any]
PART = "requests/part-00000.parquet"


def _warnings(report: CheckReport) -> list[str]:
    return [f.message for f in report.findings if f.level == "warning"]


def _errors(report: CheckReport) -> list[str]:
    return [f.message for f in report.findings if f.level == "error"]


def test_counts_by_brute_force(rich_log: Log, rich_rows: list[Row], rich_items: list[Row]) -> None:
    report = check_log(rich_log)
    assert report.ok
    assert report.findings == []
    flat = [
        (row, {k: row[k][i] for k in row if k.startswith(("candidates.", "labels."))})
        for row in rich_rows
        for i in range(len(row["candidates.item"]))
    ]

    def engaged(c: Row) -> bool | None:
        click, watch = c["labels.click"], c["labels.watch"]
        known = [x for x in (click, None if watch is None else watch >= 10) if x is not None]
        return True if any(known) else (False if len(known) == 2 else None)

    positive = [engaged(c) is True for _, c in flat]
    stages = Counter(c["candidates.stage"] for _, c in flat)
    shown = [engaged(c) for _, c in flat if c["candidates.stage"] == "exposed"]
    counts = report.counts
    assert counts["requests"] == 30
    assert counts["candidates"] == len(flat)
    assert counts["users"] == len({row["user"] for row in rich_rows})
    assert counts["items"] == len({c["candidates.item"] for _, c in flat})
    assert counts["requests_without_candidates"] == sum(
        not row["candidates.item"] for row in rich_rows
    )
    with_positive = {row["request_id"] for (row, _), p in zip(flat, positive, strict=True) if p}
    assert counts["requests_without_positive"] == 30 - len(with_positive)
    assert counts["positives"] == sum(positive)
    assert counts["exposed"] == stages["exposed"]
    assert {s: counts[f"stage:{s}"] for s in rich_log.schema.stages} == {
        s: stages[s] for s in rich_log.schema.stages
    }
    assert counts["source:rank"] == stages["prerank"] + stages["rank"]
    assert counts["source:exposed"] == shown.count(False)
    assert counts["source:unknown"] == shown.count(None)
    known = [e for e in shown if e is not None]
    assert counts["engaged_rate_exposed"] == pytest.approx(sum(known) / len(known))
    assert counts["label:click:positive"] == sum(c["labels.click"] == 1 for _, c in flat)
    assert counts["label:watch:observed"] == sum(c["labels.watch"] is not None for _, c in flat)
    assert counts["history:likes:events"] == sum(
        len(row["history.likes.item"]) for row in rich_rows
    )
    assert counts["labelled_not_shown"] == counts["requests_in_no_part"] == 0
    parts = {"train": rich_rows[:20], "valid": rich_rows[20:25], "test": rich_rows[25:]}
    for name, rows in parts.items():
        assert counts[f"part:{name}:requests"] == len(rows)
        inside = {row["request_id"] for row in rows}
        expected = sum(
            p for (r, _), p in zip(flat, positive, strict=True) if r["request_id"] in inside
        )
        assert counts[f"part:{name}:positives"] == expected
        if name == "train":
            continue
        for what, of in (
            ("users", lambda rows: {row["user"] for row in rows}),
            ("items", lambda rows: {i for row in rows for i in row["candidates.item"]}),
        ):
            mine, known = of(rows), of(parts["train"])
            assert counts[f"part:{name}:cold_{what}"] == pytest.approx(
                len(mine - known) / len(mine)
            )
    assert counts["null_rate:user.age"] == sum(r["age"] is None for r in rich_rows) / 30
    assert counts["null_rate:user.interests"] == sum(not r["interests"] for r in rich_rows) / 30
    dwell = [d for row in rich_rows for d in row["history.clicks.dwell"]]
    assert counts["null_rate:history.clicks.dwell"] == dwell.count(None) / len(dwell)
    slots = [c["candidates.slot"] for _, c in flat]
    assert counts["null_rate:candidate.slot"] == slots.count(None) / len(slots)
    genres = [item["genre"] for item in rich_items] + [None, None]  # two items met in requests
    assert counts["null_rate:item.genre"] == genres.count(None) / 12
    assert counts["row_groups"] == rich_log.num_groups
    assert counts["row_groups_unreadable"] == 0


def test_the_report_is_plain_json(rich_log: Log) -> None:
    done: list[int] = []
    report = check_log(rich_log.path, progress=done.append)
    value = json.loads(msgspec.json.encode(report))
    assert set(value) == {"ok", "findings", "counts"}
    assert all(type(v) in (int, float) for v in report.counts.values())
    assert done == [4, 4, 4, 4, 4, 4, 4, 2]


def test_a_shallow_check_leaves_out_the_fingerprints(
    rich_log: Log, copy_of: Callable[[Log], Path]
) -> None:
    path = copy_of(rich_log)
    manifest = read_json(path / "manifest.json", Manifest)
    entry = msgspec.structs.replace(manifest.files[PART], sha256="0" * 64)
    files = manifest.files | {PART: entry}
    log_id = log_id_of(files)
    write_json(
        msgspec.structs.replace(manifest, files=files, log_id=log_id, content=log_id), path / "manifest.json"
    )
    schema = path / "schema.json"
    schema.write_text(schema.read_text().replace(manifest.log_id, log_id))
    assert check_log(path, deep=False).ok
    assert {f.where for f in check_log(path).findings} == {PART, "schema.json"}


def test_names_and_fingerprints_must_agree(rich_log: Log, copy_of: Callable[[Log], Path]) -> None:
    path = copy_of(rich_log)
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace(rich_log.manifest.log_id, "0123"))
    (finding,) = check_log(path).findings
    assert finding.where == "manifest.json"
    assert "'log_id' does not name these files" in finding.message


def test_files_that_no_reader_reads_are_mentioned(
    rich_log: Log, copy_of: Callable[[Log], Path]
) -> None:
    path = copy_of(rich_log)
    (path / "requests" / "part-99999.parquet").write_bytes(b"x")
    report = check_log(path)
    assert report.ok
    assert report.findings == [
        Finding(
            "warning",
            "requests/part-99999.parquet",
            "not in manifest.json; readers ignore the file",
        )
    ]


def _rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change the first part and let the manifest agree; as a careless other writer would."""
    file = path / PART
    pq.write_table(change(pq.read_table(file)), file, row_group_size=4)
    manifest = read_json(path / "manifest.json", Manifest)
    entry = msgspec.structs.replace(
        manifest.files[PART], bytes=file.stat().st_size, sha256=digest(file)
    )
    files = manifest.files | {PART: entry}
    write_json(msgspec.structs.replace(manifest, files=files), path / "manifest.json")


def _change(column: str, edit: Callable[[list[Any]], None]) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        edit(values)
        index = table.column_names.index(column)
        return table.set_column(index, column, pa.array(values, table[column].type))

    return change


def _first_two_equal(values: list[Any]) -> None:
    row = next(row for row in values[4:8] if len([v for v in row if v is not None]) > 1)
    known = [k for k, v in enumerate(row) if v is not None]
    row[known[1]] = row[known[0]]


def _swap_rows(values: list[Any]) -> None:
    values[5], values[7] = values[7] + 1, values[5] - 1


def _negative(values: list[Any]) -> None:
    next(row for row in values[4:8] if row)[0] = -3


def _reverse(values: list[Any]) -> None:
    row = next(row for row in values[4:8] if len(set(row)) > 1)
    row.reverse()


@pytest.mark.parametrize(
    ("column", "edit", "says"),
    [
        ("candidates.item", _first_two_equal, "lists a candidate twice"),
        ("candidates.rank.prerank", _first_two_equal, "gives one position to two candidates"),
        ("candidates.rank.prerank", _negative, "is negative; lists begin at 0"),
        ("history.likes.time", _reverse, "is not sorted; oldest events first"),
    ],
)
def test_rows_the_writer_would_refuse_are_found(
    rich_log: Log,
    copy_of: Callable[[Log], Path],
    column: str,
    edit: Callable[[list[Any]], None],
    says: str,
) -> None:
    path = copy_of(rich_log)
    _rewrite(path, _change(column, edit))
    open_log(path)
    found = [m for m in _errors(check_log(path)) if "log_id" not in m]
    assert len(found) == 1
    assert found[0].startswith("row group 1: ")
    assert says in found[0]


def test_time_that_goes_back_is_found(plain_log: Callable[..., Log], tmp_path: Path) -> None:
    log = plain_log(range(20), [0] * 20, out=tmp_path / "log")
    _rewrite(log.path, _change("time", _swap_rows))
    found = [m for m in _errors(check_log(log)) if "log_id" not in m]
    assert found == ["row group 1: time goes back at request row 6; sort the requests by time"]


def test_several_problems_are_all_reported(rich_log: Log, copy_of: Callable[[Log], Path]) -> None:
    path = copy_of(rich_log)
    (path / "requests" / "part-00001.parquet").unlink()
    (path / "vocab" / "user.parquet").write_bytes(b"PAR1")
    (path / "items.parquet").write_bytes(b"")
    (path / "splits.json").write_text("{")
    _rewrite(path, _change("candidates.rank.prerank", _first_two_equal))
    report = check_log(path)
    assert {f.where for f in report.findings if f.level == "error"} == {
        "manifest.json",
        "requests/part-00001.parquet",
        "vocab/user.parquet",
        "items.parquet",
        "splits.json",
        PART,
    }
    assert report.counts["row_groups_unreadable"] == 3
    assert report.counts["requests"] == 18  # of the other two files


def test_labels_outside_exposure_are_odd(
    make_log: Callable[..., Log], rich_rows: list[Row]
) -> None:
    rows = [row | {"labels.click": [1.0 for _ in row["candidates.item"]]} for row in rich_rows]
    report = check_log(make_log(rows, splits={"train": np.arange(30)}))
    assert report.ok
    hidden = sum(s != "exposed" for row in rows for s in row["candidates.stage"])
    (message,) = [m for m in _warnings(report) if "not shown" in m]
    assert message.startswith(f"{hidden} candidates have labels but were not shown")


def test_a_log_without_positives_or_parts(plain_log: Callable[..., Log]) -> None:
    messages = _warnings(check_log(plain_log(range(9), [0] * 9, clicks=lambda row, k: 0.0)))
    assert messages == [
        "no candidate is engaged ('click'); there is nothing to learn from",
        "the log has no parts; run: prerank data split LOG",
    ]


def test_values_the_writer_repaired_are_mentioned(plain_log: Callable[..., Log]) -> None:
    log = plain_log(range(9), [0] * 9, x=lambda row, k: math.inf if row < 2 else float(row + k))
    messages = _warnings(check_log(log))
    assert "4 values of 'candidates.x' were not finite; stored as missing" in messages


ALL = np.arange(12)


@pytest.mark.parametrize(
    ("users", "splits", "says"),
    [
        ([0] * 12, {"train": ALL[6:], "test": ALL[:6]}, "6 requests come after one of the same"),
        ([0] * 12, {"train": ALL[6:], "test": ALL[:6]}, "part 'train' reaches time 11 but part"),
        (range(12), {"train": ALL[6:], "test": ALL[:6]}, "part 'train' reaches time 11 but part"),
        ([0] * 12, {"train": ALL[:6], "test": ALL[7:]}, "1 requests are in no part"),
        ([0] * 12, {"train": ALL, "test": ALL[:0]}, "part 'test' has no requests"),
    ],
)
def test_parts_that_are_odd(
    plain_log: Callable[..., Log], users: Any, splits: dict[str, Any], says: str
) -> None:
    report = check_log(plain_log(range(12), users, splits=splits))
    assert report.ok
    assert any(m.startswith(says) for m in _warnings(report))
    assert all("(rule 'given by the writer')" in m for m in _warnings(report))


@pytest.mark.parametrize("by", ["time", "user-order"])
def test_parts_made_by_a_rule_are_not_odd(
    plain_log: Callable[..., Log], tmp_path: Path, by: Any
) -> None:
    rng = np.random.default_rng(3)
    times, users = np.sort(rng.integers(0, 40, 60)), rng.integers(0, 5, 60)
    log = plain_log(times.tolist(), users.tolist(), out=tmp_path / "log")
    split_log(log, by=by, fractions=(0.5, 0.25, 0.25))
    report = check_log(log)
    assert report.findings == []
    assert report.counts["requests_before_own_past"] == 0


def test_parts_that_overlap_or_leave_the_log_are_errors(
    rich_log: Log, copy_of: Callable[[Log], Path]
) -> None:
    path = copy_of(rich_log)
    for parts, says in (
        ({"train": [[0, 20]], "test": [[19, 30]]}, "overlap in 1 requests"),
        ({"train": [[0, 31]]}, "outside the log's 30 requests"),
    ):
        write_json({"rule": "x", "parts": parts}, path / "splits.json")
        report = check_log(path)
        (finding,) = report.findings
        assert (finding.level, finding.where) == ("error", "splits.json")
        assert says in finding.message
        assert report.counts["requests"] == 30  # the rest was still read


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 2)), max_size=20), st.integers(1, 5))
def test_latest_part_before_by_brute_force(rows: list[tuple[int, int]], cut: int) -> None:
    latest = np.full(4, -1, dtype=np.int64)
    found: list[int] = []
    for start in range(0, len(rows), cut):
        user, part = np.array(rows[start : start + cut], dtype=np.int64).reshape(-1, 2).T
        found += latest_before(user, part, latest).tolist()
        np.maximum.at(latest, user, part)
    expected = [
        max([p for v, p in rows[:k] if v == u], default=-1) for k, (u, _) in enumerate(rows)
    ]
    assert found == expected


def _leaky(row: int, k: int) -> float:
    """A 1 for engaged candidates, two times out of three hidden among tied values."""
    return 1.0 if k == 0 else 0.0


CLICK = "feature 'candidate.x' alone predicts engaged (AUC 1.000): possible leak"


@pytest.mark.parametrize(
    ("x", "leaks"),
    [
        (_leaky, True),
        (lambda row, k: 3.0 - _leaky(row, k), True),  # the wrong way round
        (lambda row, k: float(row) if k == 0 else None, True),  # by being there
        (lambda row, k: None if k == 0 else float(row), True),  # by being absent
        (lambda row, k: float(13 * row % 7 + k), False),
        (lambda row, k: float((row + k) % 2 == 0 or row % 10 == 0), False),
    ],
)
def test_a_feature_that_gives_the_label_away(
    plain_log: Callable[..., Log], x: Callable[[int, int], float | None], leaks: bool
) -> None:
    log = plain_log(range(60), [0] * 60, x=x, splits={"train": np.arange(60)})
    found = [m for m in _warnings(check_log(log)) if "possible leak" in m]
    assert [m.startswith(CLICK) for m in found] == ([True] if leaks else [])


def test_few_examples_do_not_make_a_leak(plain_log: Callable[..., Log]) -> None:
    log = plain_log(range(10), [0] * 10, x=_leaky, splits={"train": np.arange(10)})
    assert _warnings(check_log(log)) == []


def test_a_category_that_gives_the_label_away(make_log: Callable[..., Log]) -> None:
    schema = Schema(
        features=(Feature(name="kind", owner="candidate", kind="categorical"),),
        labels=(Label(name="click"),),
    )

    def rows(kind: Callable[[int, int], str]) -> list[Row]:
        return [
            {
                "request_id": row,
                "user": 0,
                "time": row,
                "candidates.item": [1, 2],
                "candidates.stage": ["exposed"] * 2,
                "candidates.kind": [kind(row, 0), kind(row, 1)],
                "labels.click": [1.0, 0.0],
            }
            for row in range(100)
        ]

    def leaks(kind: Callable[[int, int], str]) -> bool:
        log = make_log(rows(kind), schema=schema, group=16)
        return any("'candidate.kind' alone predicts" in m for m in _warnings(check_log(log)))

    assert leaks(lambda row, k: "ab"[row % 2] if k == 0 else "cd"[row % 2])
    assert not leaks(lambda row, k: "abcd"[(row + k) % 4])
    assert not leaks(lambda row, k: f"{row}/{k}")  # every value once says nothing


def test_constant_and_absent_features_are_odd(
    make_log: Callable[..., Log], rich_rows: list[Row], rich_items: list[Row]
) -> None:
    def change(row: Row) -> Row:
        return row | {
            "age": 4.0,
            "device": 7,
            "battery": None,
            "profile": [1.0, 2.0],
            "interests": [],
            "candidates.affinity": [None for _ in row["candidates.item"]],
            "history.clicks.act": ["view" for _ in row["history.clicks.act"]],
        }

    items = [item | {"price": None} for item in rich_items]
    log = make_log([change(r) for r in rich_rows], items, splits={"train": np.arange(30)})
    report = check_log(log)
    candidates, events = report.counts["candidates"], report.counts["history:clicks:events"]
    assert set(_warnings(report)) == {
        "feature 'user.age' is constant in all 30 rows",
        "feature 'user.profile' is constant in all 30 rows",
        "feature 'user.interests' is missing in all 30 rows",
        "feature 'context.device' is constant in all 30 rows",
        "feature 'context.battery' is missing in all 30 rows",
        "feature 'item.price' is missing in all 12 rows",
        f"feature 'candidate.affinity' is missing in all {candidates} rows",
        f"feature 'history.clicks.act' is constant in all {events} rows",
    }
    assert report.counts["null_rate:candidate.affinity"] == 1.0


@given(
    st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2).filter(
        lambda pairs: len({p for _, p in pairs}) == 2
    )
)
def test_auc_counts_pairs(pairs: list[tuple[int, bool]]) -> None:
    positives = [s for s, p in pairs if p]
    negatives = [s for s, p in pairs if not p]
    wins = sum((a > b) + (a == b) / 2 for a in positives for b in negatives)
    scores, labels = (np.array(column) for column in zip(*pairs, strict=True))
    expected = wins / (len(positives) * len(negatives))
    assert auc(scores.astype(np.float64), labels) == pytest.approx(expected)
