"""Files of a request log: names, atomic writing, reading with errors a user can act on."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from prerank.errors import InputError, PrerankError

__all__ = [
    "COLUMNS",
    "DAMAGED",
    "ITEMS",
    "ITEM_STATS",
    "MANIFEST",
    "PARQUET_ERRORS",
    "REQUESTS",
    "SCHEMA",
    "SPLITS",
    "VOCAB",
    "Count",
    "FileEntry",
    "Manifest",
    "atomic_folder",
    "check_free",
    "check_size",
    "digest",
    "first_line",
    "log_id_of",
    "read_json",
    "read_table",
    "write_json",
    "write_table",
]

SCHEMA = "schema.json"
MANIFEST = "manifest.json"
SPLITS = "splits.json"
ITEMS = "items.parquet"
VOCAB = "vocab"
COLUMNS = "columns"
ITEM_STATS = "item_stats"
REQUESTS = "requests"

DAMAGED = "the log is damaged: restore the file or write the log again"
T = TypeVar("T")

PARQUET_ERRORS = (pa.ArrowException, OSError, KeyError, ValueError, IndexError)


Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Size and content of one file; ``rows`` and ``row_group`` for request parts."""

    bytes: Count
    sha256: str
    rows: Count = 0
    row_group: Count = 0


class Manifest(msgspec.Struct, frozen=True):
    """What a whole log consists of; written last, so its absence means half-written."""

    log_id: str
    content: str
    num_requests: Count
    num_candidates: Count
    files: dict[str, FileEntry]
    counts: dict[str, int]


def check_size(path: Path, entry: FileEntry) -> None:
    """Raise unless the file is there and as long as the manifest says."""
    size = path.stat().st_size if path.is_file() else None
    if size != entry.bytes:
        found = "not found" if size is None else f"has {size} bytes"
        raise InputError(f"{path}: {found}, expected {entry.bytes} bytes; {DAMAGED}")


def log_id_of(files: Mapping[str, FileEntry]) -> str:
    """Return a fingerprint of a log's tables, its id when it is first written."""
    text = "".join(entry.sha256 for name, entry in files.items() if name.endswith(".parquet"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(value: Any, path: Path) -> None:
    """Write JSON so that a reader sees either the old file or the whole new one."""
    data = msgspec.json.format(msgspec.json.encode(value), indent=1)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise PrerankError(f"{path}: cannot be written: {error.strerror or error}") from None


def read_json(path: Path, kind: type[T]) -> T:
    """Read and validate a JSON file of the log."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        raise InputError(f"{path}: not found; expected a file of a whole request log") from None
    except InputError as error:  # the values contradict one another
        raise InputError(f"{path}: {' '.join(str(error).splitlines())}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: {' '.join(str(error).splitlines())}; {DAMAGED}") from None


def write_table(table: pa.Table, path: Path) -> None:
    """Write a Parquet table with page checksums."""
    pq.write_table(table, path, compression="zstd", write_page_checksum=True)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a whole Parquet table; a missing column or damaged page is an ``InputError``."""
    if not path.is_file():
        raise InputError(f"{path}: not found; {DAMAGED}")
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        absent = [c for c in columns or () if c not in file.schema_arrow.names]
        if absent:
            raise InputError(
                f"{path}: no column '{absent[0]}'; it has {', '.join(file.schema_arrow.names)}"
            )
        return file.read(columns=list(columns) if columns else None)
    except PARQUET_ERRORS as error:
        raise InputError(f"{path}: cannot be read ({first_line(error)}); {DAMAGED}") from None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, for messages of one line."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def check_free(out: Path) -> None:
    """Raise unless a folder can take this name: nothing is there, or an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists already; choose another name or remove it first")


@contextlib.contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``out`` that takes its name when the block succeeds.

    Raises
    ------
    InputError
        ``out`` exists and is not an empty folder, or its parent cannot be written.
    PrerankError
        The disk is full or a file cannot be written; nothing is left behind.
    """
    check_free(out)
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    except OSError as error:
        raise InputError(f"{out}: cannot be created: {error.strerror or error}") from None
    try:
        yield temporary
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    except OSError as error:
        raise PrerankError(f"{out}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
