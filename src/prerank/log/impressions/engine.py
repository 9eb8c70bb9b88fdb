"""DuckDB as the engine that sorts and groups what does not fit in memory (extra ``frames``)."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from prerank.errors import InputError, PrerankError, missing_extra

__all__ = ["Engine", "open_engine", "quoted"]

_SIZE = re.compile(r"\d+(\.\d+)?\s*(MB|MiB|GB|GiB|TB|TiB)", re.IGNORECASE)


def quoted(name: str) -> str:
    """Return a column name for SQL.

    Examples
    --------
    >>> quoted('the "slot" no')
    '"the ""slot"" no"'
    """
    return '"' + name.replace('"', '""') + '"'


@contextlib.contextmanager
def open_engine(folder: Path, memory_limit: str) -> Iterator[Engine]:
    """Open a database in a folder, where it also spills; closed with the block.

    Parameters
    ----------
    folder : path
        An empty folder; nothing in it outlives its owner.
    memory_limit : str
        What the engine may hold in memory, for example ``2GB``.

    Raises
    ------
    InputError
        DuckDB is not installed; the limit is no size.
    PrerankError
        The engine gave up: no memory for a step, no disk.
    """
    if not _SIZE.fullmatch(memory_limit.strip()):
        raise InputError(f"memory limit '{memory_limit}': expected a size like 500MB or 2GB")
    try:
        import duckdb
    except ImportError:
        raise missing_extra("duckdb", "frames") from None
    try:
        connection = duckdb.connect(
            str(folder / "engine.db"),
            config={"memory_limit": memory_limit, "temp_directory": str(folder / "spill")},
        )
        try:
            connection.execute("SET enable_progress_bar = false")  # it would go to stdout
            yield Engine(connection, folder)
        finally:
            connection.close()
    except duckdb.Error as error:
        reason = str(error).splitlines()[0]
        raise PrerankError(f"duckdb ({memory_limit}): {reason}") from None


class Engine:
    """One database on disk; tables come in as record batches and go out as Parquet."""

    def __init__(self, connection: Any, folder: Path) -> None:
        self._connection = connection
        self.folder = folder

    def load(self, name: str, schema: pa.Schema, batches: Iterable[Any]) -> None:
        """Make a table of record batches, read one at a time; their own errors come through."""
        failed: list[PrerankError] = []

        def watched() -> Iterator[Any]:
            try:
                yield from batches
            except PrerankError as error:
                failed.append(error)
                raise

        reader = pa.RecordBatchReader.from_batches(schema, watched())
        self._connection.register("incoming", reader)
        try:
            self.run(f"CREATE TABLE {name} AS SELECT * FROM incoming")
        except Exception:
            if failed:
                raise failed[0] from None
            raise
        self._connection.unregister("incoming")

    def run(self, sql: str) -> None:
        """Run a statement."""
        self._connection.execute(sql).fetchall()

    def table(self, sql: str) -> pa.Table:
        """Return the result of a query that fits in memory."""
        return self._connection.sql(sql).to_arrow_table()

    def save(self, sql: str, name: str) -> Path:
        """Write the result of a query, in its order, to a Parquet file in the folder."""
        path = self.folder / f"{name}.parquet"
        options = "FORMAT parquet, ROW_GROUP_SIZE 65536, COMPRESSION zstd, COMPRESSION_LEVEL 1"
        self.run(f"COPY ({sql}) TO {_text(path)} ({options})")
        return path

    def view(self, path: Path) -> str:
        """Return SQL that reads such a file again, with its ``file_row_number``."""
        plain = re.sub(r"([*?\[])", r"[\1]", str(path))  # no pattern
        return f"read_parquet({_text(plain)}, file_row_number = true)"


def _text(path: Path | str) -> str:
    return "'" + str(path).replace("'", "''") + "'"
