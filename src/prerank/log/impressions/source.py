"""Flat tables, wherever they lie: in memory, in a file of any common kind, in a folder of files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.csv as pv
import pyarrow.dataset as pds
import pyarrow.feather as pf
import pyarrow.fs as pafs

from prerank.errors import InputError, did_you_mean

__all__ = ["BatchSource", "FlatSource", "open_source", "read_flat"]

_COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_ARROW = (".arrow", ".feather", ".ipc")
_PARQUET = (".parquet", ".pq")
_KINDS = ".csv, .tsv (also .gz or .zst), .parquet, .arrow, .feather, or a folder of one of them"
_NULLS = ["", "null", "NULL", "NaN", "nan", "NA", "N/A", "None", "\\N"]
_BLOCK = 1 << 24


def read_flat(
    source: pa.Table | BatchSource | str | Path, columns: Sequence[str], header: Sequence[str] = ()
) -> pa.Table:
    """Read the named columns of a flat table into memory; see `open_source`."""
    if isinstance(source, BatchSource):
        return source.read(columns)
    return open_source(source, header).read(columns)


def open_source(source: pa.Table | str | Path, header: Sequence[str] = ()) -> FlatSource:
    """Find a flat table.

    Parameters
    ----------
    source : pyarrow.Table, path or URI
        A table in memory; a CSV or TSV file (also ``.gz`` or ``.zst``), a Parquet, Arrow or
        Feather file, or a folder (and its folders) of files of one of these kinds, read in order of
        their names; names that begin with ``.`` or ``_`` are passed over. A URI (``s3://``,
        ``gs://``, ``hdfs://``, ``file://``) is opened by pyarrow.fs.
    header : sequence of str
        Names of the columns of text files without a header line.

    Raises
    ------
    InputError
        No such file, an unknown kind, files of several kinds.
    """
    if isinstance(source, pa.Table):
        return FlatSource("table", "", (), pafs.LocalFileSystem(), tuple(header), source)
    where = str(source)
    try:
        if "://" in where:
            filesystem, path = pafs.FileSystem.from_uri(where)
        else:
            filesystem, path = pafs.LocalFileSystem(), str(Path(source).absolute())
        info = filesystem.get_file_info(path)
        if info.type == pafs.FileType.NotFound:
            raise InputError(f"{where}: not found; expected {_KINDS}")
        files = [path] if info.is_file else _files_of(filesystem, path)
    except (pa.ArrowException, OSError, ImportError) as error:
        raise InputError(f"{where}: cannot be opened: {_first_line(error)}") from None
    kinds = {_kind(name) for name in files} - {""}
    if not kinds:
        what = "unknown kind of file" if info.is_file else "holds no file of a known kind"
        raise InputError(f"{where}: {what}; expected {_KINDS}")
    if len(kinds) > 1:
        raise InputError(
            f"{where}: holds files of several kinds ({', '.join(sorted(kinds))}); keep one"
        )
    kind = kinds.pop()
    if header and kind not in _SEPARATORS:
        raise InputError(f"{where}: 'header' names the columns of text files, not of {kind}")
    chosen = tuple(name for name in files if _kind(name) == kind)
    return FlatSource(where, kind, chosen, filesystem, tuple(header), None)


def _files_of(filesystem: pafs.FileSystem, folder: str) -> list[str]:
    found = filesystem.get_file_info(pafs.FileSelector(folder, recursive=True))
    paths = sorted(info.path for info in found if info.is_file)
    hidden = (".", "_")
    return [
        path
        for path in paths
        if not any(part.startswith(hidden) for part in PurePosixPath(path[len(folder) :]).parts)
    ]


def _kind(name: str) -> str:
    """Return ``.csv``, ``.tsv``, ``.parquet``, ``.arrow``, or nothing for other files."""
    suffixes = [s.lower() for s in PurePosixPath(name).suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        return suffixes[-2] if suffixes[-2:-1] and suffixes[-2] in _SEPARATORS else ""
    last = suffixes[-1] if suffixes else ""
    if last in _PARQUET:
        return ".parquet"
    return ".arrow" if last in _ARROW else last if last in _SEPARATORS else ""


@dataclass(frozen=True, slots=True)
class BatchSource:
    """A flat table that a program makes batch by batch.

    Parameters
    ----------
    where : str
        What to call it in errors.
    schema : pyarrow.Schema
        Of the batches.
    make : callable
        Returns the batches; called once per reading.
    """

    where: str
    schema: pa.Schema
    make: Callable[[], Iterator[pa.RecordBatch]]

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the named columns, or all."""
        schema, batches = self.batches(columns)
        return pa.Table.from_batches(list(batches), schema)

    def batches(self, columns: Sequence[str] | None = None) -> tuple[pa.Schema, Iterator[Any]]:
        """Return the schema and the record batches."""
        names = _checked(columns, self.schema.names, self.where)
        schema = pa.schema([self.schema.field(name) for name in names])
        return schema, (batch.select(names) for batch in self.make())


@dataclass(frozen=True, slots=True)
class FlatSource:
    """A flat table that can be read whole or batch by batch.

    Parameters
    ----------
    where : str
        What to call it in errors.
    kind : str
        ``.csv``, ``.tsv``, ``.parquet`` or ``.arrow``; empty for a table in memory.
    files : tuple of str
        Paths in ``filesystem``.
    filesystem : pyarrow.fs.FileSystem
        Where they lie.
    header : tuple of str
        Column names of text files without a header line.
    table : pyarrow.Table or None
        The table in memory.
    """

    where: str
    kind: str
    files: tuple[str, ...]
    filesystem: pafs.FileSystem
    header: tuple[str, ...]
    table: pa.Table | None

    def names(self) -> list[str]:
        """Return the names of the columns."""
        with self._errors():
            if self.table is not None:
                return list(self.table.column_names)
            if self.kind in _SEPARATORS:
                if self.header:
                    return list(self.header)
                with self._text(self.files[0]) as stream:
                    return list(self._open_csv(stream, None).schema.names)
            return list(self._dataset().schema.names)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the named columns, or all.

        Raises
        ------
        InputError
            A missing column, a damaged file; for text, the row is named.
        """
        columns = _checked(columns, self.names(), self.where)
        with self._errors():
            if self.table is not None:
                return self.table.select(columns)
            if self.kind in _SEPARATORS:
                tables = [self._read_csv(name, columns) for name in self.files]
                return pa.concat_tables(tables, promote_options="permissive")
            if self.kind == ".arrow" and len(self.files) == 1:  # also version 1, and compressed
                with self.filesystem.open_input_file(self.files[0]) as file:
                    return pf.read_table(file, columns=columns).select(columns)
            return self._dataset().to_table(columns=columns)

    def batches(self, columns: Sequence[str] | None = None) -> tuple[pa.Schema, Iterator[Any]]:
        """Return the schema and the record batches, read as they are asked for.

        Parquet is decoded by several threads; batches come in order of files and rows. The types
        of text columns are those of the file's first 16 MiB.
        """
        columns = _checked(columns, self.names(), self.where)
        with self._errors():
            if self.table is not None:
                chosen = self.table.select(columns)
                return chosen.schema, self._guarded(chosen.to_batches())
            if self.kind in _SEPARATORS:
                with self._text(self.files[0]) as stream:
                    schema = self._open_csv(stream, columns).schema
                return schema, self._guarded(self._csv_batches(columns, schema))
            # Read ahead little: whole row groups are decoded at once, and count as memory in use.
            scanner = self._dataset().scanner(
                columns=columns, batch_size=1 << 16, batch_readahead=2, fragment_readahead=1
            )
            return scanner.projected_schema, self._guarded(scanner.to_batches())

    def _guarded(self, batches: Any) -> Iterator[Any]:
        with self._errors():
            yield from batches

    def _csv_batches(self, columns: list[str], schema: pa.Schema) -> Iterator[Any]:
        for name in self.files:
            with self._text(name) as stream:
                yield from self._open_csv(stream, columns, schema)

    def _dataset(self) -> pds.Dataset:
        kind = "ipc" if self.kind == ".arrow" else "parquet"
        return pds.dataset(list(self.files), format=kind, filesystem=self.filesystem)

    def _text(self, name: str) -> Any:
        packing = _COMPRESSED.get(PurePosixPath(name).suffix.lower())
        return self.filesystem.open_input_stream(name, compression=packing)

    def _layout(self, columns: Sequence[str] | None, schema: pa.Schema | None) -> dict[str, Any]:
        return {
            "parse_options": pv.ParseOptions(delimiter=_SEPARATORS[self.kind]),
            "convert_options": pv.ConvertOptions(
                include_columns=list(columns or ()),
                column_types=schema,
                strings_can_be_null=True,
                null_values=_NULLS,
            ),
        }

    def _read_csv(self, name: str, columns: list[str]) -> pa.Table:
        # Without threads an error names the row.
        reading = pv.ReadOptions(use_threads=False, column_names=self.header or None)
        with self._text(name) as stream:
            return pv.read_csv(stream, read_options=reading, **self._layout(columns, None))

    def _open_csv(
        self, stream: Any, columns: Sequence[str] | None, schema: pa.Schema | None = None
    ) -> pv.CSVStreamingReader:
        reading = pv.ReadOptions(
            use_threads=False, column_names=self.header or None, block_size=_BLOCK
        )
        return pv.open_csv(stream, read_options=reading, **self._layout(columns, schema))

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{self.where}: cannot be read: {_first_line(error)}") from None


def _checked(columns: Sequence[str] | None, found: list[str], where: str) -> list[str]:
    for name in columns or ():
        if name not in found:
            raise InputError(f"{where}: no column '{name}'; {did_you_mean(name, found)}")
    return found if columns is None else list(columns)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
