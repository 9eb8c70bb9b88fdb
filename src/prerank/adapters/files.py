"""Text files of a public data set, wherever they lie: plain, .gz, .zst, .zip, in a folder or zip.

Formats here are plain: one record a line. Every complaint names the file, and the line
where there is one.
"""

from __future__ import annotations

import fnmatch
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv

from prerank.errors import InputError, did_you_mean

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
        # Two levels of folders are as deep as the published layouts go.
        deep = sorted(p for depth in ("*/*", "*/*/*") for p in path.glob(depth) if p.is_file())
        nested = [p.relative_to(path).as_posix() for p in deep]
        return Files(path, {name: name for name in [*names, *nested]}, None)
    if path.is_file() and zipfile.is_zipfile(path):
        archive = zipfile.ZipFile(path)
        stored = [n for n in archive.namelist() if not n.endswith("/")]
        # Archives wrap their files in folders (ml-1m/ratings.dat): any tail of a path is a name.
        tails = {
            "/".join(parts[k:]): name
            for name in reversed(stored)
            for parts in [PurePosixPath(name).parts]
            for k in range(len(parts))
        }
        return Files(path, tails, archive)
    found = "is a file (give its folder)" if path.is_file() else "not found"
    raise InputError(f"{path}: {found}; expected a folder of data files or a .zip archive of them")


@dataclass(frozen=True, slots=True)
class Files:
    """The data files of one folder or archive; ``names`` maps a file's path to its place.

    Paths are relative to the folder; files of an archive go by every tail of their path.
    """

    path: Path
    names: Mapping[str, str]
    archive: zipfile.ZipFile | None

    def find(self, *patterns: str) -> str | None:
        """Return the first file that matches a pattern, with or without a compression suffix.

        Parameters
        ----------
        patterns : str
            File names, paths or shell patterns, most wanted first; ``*`` stays inside a folder.
            The plain file wins over a packed one.
        """
        return next((match for pattern in patterns for match in self._matches(pattern)), None)

    def _matches(self, pattern: str) -> list[str]:
        depth = pattern.count("/")
        level = [name for name in self.names if name.count("/") == depth]
        return [n for suffix in _PACKED for n in sorted(fnmatch.filter(level, pattern + suffix))]

    def read(self, *patterns: str) -> Text:
        """Read a file into memory, unpacked.

        Raises
        ------
        InputError
            No file matches, or it cannot be unpacked.
        """
        name = self.find(*patterns)
        if name is None:
            raise self._absent(patterns)
        return self._open(name)

    def find_all(self, *patterns: str) -> list[str]:
        """Return every file that matches a pattern, in order of names.

        A file that lies there plain and packed is named once.

        Raises
        ------
        InputError
            No file matches.
        """
        found = {}
        for name in (n for pattern in reversed(patterns) for n in reversed(self._matches(pattern))):
            found[_unpacked(name)] = name
        if not found:
            raise self._absent(patterns)
        return [name for _, name in sorted(found.items())]

    def read_all(self, *patterns: str) -> Iterator[Text]:
        """Read every file that matches a pattern, one after another; see `find_all`."""
        for name in self.find_all(*patterns):
            yield self._open(name)

    def _absent(self, patterns: Sequence[str]) -> InputError:
        held = sorted(self.names)
        more = f", ... ({len(held)} files)" if len(held) > _SHOWN else ""
        return InputError(
            f"{self.path}: no file {' or '.join(patterns)} (also .zst, .gz, .zip); "
            f"it holds {', '.join(held[:_SHOWN]) or 'nothing'}{more}"
        )

    def _open(self, name: str) -> Text:
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


def _unpacked(name: str) -> str:
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) if suffix in _PACKED else name


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

    def named(
        self,
        columns: Mapping[str, pa.DataType],
        *,
        optional: Sequence[str] = (),
        nullable: Sequence[str] = (),
    ) -> pa.Table:
        r"""Parse comma-separated lines under a header; values may stand in double quotes.

        Parameters
        ----------
        columns : mapping of str to DataType
            What to read, wherever it stands; other columns are left out.
        optional : sequence of str
            Columns that may be absent; of those that are there, values may be empty (null).
        nullable : sequence of str
            Columns that must be there but whose values may be empty (null).

        Raises
        ------
        InputError
            A missing column, and as `table`.

        Examples
        --------
        >>> text = Text("tags.csv", b'tag,,item\n"12,65",x,3\n,y,4\n')
        >>> text.named({"item": pa.int64(), "tag": pa.string()}, optional=["tag"]).to_pylist()
        [{'item': 3, 'tag': '12,65'}, {'item': 4, 'tag': None}]
        """
        names = [name.strip('"') for name in self.header().split(",")]
        for name in columns:
            if name not in names and name not in optional:
                hint = did_you_mean(name, [n for n in names if n])
                raise InputError(f"{self.where}:1: no column '{name}'; {hint}")
        # Unnamed and unwanted columns are read as text, so that every line's length is checked.
        types = {
            name if name in columns else f"{name}#{k}": columns.get(name, pa.string())
            for k, name in enumerate(names)
        }
        free = [n for n in types if n not in columns or n in optional or n in nullable]
        table = self.table(types, ",", header=True, nullable=free, quote='"')
        kept = [name for name in columns if name in names]
        return pa.table({name: _empty_as_null(table[name]) for name in kept})

    def table(
        self,
        columns: Mapping[str, pa.DataType],
        separator: str,
        *,
        header: bool = False,
        encoding: str = "utf8",
        nullable: Sequence[str] = (),
        quote: str | None = None,
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
        quote : str, optional
            Character that values with separators in them stand between.

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
            table = _parse(data, columns, separator, encoding, quote, threads=True)
        except (pa.ArrowException, UnicodeDecodeError):
            # Only a single thread counts rows; read again to say where.
            try:
                table = _parse(data, columns, separator, encoding, quote, threads=False)
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


def _empty_as_null(values: pa.ChunkedArray) -> pa.ChunkedArray:
    if values.type != pa.string():
        return values
    return pc.if_else(pc.equal(values, ""), pa.scalar(None, pa.string()), values)


def _parse(
    data: bytes,
    columns: Mapping[str, pa.DataType],
    separator: str,
    encoding: str,
    quote: str | None,
    *,
    threads: bool,
) -> pa.Table:
    return pv.read_csv(
        pa.BufferReader(data),
        read_options=pv.ReadOptions(
            column_names=list(columns),
            use_threads=threads,
            encoding=encoding,
            block_size=_BLOCK,
        ),
        parse_options=pv.ParseOptions(delimiter=separator, quote_char=quote or False),
        convert_options=pv.ConvertOptions(
            column_types=dict(columns), null_values=[""], strings_can_be_null=False
        ),
    )
