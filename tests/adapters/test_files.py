"""Data files by name, whatever they are packed in; complaints name file and line."""

from __future__ import annotations

import zipfile
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pyarrow as pa
import pytest

from prerank.adapters import get
from prerank.adapters.files import Text, open_files
from prerank.errors import InputError

TYPES = {"a": pa.int64(), "b": pa.string()}


def test_a_plain_file_wins_over_a_packed_one_and_patterns_go_in_order(tmp_path: Path) -> None:
    for name in ("x.tsv.gz", "x.tsv", "y_1.tsv", "y_2.tsv.zst"):
        (tmp_path / name).write_bytes(b"")
    files = open_files(tmp_path)
    assert files.find("x.tsv") == "x.tsv"
    assert files.find("z.tsv", "y_*.tsv") == "y_1.tsv"
    assert files.find("y_2.tsv") == "y_2.tsv.zst"
    assert files.find("z.tsv") is None


def test_a_missing_file_tells_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file a\.dat \(also \.zst, .*it holds nothing"):
        open_files(tmp_path).read("a.dat")
    for i in range(20):
        (tmp_path / f"f{i:02d}").write_bytes(b"")
    with pytest.raises(InputError, match=r"it holds f00, .*f11, \.\.\. \(20 files\)"):
        open_files(tmp_path).read("a.dat")


def test_a_single_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_bytes(b"1::2")
    with pytest.raises(InputError, match=r"is a file .give its folder."):
        open_files(tmp_path / "ratings.dat")


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".zip"])
def test_a_damaged_archive_is_named(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a.dat{suffix}").write_bytes(b"this is not packed at all")
    with pytest.raises(InputError, match=f"a.dat{suffix}: cannot be read"):
        open_files(tmp_path).read("a.dat")


def test_a_zip_with_two_files_is_ambiguous(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.dat.zip", "w") as archive:
        archive.writestr("a.dat", "1")
        archive.writestr("b.dat", "1")
    with pytest.raises(InputError, match="holds 2 files; expected one"):
        open_files(tmp_path).read("a.dat")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"1::x\n2::y\nz::w\n", r"f:3: 'a': not read to int64: invalid value 'z'"),
        (b"1::x\n\n\r\n2::y\nz::w\n", r"f:5: 'a'"),
        (b"1::x\n2::y::z\n", r"f:2: Expected 2 columns, got 3: 2::y::z"),
        (b"1::x\n2\n", r"f:2: Expected 2 columns, got 1: 2"),
        (b"1::x\n2::\n", r"f:2: 'b' is empty"),
        (b"1::x\n::y\n", r"f:2: 'a' is empty"),
        (b"1::x\n2::\xff\n", r"f:2: 'b': not read to string: invalid UTF8"),
        (b"\n \n", r"f: no records"),
    ],
)
def test_a_bad_line_is_named(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Text("f", data).table(TYPES, "::")


def test_lines_are_counted_past_header_and_many_blocks() -> None:
    lines = [b"a\tb", *(b"%d\tx" % i for i in range(100_000)), b"bad\tx"]
    with pytest.raises(InputError, match=r"^f:100002: 'a'.*'bad'"):
        Text("f", b"\n".join(lines)).table(TYPES, "\t", header=True)


def test_quotes_and_separators_inside_values_are_plain_text() -> None:
    table = Text("f", b'1::"a: b"\r\n2::it\'s "\n').table(TYPES, "::")
    assert table["b"].to_pylist() == ['"a: b"', "it's \""]


def test_columns_that_may_be_empty() -> None:
    table = Text("f", b"1::\n::y\n").table(TYPES, "::", nullable=("a", "b"))
    assert table.to_pydict() == {"a": [1, None], "b": ["", "y"]}


def test_an_unknown_adapter_names_the_nearest() -> None:
    with pytest.raises(InputError, match="no adapter 'mnd'; did you mean 'mind'"):
        get("mnd")


def test_a_package_can_bring_its_own_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("mine", "prerank.adapters.mind:import_mind", "prerank.adapters")
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: EntryPoints([entry]))
    assert get("mine") is get("mind")
