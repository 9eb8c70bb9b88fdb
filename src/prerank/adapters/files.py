"""Text files of a public data set, wherever they lie: plain, .gz, .zst, .zip, in a folder or zip.

Formats here are plain: one record a line, no quoting. Every complaint names the file, and the line
where there is one.
"""

from __future__ import annotations

import fnmatch
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv

from prerank.errors import InputError

__all__ = ["Files", "Text", "bad_row", "open_files"]

_PACKED = {"": None, ".zst": "zstd", ".gz": "gzip", ".zip": "zip"}
_UNIT = "\x1f"
_SHOWN = 12
_BLOCK = 1 << 24  # bytes; a line may not be longer


def open_files(src: str | Path) -> Files:
    """Open a folder or a .zip archive of data files.

    Raises
    ------
    InputError
        Neither a folder nor a .zip archive.
    """
    path = Path(src)
    if path.is_dir():
        names = sorted(p.name for p in path.iterdir() if p.is_file())
        return Files(path, {name: name for name in names}, None)
    if path.is_file() and zipfile.is_zipfile(path):
        archive = zipfile.ZipFile(path)
        stored = [n for n in archive.namelist() if not n.endswith("/")]
        # Archives wrap their files in a folder (ml-1m/ratings.dat); names alone are looked for.
        return Files(path, {PurePosixPath(n).name: n for n in reversed(stored)}, archive)
    found = "is a file (give its folder)" if path.is_file() else "not found"
    raise InputError(f"{path}: {found}; expected a folder of data files or a .zip archive of them")


@dataclass(frozen=True, slots=True)
class Files:
    """The data files of one folder or archive; ``names`` maps a file's name to its place."""

    path: Path
    names: Mapping[str, str]
    archive: zipfile.ZipFile | None

    def find(self, *patterns: str) -> str | None:
        """Return the first file that matches a pattern, with or without a compression suffix.

        Parameters
        ----------
        patterns : str
            File names or shell patterns, most wanted first; the plain file wins over a packed one.
        """
        for pattern in patterns:
            for suffix in _PACKED:
                matches = sorted(fnmatch.filter(self.names, pattern + suffix))
                if matches:
                    return matches[0]
        return None

    def read(self, *patterns: str) -> Text:
        """Read a file into memory, unpacked.

        Raises
        ------
        InputError
            No file matches, or it cannot be unpacked.
        """
        name = self.find(*patterns)
        if name is None:
            held = sorted(self.names)
            more = f", ... ({len(held)} files)" if len(held) > _SHOWN else ""
            raise InputError(
                f"{self.path}: no file {' or '.join(patterns)} (also .zst, .gz, .zip); "
                f"it holds {', '.join(held[:_SHOWN]) or 'nothing'}{more}"
            )
        where = f"{self.path}/{name}"
        packing = _PACKED.get(PurePosixPath(name).suffix)
        try:
            if self.archive is not None:
                data: bytes | pa.Buffer = self.archive.read(self.names[name])
            else:
                data = (self.path / name).read_bytes()
            if packing == "zip":
                data = _only_member(data, where)
            elif packing is not None:
                with pa.input_stream(pa.BufferReader(data), compression=packing) as stream:
                    data = stream.read()
        except (OSError, pa.ArrowException, zipfile.BadZipFile, RuntimeError, EOFError) as error:
            raise InputError(f"{where}: cannot be read: {error}") from None
        return Text(where, data)


def _only_member(data: bytes, where: str) -> bytes:
    with zipfile.ZipFile(pa.BufferReader(data)) as archive:
        members = [n for n in archive.namelist() if not n.endswith("/")]
        if len(members) != 1:
            raise InputError(f"{where}: holds {len(members)} files; expected one")
        return archive.read(members[0])


@dataclass(frozen=True, slots=True)
class Text:
    r"""Content of one file and what to call it in errors.

    Examples
    --------
    >>> text = Text("ratings.dat", b"1::10::5\n1::11::4\n")
    >>> text.table({"user": pa.int64(), "item": pa.int64(), "stars": pa.int64()}, "::").to_pylist()
    [{'user': 1, 'item': 10, 'stars': 5}, {'user': 1, 'item': 11, 'stars': 4}]
    """

    where: str
    data: bytes

    def header(self) -> str:
        """Return the first line."""
        return self.data.split(b"\n", 1)[0].decode("utf-8-sig", errors="replace").rstrip("\r")

    def table(
        self,
        columns: Mapping[str, pa.DataType],
        separator: str,
        *,
        header: bool = False,
        encoding: str = "utf8",
        nullable: Sequence[str] = (),
    ) -> pa.Table:
        """Parse the lines.

        Parameters
        ----------
        columns : mapping of str to DataType
            Names and types of all columns, in file order.
        separator : str
            What stands between values; may be longer than one character.
        header : bool
            The first line is no record.
        encoding : str
            Of the text.
        nullable : sequence of str
            Columns that may be empty (empty text stays empty text).

        Raises
        ------
        InputError
            A line with too few or many values, a value of another type, an empty value, bad
            encoding: with file and line.
        """
        data = self.data
        if header:
            data = data.partition(b"\n")[2]
        if not data.strip():
            raise InputError(f"{self.where}: no records")
        if len(separator) > 1:
            data = data.replace(separator.encode(), _UNIT.encode())
            separator = _UNIT
        try:
            table = _parse(data, columns, separator, encoding, threads=True)
        except (pa.ArrowException, UnicodeDecodeError):
            # Only a single thread counts rows; read again to say where.
            try:
                table = _parse(data, columns, separator, encoding, threads=False)
            except (pa.ArrowException, UnicodeDecodeError) as error:
                raise self._error(error, list(columns), header) from None
        for name in columns:
            if name in nullable:
                continue
            empty = pc.equal(table[name], "") if columns[name] == pa.string() else None
            empty = table[name].is_null() if empty is None else empty
            if pc.any(empty).as_py():
                row = int(np.flatnonzero(empty.to_numpy())[0])
                raise bad_row(self, row, f"'{name}' is empty", header=header)
        return table

    def _error(self, error: Exception, columns: list[str], header: bool) -> InputError:
        text = (str(error).splitlines() or [""])[0]
        text = re.sub(r"In CSV column #(\d+)", lambda m: f"'{columns[int(m[1])]}'", text)
        text = text.replace("CSV parse error: ", "").replace("CSV conversion error", "not read")
        row = re.search(r"Row #(\d+): ", text)
        if row is None:
            return InputError(f"{self.where}: {text}")
        text = text.replace(row[0], "").replace(_UNIT, "::")
        return bad_row(self, int(row[1]) - 1, text, header=header)


def bad_row(text: Text, row: int, reason: str, *, header: bool = False) -> InputError:
    """Return the error for record ``row`` (from 0): names file and line, blank lines counted."""
    seen = -1 - int(header)
    for line, content in enumerate(text.data.split(b"\n"), start=1):
        seen += bool(content.strip(b"\r"))
        if seen == row:
            return InputError(f"{text.where}:{line}: {reason}")
    return InputError(f"{text.where}: record {row + 1}: {reason}")


def _parse(
    data: bytes, columns: Mapping[str, pa.DataType], separator: str, encoding: str, *, threads: bool
) -> pa.Table:
    return pv.read_csv(
        pa.BufferReader(data),
        read_options=pv.ReadOptions(
            column_names=list(columns),
            use_threads=threads,
            encoding=encoding,
            block_size=_BLOCK,
        ),
        parse_options=pv.ParseOptions(delimiter=separator, quote_char=False),
        convert_options=pv.ConvertOptions(
            column_types=dict(columns), null_values=[""], strings_can_be_null=False
        ),
    )
