"""The check of a whole log: counts by brute force, and every kind of finding provoked."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from prerank.log import CheckReport, Finding, Log, check_log, open_log
from prerank.log.format.files import Manifest, log_id_of, read_json, write_json

Row = dict[str, Any]
PART = "requests/part-00000.parquet"


def _warnings(report: CheckReport) -> list[str]:
    return [f.message for f in report.findings if f.level == "warning"]


def _errors(report: CheckReport) -> list[str]:
    return [f.message for f in report.findings if f.level == "error"]


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
        msgspec.structs.replace(manifest, files=files, log_id=log_id, content=log_id),
        path / "manifest.json",
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
    tamper: Callable[..., None],
    column: str,
    edit: Callable[[list[Any]], None],
    says: str,
) -> None:
    path = copy_of(rich_log)
    tamper(path, PART, _change(column, edit))
    open_log(path)
    found = _errors(check_log(path))
    assert len(found) == 1
    assert found[0].startswith("row group 1: ")
    assert says in found[0]


def test_time_that_goes_back_is_found(
    plain_log: Callable[..., Log], tmp_path: Path, tamper: Callable[..., None]
) -> None:
    log = plain_log(range(20), [0] * 20, out=tmp_path / "log")
    tamper(log.path, PART, _change("time", _swap_rows))
    found = _errors(check_log(log))
    assert found == ["row group 1: time goes back at request row 6; sort the requests by time"]


def test_several_problems_are_all_reported(
    rich_log: Log, copy_of: Callable[[Log], Path], tamper: Callable[..., None]
) -> None:
    path = copy_of(rich_log)
    tamper(path, PART, _change("candidates.rank.prerank", _first_two_equal))
    (path / "requests" / "part-00001.parquet").unlink()
    (path / "vocab" / "user.parquet").write_bytes(b"PAR1")
    (path / "items.parquet").write_bytes(b"")
    (path / "splits.json").write_text("{")
    report = check_log(path)
    assert {f.where for f in report.findings if f.level == "error"} == {
        "requests/part-00001.parquet",
        "vocab/user.parquet",
        "items.parquet",
        "splits.json",
        PART,
    }
    assert report.counts["row_groups_unreadable"] == 3
    assert report.counts["requests"] == 18  # of the other two files


def test_values_the_writer_repaired_are_mentioned(plain_log: Callable[..., Log]) -> None:
    log = plain_log(range(9), [0] * 9, x=lambda row, k: math.inf if row < 2 else float(row + k))
    messages = _warnings(check_log(log))
    assert "4 values of 'candidates.x' were not finite; stored as missing" in messages


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
