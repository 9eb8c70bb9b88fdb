"""Flat files of every kind read alike, whole or in batches; what cannot be read is named."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pv
import pyarrow.feather as pf
import pyarrow.parquet as pq
import pytest

from prerank.errors import InputError
from prerank.log.impressions.source import BatchSource, open_source, read_flat

TABLE = pa.table({"u": [3, 1, 2], "name": ["x", None, "z"], "score": [0.5, None, 1.0]})


def _text(path: Path, separator: str) -> None:
    packing = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix)
    with pa.output_stream(str(path), compression=packing) as stream:
        pv.write_csv(TABLE, stream, pv.WriteOptions(delimiter=separator))


@pytest.mark.parametrize(
    "name",
    ["a.csv", "a.csv.gz", "a.CSV.zst", "a.tsv", "a.tsv.zst", "a.parquet", "a.feather", "a.arrow"],
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if ".parquet" in name:
        pq.write_table(TABLE, path)
    elif "sv" in name.lower():
        _text(path, "\t" if "tsv" in name else ",")
    else:
        pf.write_feather(TABLE, str(path), compression="uncompressed")
    assert read_flat(path, ["score", "u", "name"]).to_pydict() == {
        "score": [0.5, None, 1.0],
        "u": [3, 1, 2],
        "name": ["x", None, "z"],
    }


def test_a_folder_of_parquet_is_one_table(tmp_path: Path) -> None:
    for i in range(3):
        pq.write_table(TABLE.slice(i, 1), tmp_path / f"part-{i}.parquet")
    assert read_flat(tmp_path, ["u"])["u"].to_pylist() == [3, 1, 2]


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.feather", "folder"])
def test_a_missing_column_names_the_nearest(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.csv":
        _text(path, ",")
    elif name == "a.feather":
        pf.write_feather(TABLE, str(path))
    else:
        path.parent.mkdir(exist_ok=True)
        if name == "folder":
            path.mkdir()
        pq.write_table(TABLE, path / "p.parquet" if name == "folder" else path)
    with pytest.raises(InputError, match=f"{name}: no column 'scor'; did you mean 'score'"):
        read_flat(path, ["scor"])


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.csv: not found"):
        read_flat(tmp_path / "no.csv", ["u"])
    (tmp_path / "a.xlsx").write_bytes(b"x")
    with pytest.raises(InputError, match=r"a\.xlsx: unknown kind of file; expected \.csv"):
        read_flat(tmp_path / "a.xlsx", ["u"])
    (tmp_path / "a.parquet").write_bytes(b"not parquet")
    with pytest.raises(InputError, match=r"a\.parquet: cannot be read"):
        read_flat(tmp_path / "a.parquet", ["u"])
    (tmp_path / "a.csv").write_text("u,v\n1,2\n3\n")
    with pytest.raises(InputError, match=r"a\.csv: cannot be read.*Row #3.*Expected 2 columns"):
        read_flat(tmp_path / "a.csv", ["u"])
    (tmp_path / "a.csv.gz").write_bytes(b"u,v\n1,2\n")
    with pytest.raises(InputError, match=r"a\.csv\.gz: cannot be read"):
        read_flat(tmp_path / "a.csv.gz", ["u"])


@pytest.mark.parametrize("name", ["a.csv.gz", "a.tsv", "a.parquet", "a.feather", "table"])
def test_batches_are_the_whole_table(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.parquet":
        pq.write_table(TABLE, path, row_group_size=1)
    elif name == "a.feather":
        pf.write_feather(TABLE, str(path), chunksize=1)
    elif name != "table":
        _text(path, "\t" if name == "a.tsv" else ",")
    source = open_source(TABLE if name == "table" else path)
    schema, batches = source.batches(["name", "u"])
    assert pa.Table.from_batches(list(batches), schema).equals(source.read(["name", "u"]))


def test_a_folder_may_hold_text_and_has_hidden_files(tmp_path: Path) -> None:
    (tmp_path / "day=2").mkdir()
    _text(tmp_path / "b.csv", ",")
    _text(tmp_path / "day=2" / "a.csv.gz", ",")
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / ".part.csv").write_text("junk")
    assert open_source(tmp_path).read(["u"])["u"].to_pylist() == [3, 1, 2, 3, 1, 2]
    _, batches = open_source(tmp_path).batches()
    assert sum(batch.num_rows for batch in batches) == 6
    pq.write_table(TABLE, tmp_path / "c.parquet")
    with pytest.raises(InputError, match=r"several kinds \(\.csv, \.parquet\); keep one"):
        open_source(tmp_path)


def test_a_program_can_be_the_source() -> None:
    made = BatchSource("made", TABLE.schema, lambda: iter(TABLE.to_batches(max_chunksize=1)))
    assert read_flat(made, ["name"]).equals(TABLE.select(["name"]))
    assert made.read().equals(TABLE)  # again, from the beginning
    with pytest.raises(InputError, match="made: no column 'nam'; did you mean 'name'"):
        read_flat(made, ["nam"])


def test_a_header_can_be_given(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,x\n2,y\n")
    assert read_flat(tmp_path / "a.csv", ["b"], ("a", "b"))["b"].to_pylist() == ["x", "y"]
    with pytest.raises(InputError, match=r"cannot be read.*Expected 3 columns, got 2"):
        read_flat(tmp_path / "a.csv", ["b"], ("a", "b", "c"))
    pq.write_table(TABLE, tmp_path / "a.parquet")
    with pytest.raises(InputError, match="'header' names the columns of text files"):
        open_source(tmp_path / "a.parquet", ("u", "v", "w"))


def test_uris_are_opened_by_arrow(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "a.parquet")
    uri = (tmp_path / "a.parquet").as_uri()
    assert read_flat(uri, ["u"])["u"].to_pylist() == [3, 1, 2]
    with pytest.raises(InputError, match=r"file:///nowhere/b\.csv: not found"):
        read_flat("file:///nowhere/b.csv", ["u"])
    with pytest.raises(InputError, match=r"nosuch://a/b\.csv: cannot be opened"):
        read_flat("nosuch://a/b.csv", ["u"])


def test_text_whose_type_changes_late_is_refused_in_batches(tmp_path: Path) -> None:
    rows = "".join(f"{k},0000000\n" for k in range(2_000_000))
    (tmp_path / "a.csv").write_text("u,v\n" + rows + "1,x\n")
    _, batches = open_source(tmp_path / "a.csv").batches(["v"])
    with pytest.raises(InputError, match="cannot be read"):
        list(batches)
