"""Tomorrow's requests: a log grows at its end, vocabularies grow, indices never move."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prerank.errors import InputError
from prerank.log.format.columns import CANDIDATES
from prerank.log.format.encode import Encoder
from prerank.log.format.files import ITEMS, REQUESTS, SPLITS, VOCAB, read_table, write_table
from prerank.log.format.parts import PartWriter
from prerank.log.format.vocab import NEVER, Vocabulary
from prerank.log.growth.revise import revise
from prerank.log.log import Log
from prerank.log.split import load_splits, save_splits
from prerank.log.write import WriteReport, item_table
from prerank.schema import ITEM_STATS_FEATURE, NUM_RESERVED, Feature, Schema

__all__ = ["append_log", "compatible"]


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

    Examples
    --------
    >>> import tempfile
    >>> from prerank.log import open_log, write_log
    >>> from prerank.schema import Label, Schema
    >>> def day(start):
    ...     return pa.table({
    ...         "request_id": [start, start + 1],
    ...         "user": [start, 7],
    ...         "time": [start * 86_400_000, start * 86_400_000 + 1],
    ...         "candidates.item": [[1, start + 2]] * 2,
    ...         "candidates.stage": [["exposed", "exposed"]] * 2,
    ...         "labels.click": [[1.0, 0.0]] * 2,
    ...     })
    >>> path = tempfile.mkdtemp() + "/log"
    >>> _ = write_log(path, Schema(labels=(Label(name="click"),)), [day(1)])
    >>> report = append_log(path, [day(3)], part="tuesday")
    >>> report.num_requests, report.counts["new:user"], open_log(path)["tuesday"].num_requests
    (2, 1, 2)
    """
    with revise(path) as revision:
        log = revision.log
        if part is not None:
            _check_new(part, revision.folder)
        encoder = Encoder(log.schema, _vocabularies(log))
        last = last_time(log)
        encoder.start_after(last, _id_type(log))
        before = {name: len(vocab) for name, vocab in encoder.vocabularies.items()}
        fresh = None if items is None else encoder.items(_unknown(items, log))
        number = sum(name.startswith(f"{REQUESTS}/") for name in log.manifest.files)
        folder = revision.folder / REQUESTS
        with contextlib.closing(PartWriter(folder, first_part=number)) as writer:
            for table in requests:
                if not encoder.counts["requests"]:
                    _check_later(table, last, log)
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


def _vocabularies(log: Log) -> dict[str, Vocabulary]:
    """Return the log's vocabularies with the times at which values were first seen."""
    vocabularies = {name: log.vocabulary(name) for name in log.schema.vocabularies}
    times = pc.fill_null(read_table(log.path / ITEMS, ["first_seen_ms"])["first_seen_ms"], NEVER)
    ids = vocabularies["item"].values
    vocabularies["item"] = Vocabulary.of(ids, "item", times.to_numpy(), where=ITEMS)
    return vocabularies


def _id_type(log: Log) -> pa.DataType:
    first = next(log.read([0], ["request_id"])).scalars["request_id"]
    return pa.array(first).type


def _check_later(table: pa.Table, last: int, log: Log) -> None:
    """Say plainly where the new requests begin before the old ones end."""
    if not (table.num_rows and {"time", "request_id"} <= set(table.column_names)):
        return
    first = table["time"][0]
    when = first.cast(pa.timestamp("ms")) if pa.types.is_integer(first.type) else None
    if when is not None and first.as_py() < last:
        end = pa.scalar(last, pa.timestamp("ms"))
        raise InputError(
            f"{log.path}: request {table['request_id'][0]} is of {when} UTC, but the log reaches "
            f"to {end} UTC; append only requests that come later"
        )


def _unknown(items: pa.Table, log: Log) -> pa.Table:
    if "item_id" not in items.column_names:
        return items
    known = log.items.ids.encode(items["item_id"]) >= NUM_RESERVED
    return items.filter(pa.array(~known))


def _check_new(part: str, folder: Path) -> None:
    if part in load_splits(folder).parts:
        raise InputError(f"part '{part}' exists already; choose another name")


def _add_part(folder: Path, part: str, start: int, stop: int) -> None:
    splits = load_splits(folder)
    rows = {
        name: np.concatenate([np.arange(a, b) for a, b in pairs] or [np.zeros(0, np.int64)])
        for name, pairs in splits.parts.items()
    }
    rows[part] = np.arange(start, stop)
    (folder / SPLITS).unlink(missing_ok=True)
    rule = splits.rule if splits.parts else "appended"
    save_splits(folder, rows, stop, rule=rule)


_SAME = (
    *("streams", "stages", "sources", "tasks", "engaged", "time_unit", "version"),
    *("has_weight", "has_propensity", "has_sample_prob", "has_scored_online"),
)


def compatible(source: Schema, target: Schema) -> str | None:
    """Return why rows of one schema cannot be appended to a log of another, or None.

    The log may have gained labels, scores, ranks, channels and item statistics that the rows
    lack: they are null there.
    """
    theirs, ours = _stored_features(source), _stored_features(target)
    for key in {**theirs, **ours}:
        if theirs.get(key) != ours.get(key):
            owner, stream, name = key
            what = f"{owner} feature '{name}'" + (f" of '{stream}'" if stream else "")
            side = "differs" if key in theirs and key in ours else "is in one of the two only"
            return f"{what} {side}"
    for field in _SAME:
        if getattr(source, field) != getattr(target, field):
            return f"'{field}' is {getattr(source, field)}, in the log {getattr(target, field)}"
    for field in ("labels", "scores", "ranks", "channels"):
        more = [v for v in getattr(source, field) if v not in getattr(target, field)]
        if more:
            name = getattr(more[0], "name", more[0])
            return f"'{field}' has '{name}', which the log lacks or declares differently"
    return None


def _stored_features(schema: Schema) -> dict[tuple[str, str, str], Feature]:
    features = (f for f in schema.features if f.of != ITEM_STATS_FEATURE)
    return {(f.owner, f.stream, f.name): f for f in features}
