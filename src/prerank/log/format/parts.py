"""Part files of encoded requests: even row groups, files of bounded size."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["PartWriter"]

_GROUP_CANDIDATES = 1 << 16
_GROUP_REQUESTS = (64, 8192)
_PART_GROUPS = 256


class PartWriter:
    """Rolls encoded tables into part files with even row groups.

    Parameters
    ----------
    folder : Path
        Where ``part-NNNNN.parquet`` go.
    first_part : int
        Number of the first file.

    Attributes
    ----------
    rows : dict of str to (int, int)
        Rows and rows per group of each finished file.
    """

    def __init__(self, folder: Path, first_part: int = 0) -> None:
        self.folder = folder
        self.first_part = first_part
        self.rows: dict[str, tuple[int, int]] = {}
        self._pending: list[pa.Table] = []
        self._num_pending = 0
        self._num_candidates = 0
        self._group = 0
        self._writer: pq.ParquetWriter | None = None
        self._part_rows = 0

    def add(self, table: pa.Table) -> None:
        """Take in encoded rows; whole row groups are written."""
        if not table.num_rows:
            return
        self._pending.append(table)
        self._num_pending += table.num_rows
        if not self._group:
            self._num_candidates += len(table["candidates.item"].combine_chunks().flatten())
            low, high = _GROUP_REQUESTS
            if self._num_pending < high and self._num_candidates < _GROUP_CANDIDATES:
                return  # too little to tell how many candidates a request has
            per_request = max(1.0, self._num_candidates / self._num_pending)
            self._group = int(np.clip(_GROUP_CANDIDATES / per_request, low, high))
        if self._num_pending >= self._group:
            whole = self._num_pending // self._group * self._group
            self._write(whole)

    def _write(self, num_rows: int) -> None:
        table = pa.concat_tables(self._pending)
        for start in range(0, num_rows, self._group):
            if self._writer is None:
                number = self.first_part + len(self.rows)
                path = self.folder / f"part-{number:05d}.parquet"
                self.rows[path.name] = (0, self._group)
                self._writer = pq.ParquetWriter(
                    path, table.schema, compression="zstd", write_page_checksum=True
                )
            piece = table.slice(start, min(self._group, num_rows - start))
            self._writer.write_table(piece, row_group_size=self._group)
            self._part_rows += piece.num_rows
            if self._part_rows >= self._group * _PART_GROUPS:
                self._end_part()
        self._pending = [table.slice(num_rows)]
        self._num_pending -= num_rows

    def _end_part(self) -> None:
        if self._writer is not None:
            self._writer.close()
            name = f"part-{self.first_part + len(self.rows) - 1:05d}.parquet"
            self.rows[name] = (self._part_rows, self._group)
        self._writer, self._part_rows = None, 0

    def close(self) -> None:
        """Let go of the file in writing, whatever state it is in."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()

    def finish(self) -> None:
        """Write what is pending and finish the last part."""
        self._group = self._group or _GROUP_REQUESTS[1]
        if self._num_pending:
            self._write(self._num_pending)
        self._end_part()
