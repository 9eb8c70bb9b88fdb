"""Writing is atomic: a log is there whole or not at all, whatever stops the writer."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from prerank.errors import InputError, PrerankError
from prerank.log import open_log, write_log
from prerank.schema import Label, Schema

SCHEMA = Schema(labels=(Label(name="click"),))
ITEMS = pa.table({"item_id": [1, 2]})
TABLE = pa.table(
    {
        "request_id": [1, 2],
        "user": ["u", "v"],
        "time": [5, 6],
        "candidates.item": [[1, 2], [1]],
        "candidates.stage": [["exposed", "rank"], ["pool"]],
        "labels.click": [[1.0, None], [None]],
    }
)


def test_an_existing_folder_or_file_is_refused_and_kept(tmp_path: Path) -> None:
    out = tmp_path / "log"
    out.mkdir()
    (out / "precious").write_text("x")
    with pytest.raises(InputError, match="exists already; choose another name or remove it first"):
        write_log(out, SCHEMA, [TABLE])
    assert (out / "precious").read_text() == "x"
    (tmp_path / "file").write_text("y")
    with pytest.raises(InputError, match="exists already"):
        write_log(tmp_path / "file", SCHEMA, [TABLE])
    with pytest.raises(InputError, match="cannot be created"):
        write_log(tmp_path / "file" / "log", SCHEMA, [TABLE])


def test_an_empty_folder_is_taken_and_parents_are_made(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write_log(tmp_path / "a", SCHEMA, [TABLE])
    write_log(tmp_path / "b" / "c", SCHEMA, [TABLE])
    assert open_log(tmp_path / "a").num_requests == open_log(tmp_path / "b/c").num_requests == 2


def _disk_full(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "target",
    [
        "pyarrow.parquet.ParquetWriter.write_table",
        "pyarrow.parquet.ParquetWriter.close",
        "pyarrow.parquet.write_table",
        "os.fsync",
        "pathlib.Path.rename",
    ],
)
def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "log"
    with monkeypatch.context() as patch:
        patch.setattr(target, _disk_full)
        with pytest.raises(PrerankError, match="cannot be written: No space left on device") as e:
            write_log(out, SCHEMA, [TABLE], ITEMS)
    assert not isinstance(e.value, InputError)  # a failed run, not bad input
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_source_passes_through_and_leaves_nothing(tmp_path: Path) -> None:
    def tables() -> Any:
        yield TABLE
        raise RuntimeError("source broke")

    with pytest.raises(RuntimeError, match="source broke"):
        write_log(tmp_path / "log", SCHEMA, tables())
    assert list(tmp_path.iterdir()) == []


_KILLED = """
import os, sys
import pyarrow as pa
from prerank.log import write_log
from prerank.schema import Schema, Label


def tables():
    for k in range(3):
        yield pa.table({"request_id": [k], "user": [1], "time": [k], "candidates.item": [[1]],
                        "candidates.stage": [["pool"]]})
    os._exit(9)

write_log(sys.argv[1], Schema(labels=(Label(name="click"),)), tables())
"""


def test_a_killed_writer_leaves_no_log(tmp_path: Path) -> None:
    out = tmp_path / "log"
    done = subprocess.run([sys.executable, "-c", _KILLED, str(out)], check=False)
    assert done.returncode == 9
    assert not out.exists()
    left = list(tmp_path.iterdir())
    assert all(path.name.startswith(".log.") and path.name.endswith(".partial") for path in left)
    for path in left:  # and what is left cannot be mistaken for one
        with pytest.raises(InputError, match=r"not a whole request log \(manifest.json is missing"):
            open_log(path)
    write_log(out, SCHEMA, [TABLE])  # the next attempt succeeds
    assert open_log(out).num_requests == 2
