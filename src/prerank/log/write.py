"""Writing a request log: atomic, in time order, encoded once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from prerank.errors import InputError
from prerank.log.columns import CANDIDATES
from prerank.log.encode import Encoder
from prerank.log.files import (
    ITEMS,
    MANIFEST,
    REQUESTS,
    SCHEMA,
    VOCAB,
    FileEntry,
    Manifest,
    atomic_folder,
    digest,
    log_id_of,
    write_json,
    write_table,
)
from prerank.log.layout import item_columns
from prerank.log.split import save_splits
from prerank.schema import NUM_RESERVED, Schema

__all__ = ["WriteReport", "write_log"]

_GROUP_CANDIDATES = 1 << 16
_GROUP_REQUESTS = (64, 8192)
_PART_GROUPS = 256


class WriteReport(msgspec.Struct, frozen=True):
    """What was written: sizes, and counts of what was repaired or stands out."""

    num_requests: int
    num_candidates: int
    num_items: int
    counts: dict[str, int]


def write_log(
    out: str | Path,
    schema: Schema,
    requests: Iterable[pa.Table],
    items: pa.Table | None = None,
    *,
    splits: Mapping[str, npt.NDArray[np.int64]] | None = None,
    splits_rule: str = "given by the writer",
    extra: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> WriteReport:
    """Write a request log from raw tables.

    Parameters
    ----------
    out : path
        Folder to make; appears only when the log is whole.
    schema : Schema
        What the tables hold; vocabulary sizes and the log id are filled in here.
    requests : iterable of pyarrow.Table
        One row per request, in time order, raw values: ``request_id``, ``user``, ``time`` (ms),
        optional ``observed_until``, user and context features by name, ``history.STREAM.item``,
        ``.time`` and features, ``candidates.item``, ``candidates.stage`` (names), and what the
        schema declares of ranks, scores, weights, candidate features and ``labels.NAME``.
    items : pyarrow.Table, optional
        ``item_id`` and item features; items met only in requests are appended, features missing.
    splits : dict of str to ndarray of int64, optional
        Request rows of named parts, with the rule that made them.
    extra : dict of str to JSON value, optional
        Further files, ``NAME.json`` each, that belong to the log.
    progress : callable, optional
        Called with the number of requests just written.

    Returns
    -------
    WriteReport
        Sizes and counts (``not_finite:COLUMN`` values were stored as missing).

    Raises
    ------
    InputError
        Bad input, see ``Encoder.requests``; an existing ``out``; no request at all.
    PrerankError
        The disk is full; nothing is left behind.
    """
    out = Path(out)
    encoder = Encoder(schema)
    with atomic_folder(out) as folder:
        (folder / REQUESTS).mkdir()
        (folder / VOCAB).mkdir()
        encoded_items = None if items is None else encoder.items(items)
        with contextlib.closing(_Parts(folder / REQUESTS)) as writer:
            for table in requests:
                writer.add(encoder.requests(table))
                if progress is not None:
                    progress(table.num_rows)
            writer.finish()
        num_requests = encoder.counts["requests"]
        if not num_requests:
            raise InputError(f"{out}: no request to write; the input is empty")
        _write_items(encoder, encoded_items, folder / ITEMS)
        for name, vocab in encoder.vocabularies.items():
            if name != "item":
                vocab.save(folder / VOCAB / f"{name}.parquet")
        for name, value in (extra or {}).items():
            write_json(value, folder / f"{name}.json")
        if splits is not None:
            save_splits(folder, splits, num_requests, rule=splits_rule)
        files = {
            str(path.relative_to(folder)): _entry(path, writer)
            for path in sorted(folder.rglob("*.parquet"))
        }
        log_id = log_id_of(files)
        sizes = {name: len(vocab) for name, vocab in encoder.vocabularies.items()}
        lineage = msgspec.structs.replace(schema.lineage, log_id=log_id)
        final = msgspec.structs.replace(schema, vocabularies=sizes, lineage=lineage)
        write_json(final, folder / SCHEMA)
        for name in (SCHEMA, *(f"{name}.json" for name in extra or {})):
            files[name] = _entry(folder / name, writer)
        counts = {k: v for k, v in sorted(encoder.counts.items()) if v}
        manifest = Manifest(log_id, num_requests, encoder.counts[CANDIDATES], files, counts)
        write_json(manifest, folder / MANIFEST)
    num_items = sizes["item"] - NUM_RESERVED
    return WriteReport(num_requests, manifest.num_candidates, num_items, counts)


def _entry(path: Path, parts: _Parts) -> FileEntry:
    rows, group = parts.rows.get(path.name, (0, 0)) if path.parent.name == REQUESTS else (0, 0)
    return FileEntry(path.stat().st_size, digest(path), rows, group)


def _write_items(encoder: Encoder, encoded: pa.Table | None, path: Path) -> None:
    ids = encoder.vocabularies["item"]
    num_listed = 0 if encoded is None else encoded.num_rows
    head = _blank_items(encoder, NUM_RESERVED)
    tail = _blank_items(encoder, len(ids) - NUM_RESERVED - num_listed)
    features = pa.concat_tables([head, *([] if encoded is None else [encoded]), tail])
    columns = {"item_id": ids.values, "first_seen_ms": ids.first_seen_ms}
    for column in item_columns(encoder.schema):
        columns[column.name] = features[column.name]
    write_table(pa.table(columns), path)


def _blank_items(encoder: Encoder, length: int) -> pa.Table:
    blank = Encoder(encoder.schema, dict(encoder.vocabularies))
    columns = item_columns(encoder.schema)
    arrays = [blank._absent(c, length, {}) for c in columns]
    kind = encoder.vocabularies["item"].values.type
    return pa.table(
        [pa.nulls(length, type=kind), *arrays], names=["item_id", *(c.name for c in columns)]
    )


class _Parts:
    """Rolls encoded tables into part files with even row groups."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: dict[str, tuple[int, int]] = {}
        self._pending: list[pa.Table] = []
        self._num_pending = 0
        self._num_candidates = 0
        self._group = 0
        self._writer: pq.ParquetWriter | None = None
        self._part_rows = 0

    def add(self, table: pa.Table) -> None:
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
                path = self.folder / f"part-{len(self.rows):05d}.parquet"
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
            name = f"part-{len(self.rows) - 1:05d}.parquet"
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
