"""Tomorrow's requests: a log grows at its end, vocabularies grow, indices never move."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pyarrow as pa

from prerank.errors import InputError
from prerank.log.format.columns import CANDIDATES
from prerank.log.format.encode import Encoder
from prerank.log.format.files import ITEMS, REQUESTS, SPLITS, VOCAB, read_table, write_table
from prerank.log.format.parts import PartWriter
from prerank.log.growth.revise import revise
from prerank.log.log import Log
from prerank.log.split import load_splits, save_splits
from prerank.log.write import WriteReport, item_table
from prerank.schema import NUM_RESERVED

if TYPE_CHECKING:
    from prerank.schema import Schema

__all__ = ["append_log"]


def append_log(
    path: str | Path,
    requests: Iterable[pa.Table],
    items: pa.Table | None = None,
    *,
    part: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> WriteReport:
    """Append requests to a log.

    Parameters
    ----------
    path : path
        The log; it becomes the longer one in one step, or stays as it was.
    requests, items
        Raw tables as for ``write_log``, not earlier than the log's last request. Items the log
        knows already keep their stored features.
    part : str, optional
        Name of a new part that holds the new requests.
    progress : callable, optional
        Called with the number of requests just written.

    Returns
    -------
    WriteReport
        Of the new requests; ``counts`` has ``new:VOCABULARY`` too.

    Raises
    ------
    InputError
        Bad input as for ``write_log``; requests earlier than the last one; an existing part.
    """
    with revise(path) as revision:
        log = revision.log
        names = log.schema.vocabularies
        encoder = Encoder(log.schema, {name: log.vocabulary(name) for name in names})
        encoder.start_after(last_time(log))
        before = {name: len(vocab) for name, vocab in encoder.vocabularies.items()}
        fresh = None if items is None else encoder.items(_unknown(items, log))
        number = sum(name.startswith(f"{REQUESTS}/") for name in log.manifest.files)
        folder = revision.folder / REQUESTS
        with contextlib.closing(PartWriter(folder, first_part=number)) as writer:
            for table in requests:
                writer.add(encoder.requests(table))
                if progress is not None:
                    progress(table.num_rows)
            writer.finish()
        num_new = encoder.counts["requests"]
        if not num_new:
            raise InputError(f"{path}: no request to append; the input is empty")
        for file, size in writer.rows.items():
            revision.rows[f"{REQUESTS}/{file}"] = size
            revision.mark(f"{REQUESTS}/{file}")
        stored = read_table(log.path / ITEMS).drop_columns(["first_seen_ms"])
        table = item_table(encoder, stored, fresh)
        write_table(table, revision.replace(ITEMS))
        for name, vocab in encoder.vocabularies.items():
            if name != "item":
                vocab.save(revision.replace(f"{VOCAB}/{name}.parquet"))
        sizes = {name: len(vocab) for name, vocab in encoder.vocabularies.items()}
        revision.schema = msgspec.structs.replace(log.schema, vocabularies=sizes)
        revision.num_requests += num_new
        revision.num_candidates += encoder.counts[CANDIDATES]
        if part is not None:
            _add_part(revision.folder, part, log.num_requests, revision.num_requests)
        grown = {f"new:{n}": sizes[n] - before[n] for n in sizes if sizes[n] > before[n]}
        counts = {k: v for k, v in sorted(encoder.counts.items()) if v} | grown
        old = log.manifest.counts
        revision.counts = {
            k: old.get(k, 0) + encoder.counts.get(k, 0) for k in {*old, *encoder.counts}
        }
    return WriteReport(num_new, encoder.counts[CANDIDATES], sizes["item"] - before["item"], counts)


def last_time(log: Log) -> int:
    """Return the time of the last request in ms."""
    last = next(log.read([log.num_groups - 1], ["time"]))
    return int(last.scalars["time"][-1])


def _unknown(items: pa.Table, log: Log) -> pa.Table:
    if "item_id" not in items.column_names:
        return items
    known = log.items.ids.encode(items["item_id"]) >= NUM_RESERVED
    return items.filter(pa.array(~known))


def _add_part(folder: Path, part: str, start: int, stop: int) -> None:
    splits = load_splits(folder)
    if part in splits.parts:
        raise InputError(f"part '{part}' exists already; choose another name")
    rows = {
        name: np.concatenate([np.arange(a, b) for a, b in pairs] or [np.zeros(0, np.int64)])
        for name, pairs in splits.parts.items()
    }
    rows[part] = np.arange(start, stop)
    (folder / SPLITS).unlink(missing_ok=True)
    rule = splits.rule if splits.parts else "appended"
    save_splits(folder, rows, stop, rule=rule)


def compatible(source: Schema, target: Schema) -> str | None:
    """Return why rows of one schema cannot be appended to a log of another, or None."""
    for field in (f.name for f in msgspec.structs.fields(type(source))):
        if field in ("vocabularies", "lineage"):
            continue
        if getattr(source, field) != getattr(target, field):
            return f"its {field} differ"
    return None
