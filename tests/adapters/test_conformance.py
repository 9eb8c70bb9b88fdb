"""What the log of every adapter must be like; a new adapter adds its sample to conftest."""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from prerank.adapters import TABLE, get
from prerank.adapters.report import ImportReport
from prerank.errors import InputError
from prerank.log import open_log
from prerank.log.format.layout import item_columns, request_columns
from prerank.log.impressions.flatten import to_impressions

Samples = dict[str, Callable[[Path], None]]
Pack = Callable[[Path, str], None]


@pytest.fixture(scope="module", params=sorted(TABLE))
def imported(
    request: pytest.FixtureRequest, samples: Samples, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ImportReport]:
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "src").mkdir()
    samples[request.param](folder / "src")
    report = get(request.param)(folder / "src", folder / "log")
    return folder / "log", report


def _requests(log: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted((log / "requests").iterdir()))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_every_adapter_has_a_sample(samples: Samples) -> None:
    assert set(samples) == set(TABLE)


def test_columns_are_what_the_schema_declares(imported: tuple[Path, ImportReport]) -> None:
    log, _ = imported
    schema = open_log(log).schema
    assert {c.name for c in request_columns(schema)} == set(_requests(log).column_names)
    items = pq.read_schema(log / "items.parquet").names
    assert {c.name for c in item_columns(schema)} <= set(items)


def test_no_declared_feature_is_missing_everywhere(imported: tuple[Path, ImportReport]) -> None:
    log = open_log(imported[0])
    for feature in log.schema.features:
        if feature.kind in ("categorical", "multi") and not feature.clock:
            assert log.schema.size(feature.vocab) > 2, feature.name
    for name, values in log.items.scalars.items():
        assert (np.isfinite(values) & (values != 0)).any(), name


def test_lists_of_a_request_are_equally_long(imported: tuple[Path, ImportReport]) -> None:
    log, _ = imported
    table = _requests(log)
    for start in ("candidates.", *(f"history.{s}." for s in open_log(log).schema.streams)):
        lengths = [
            pc.list_value_length(table[name]).to_pylist()
            for name in table.column_names
            if name.startswith(start) or (start == "candidates." and name.startswith("labels."))
        ]
        assert all(other == lengths[0] for other in lengths)
        assert sum(lengths[0]) > 0


def test_requests_ascend_and_histories_end_before_them(
    imported: tuple[Path, ImportReport],
) -> None:
    log, _ = imported
    table = _requests(log)
    times = table["time"].to_pylist()
    assert times == sorted(times)
    for stream in open_log(log).schema.streams:
        for time, past in zip(times, table[f"history.{stream}.time"].to_pylist(), strict=True):
            assert past == sorted(past)
            assert all(event < time for event in past)


def test_parts_cover_the_log_once(imported: tuple[Path, ImportReport]) -> None:
    folder, report = imported
    log = open_log(folder)
    assert set(log.parts) == {"train", "valid", "test"}
    rows = [log[name].rows.within(0, log.num_requests) for name in log.parts]
    assert np.sort(np.concatenate(rows)).tolist() == list(range(log.num_requests))
    assert {name: log[name].num_requests for name in log.parts} == report.parts
    assert all(report.parts.values())


def test_the_report_counts_what_the_log_holds(imported: tuple[Path, ImportReport]) -> None:
    folder, report = imported
    log = open_log(folder)
    flat = pa.concat_tables(to_impressions(log))
    assert report.num_requests == log.num_requests
    assert report.num_candidates == flat.num_rows
    assert report.num_users == len(pc.unique(flat["user"]))
    assert report.num_items == log.items.num_items - 2
    assert log.schema.lineage.notes == report.notes != ()
    # An item stands once in a request.
    pairs = list(zip(flat["request_id"].to_pylist(), flat["item"].to_pylist(), strict=True))
    assert len(set(pairs)) == len(pairs)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_any_missing_file_is_named(name: str, samples: Samples, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: not found; expected a folder"):
        get(name)(tmp_path / "nowhere", tmp_path / "log")
    samples[name](tmp_path)
    for path in _files(tmp_path):
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(InputError, match=r"no file .* \(also .*; it holds ") as error:
            get(name)(tmp_path, tmp_path / "log")
        wanted = str(error.value).partition("no file ")[2].partition(" (also")[0].split(" or ")
        gone = path.relative_to(tmp_path).as_posix()
        assert any(fnmatch.fnmatch(gone, pattern) for pattern in wanted)
        assert not (tmp_path / "log").exists()
        path.write_bytes(content)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_broken_lines_and_empty_files_are_refused(
    name: str, samples: Samples, tmp_path: Path
) -> None:
    samples[name](tmp_path)
    for path in _files(tmp_path):
        content = path.read_bytes()
        lines = content.split(b"\n")
        for broken in (b"\n".join([*lines[:2], lines[2][:3], *lines[3:]]), b"", b"\x00\xff\n"):
            path.write_bytes(broken)
            with pytest.raises(InputError, match=path.name):
                get(name)(tmp_path, tmp_path / "log")
            assert not (tmp_path / "log").exists()
        path.write_bytes(content)


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".zip", "whole.zip"])
@pytest.mark.parametrize("name", sorted(TABLE))
def test_packing_does_not_matter(
    name: str, suffix: str, samples: Samples, pack: Pack, tmp_path: Path
) -> None:
    for part in ("plain", "packed"):
        (tmp_path / part).mkdir()
        samples[name](tmp_path / part)
    pack(tmp_path / "packed", suffix)
    src = tmp_path / "packed" / ("data.zip" if suffix == "whole.zip" else "")
    counted: list[int] = []
    plain = get(name)(tmp_path / "plain", tmp_path / "a")
    packed = get(name)(src, tmp_path / "b", progress=counted.append)
    assert plain == packed
    assert sum(counted) == plain.num_requests
    assert _requests(tmp_path / "a").equals(_requests(tmp_path / "b"))
    with pytest.raises(InputError, match="exists already"):
        get(name)(src, tmp_path / "b")
    shutil.rmtree(tmp_path / "b")
