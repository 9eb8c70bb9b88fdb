"""A change of a log happens as a whole or not at all, whatever goes wrong."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prerank.errors import InputError, PrerankError
from prerank.log import Log, Transforms, check_log, open_log, split_log
from prerank.log.growth import add_columns, append_log, compute_stats, join_labels
from prerank.log.growth import revise as room
from prerank.log.growth.revise import revise

Row = dict[str, Any]
LATE = pa.table({"request_id": ["r1", "r2"], "item": [0, 10], "rated": [1.0, 2.0]})


@pytest.fixture
def changes(later: pa.Table) -> dict[str, Callable[[Path], Any]]:
    """Every kind of change, by name."""
    return {
        "append": lambda path: append_log(path, [later.slice(0, 9), later.slice(9)], part="day2"),
        "labels": lambda path: join_labels(path, LATE, observed_until=2 * 10**12),
        "stats": lambda path: compute_stats(path, ("1d",)),
    }


@pytest.mark.parametrize("change", ["append", "labels", "stats"])
@pytest.mark.parametrize("fatal", [OSError(errno.ENOSPC, "No space left on device"), KeyError("x")])
def test_failing_anywhere_leaves_the_old_log(
    base_log: Log,
    changes: dict[str, Callable[[Path], Any]],
    snapshot: Callable[[Path], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    fatal: Exception,
) -> None:
    before = snapshot(base_log.path.parent)
    points = [
        *((pq.ParquetWriter, "write_table"), (pq.ParquetWriter, "close"), (pq, "write_table")),
        *((os, "fsync"), (room, "digest"), (room, "_exchange"), (os, "link")),
    ]
    num_failed = 0
    for owner, name in points:
        real = getattr(owner, name)
        calls = {"left": 0}

        def failing(*args: Any, real: Any = real, calls: Any = calls, **options: Any) -> Any:
            calls["left"] -= 1
            if calls["left"] == -1:
                raise fatal
            return real(*args, **options)

        for nth in (0, 4):
            calls["left"] = nth
            with monkeypatch.context() as patched:
                patched.setattr(owner, name, failing)
                try:
                    changes[change](base_log.path)
                except (PrerankError, KeyError) as error:
                    assert "\n" not in str(error)  # noqa: PT017
                    num_failed += 1
                    assert snapshot(base_log.path.parent) == before
                else:
                    assert calls["left"] >= 0 or name == "link"  # copies where it cannot link
                    return_to(base_log.path, before)
    assert num_failed >= 5
    assert check_log(base_log).ok


def return_to(path: Path, files: dict[str, bytes]) -> None:
    """Put a log back as it was."""
    import shutil

    shutil.rmtree(path)
    for name, content in files.items():
        file = path.parent / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


_CHILD = """
import sys
import pyarrow.parquet as pq
from prerank.log.growth import append_log, compute_stats, join_labels
log, table, change = sys.argv[1:]
rows = pq.read_table(table)
print("ready", flush=True)
if change == "append":
    append_log(log, [rows.slice(k, 1) for k in range(rows.num_rows)], part="day2")
elif change == "labels":
    join_labels(log, rows.select([]).append_column("request_id", rows["request_id"])
                .append_column("item", [[0] * rows.num_rows])
                .append_column("rated", [[1.0] * rows.num_rows]))
else:
    compute_stats(log, ("1d",))
"""


@pytest.mark.slow
@pytest.mark.parametrize("change", ["append", "labels", "stats"])
def test_killed_at_random_points_leaves_old_or_new(
    base_log: Log,
    later: pa.Table,
    stored_rows: Callable[[Log], list[Row]],
    tmp_path: Path,
    change: str,
) -> None:
    pq.write_table(later, tmp_path / "later.parquet")
    before = stored_rows(base_log)
    num_old = 0
    for k in range(12):
        words = [sys.executable, "-c", _CHILD, base_log.path, tmp_path / "later.parquet", change]
        with subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(k * k * 0.0005)
            process.send_signal(signal.SIGKILL)
        log = open_log(base_log.path)
        report = check_log(log)
        assert report.ok, report.findings
        if log.schema.lineage.revision:
            break
        num_old += 1
        assert stored_rows(log) == before
    assert num_old
    # A later change of the log clears away what killed ones left.
    join_labels(base_log.path, LATE)
    left = [p.name for p in base_log.path.parent.iterdir() if p.name != "log"]
    assert left == []


def test_a_second_change_at_the_same_time_is_refused(
    base_log: Log, changes: dict[str, Callable[[Path], Any]]
) -> None:
    with revise(base_log.path):
        for change in changes.values():
            with pytest.raises(InputError, match="another process is changing this log"):
                change(base_log.path)
        with pytest.raises(InputError, match="another process is changing this log"):
            split_log(base_log)
    for change in changes.values():
        change(base_log.path)
    assert open_log(base_log.path).schema.lineage.revision == 4


def test_a_lock_file_left_behind_does_not_lock(base_log: Log) -> None:
    base_log.path.with_name(".log.lock").touch()
    join_labels(base_log.path, LATE)
    assert not base_log.path.with_name(".log.lock").exists()


def test_a_link_to_a_log_stays_a_link(base_log: Log, later: pa.Table, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(base_log.path)
    append_log(link, [later])
    assert link.is_symlink()
    assert open_log(base_log.path).num_requests == open_log(link).num_requests == 50


def test_a_relative_path(base_log: Log, later: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(base_log.path)
    append_log(".", [later])
    assert open_log(base_log.path).num_requests == 50


@pytest.mark.parametrize("fails", [False, True])
def test_without_an_exchange_of_names(
    base_log: Log,
    later: pa.Table,
    snapshot: Callable[[Path], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    fails: bool,
) -> None:
    before = snapshot(base_log.path.parent)
    monkeypatch.setattr(room, "_swap", lambda new, old: False)
    if not fails:
        append_log(base_log.path, [later])
        assert open_log(base_log.path).num_requests == 50
        assert [p.name for p in base_log.path.parent.iterdir()] == ["log"]
        return
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(errno.EIO, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(PrerankError, match="cannot be changed: Input/output error"):
        append_log(base_log.path, [later])
    assert snapshot(base_log.path.parent) == before


def test_a_file_system_without_hard_links(
    base_log: Log, later: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*names: str) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    append_log(base_log.path, [later])
    assert check_log(base_log.path).ok


def test_no_log_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match=str(path)):
            compute_stats(path, ("1d",))
    assert list(tmp_path.iterdir()) == []


def _all_changes(path: Path, later: pa.Table) -> None:
    join_labels(path, LATE, observed_until=2 * 10**12)
    compute_stats(path, ("1d",))
    append_log(path, [later], part="day2")


def test_files_not_in_the_manifest_are_named(base_log: Log, later: pa.Table) -> None:
    _all_changes(base_log.path, later)
    for folder in ("columns/labels.rated", "columns/labels.other", "item_stats"):
        file = base_log.path / folder / "part-00077.parquet"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"")
    report = check_log(base_log.path)
    assert report.ok
    odd = {f.where for f in report.findings if "not in manifest" in f.message}
    assert odd == {
        "columns/labels.rated/part-00077.parquet",
        "columns/labels.other/part-00077.parquet",
        "item_stats/part-00077.parquet",
    }


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.slice(1), "row"),
        (lambda t: pa.concat_tables([t, t]), "its row groups are not those of"),
        (lambda t: t.rename_columns(["labels.other"]), "no column 'labels.rated'"),
        (
            lambda t: t.set_column(0, "labels.rated", pa.array([[1.0]] * len(t))),
            "lists of another length",
        ),
        (
            lambda t: t.set_column(0, "labels.rated", pa.array(["a"] * len(t))),
            "is not a list in every row",
        ),
    ],
)
def test_side_columns_out_of_line_are_named(
    base_log: Log,
    tamper: Callable[..., None],
    change: Callable[[pa.Table], pa.Table],
    says: str,
) -> None:
    join_labels(base_log.path, LATE)
    name = "columns/labels.rated/part-00000.parquet"
    rows = pq.ParquetFile(base_log.path / name).metadata.row_group(0).num_rows

    tamper(base_log.path, name, change)
    table = pq.read_table(base_log.path / name)
    pq.write_table(table, base_log.path / name, row_group_size=rows)
    report = check_log(base_log.path, deep=False)
    messages = [f.message for f in report.findings if f.level == "error"]
    assert any(says in message for message in messages), messages


@pytest.mark.slow
def test_grown_logs_damaged_anywhere(
    base_log: Log,
    later: pa.Table,
    copy_of: Callable[[Log], Path],
    tensors_of: Callable[..., Any],
    same: Callable[..., bool],
) -> None:
    """One byte changed in, or one cut of, any file: named in one line, or harmless."""
    _all_changes(base_log.path, later)
    grown = open_log(base_log.path)

    def read(path: Path) -> Any:
        log = open_log(path)
        return tensors_of(log.all(), Transforms.fit(log["train"], min_count=1))

    good = read(grown.path)
    rng = random.Random(5)
    names = [n for n in grown.manifest.files if n.startswith(("columns/", "item_stats/"))]
    names += ["manifest.json", "schema.json", "splits.json"]
    outcomes = []
    for name in names:
        for _ in range(6):
            path = copy_of(grown)
            content = bytearray((path / name).read_bytes())
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            (path / name).write_bytes(bytes(content))
            report = check_log(path)
            try:
                harmless = same(read(path), good)
            except PrerankError as error:
                assert "\n" not in str(error)  # noqa: PT017
                outcomes.append("refused")
                continue
            assert harmless or not report.ok, name  # never silently another batch
            outcomes.append("harmless" if harmless else "found by the check")
    assert outcomes.count("refused") > len(outcomes) / 3


def test_a_column_name_must_be_one(base_log: Log) -> None:
    for name in ("labels.a/b", "candidates.score.", "labels..x", "labels.a b"):
        with pytest.raises(InputError, match="a name is of letters"):
            add_columns(base_log.path, lambda log, name=name: (log.schema, [name], dict))  # type: ignore[misc]
