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

from prerank.errors import InputError
from prerank.log.format.columns import CANDIDATES
from prerank.log.format.encode import Encoder
from prerank.log.format.files import (
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
from prerank.log.format.layout import item_columns
from prerank.log.format.parts import PartWriter
from prerank.log.split import save_splits
from prerank.schema import NUM_RESERVED, Schema

__all__ = ["WriteReport", "item_table", "write_log"]


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
        with contextlib.closing(PartWriter(folder / REQUESTS)) as writer:
            for table in requests:
                writer.add(encoder.requests(table))
                if progress is not None:
                    progress(table.num_rows)
            writer.finish()
        num_requests = encoder.counts["requests"]
        if not num_requests:
            raise InputError(f"{out}: no request to write; the input is empty")
        write_table(item_table(encoder, None, encoded_items), folder / ITEMS)
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
        manifest = Manifest(log_id, log_id, num_requests, encoder.counts[CANDIDATES], files, counts)
        write_json(manifest, folder / MANIFEST)
    num_items = sizes["item"] - NUM_RESERVED
    return WriteReport(num_requests, manifest.num_candidates, num_items, counts)


def _entry(path: Path, parts: PartWriter) -> FileEntry:
    rows, group = parts.rows.get(path.name, (0, 0)) if path.parent.name == REQUESTS else (0, 0)
    return FileEntry(path.stat().st_size, digest(path), rows, group)


def item_table(encoder: Encoder, stored: pa.Table | None, fresh: pa.Table | None) -> pa.Table:
    """Return the content of ``items.parquet``: stored rows, newly listed ones, then blank ones.

    Parameters
    ----------
    encoder : Encoder
        Knows every item by now.
    stored : pyarrow.Table, optional
        What the file held, reserved rows first.
    fresh : pyarrow.Table, optional
        Encoded items that were listed with features.
    """
    ids = encoder.vocabularies["item"]
    head = _blank_items(encoder, NUM_RESERVED) if stored is None else stored
    listed = [head, *([] if fresh is None else [fresh])]
    num_blank = len(ids) - sum(table.num_rows for table in listed)
    features = pa.concat_tables([*listed, _blank_items(encoder, num_blank)])
    columns = {"item_id": ids.values, "first_seen_ms": ids.first_seen_ms}
    for column in item_columns(encoder.schema):
        columns[column.name] = features[column.name]
    return pa.table(columns)


def _blank_items(encoder: Encoder, length: int) -> pa.Table:
    blank = Encoder(encoder.schema, dict(encoder.vocabularies))
    columns = item_columns(encoder.schema)
    arrays = [blank._absent(c, length, {}) for c in columns]
    kind = encoder.vocabularies["item"].values.type
    return pa.table(
        [pa.nulls(length, type=kind), *arrays], names=["item_id", *(c.name for c in columns)]
    )
