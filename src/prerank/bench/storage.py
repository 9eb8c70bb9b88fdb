"""Bytes and decoding of the same impressions as request rows, flat sorted and flat shuffled rows.

Source of the question: ROO (arXiv 2508.05640) reports how many more samples fit, Pinterest's
engineering notes how much sorting by user and request saves; neither gives a table by impressions
per request. The synthetic log has histories of about 200 ids, 20 user columns and 5 that belong to
the candidate.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prerank.bench.layouts import LAYOUTS, request_bytes, write_layout
from prerank.bench.machine import describe_machine
from prerank.log import Log, Part, RowRanges, open_log, write_log
from prerank.log.format.layout import request_columns
from prerank.schema import Feature, Label, Schema

__all__ = ["bench_storage", "write_synthetic"]

_NUM_ITEMS, _NUM_USERS = 100_000, 2_000
_START, _HOUR = 1_700_000_000_000, 3_600_000


def _schema(num_user: int, num_candidate: int) -> Schema:
    features = [
        Feature(name=f"u{k}", owner="user", kind="dense" if k % 4 == 3 else "categorical")
        for k in range(num_user)
    ]
    features += [
        Feature(name=f"c{k}", owner="candidate", kind="dense" if k % 2 else "categorical")
        for k in range(num_candidate)
    ]
    item = Feature(name="item", owner="item", kind="categorical")
    return Schema(features=(item, *features), streams=("seen",), labels=(Label(name="click"),))


def write_synthetic(
    out: str | Path,
    *,
    num_requests: int = 4000,
    per_request: int = 16,
    history: int = 200,
    num_user: int = 20,
    num_candidate: int = 5,
    seed: int = 0,
) -> Log:
    """Write a log of users with constant features, histories of Zipf ids and shown candidates.

    Parameters
    ----------
    out : path
        Folder to make.
    num_requests, per_request : int
        Requests, and candidates of each.
    history : int
        Mean number of events; between half and one and a half of it.
    num_user, num_candidate : int
        User columns, three categorical for every dense one, and candidate columns, half and half.
    seed : int
        Of the draws.
    """
    rng = np.random.default_rng(seed)
    schema = _schema(num_user, num_candidate)
    user = rng.integers(0, _NUM_USERS, num_requests)
    times = _START + np.sort(rng.integers(0, 30 * 24 * _HOUR, num_requests))
    lengths = rng.integers(history // 2, history + history // 2 + 1, num_requests)
    num = num_requests * per_request

    def lists(values: Any, sizes: Any) -> pa.Array:
        ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(ends), pa.array(values))

    ages = rng.integers(1, _HOUR, int(lengths.sum()))
    ends = np.cumsum(lengths)
    total = np.cumsum(ages)
    last = np.repeat(total[ends - 1], lengths)
    event_times = np.repeat(times, lengths) - 1 - (last - total)
    fixed = np.full(num_requests, per_request)
    # Steps of a prime: no item is shown twice in a request.
    shown = rng.integers(0, _NUM_ITEMS, (num_requests, 1)) + 7919 * np.arange(per_request)
    table = {
        "request_id": pa.array(np.arange(num_requests)),
        "user": pa.array(user),
        "time": pa.array(times),
        "history.seen.item": lists(_zipf(rng, len(ages)), lengths),
        "history.seen.time": lists(event_times, lengths),
        "candidates.item": lists(shown.ravel() % _NUM_ITEMS, fixed),
        "candidates.stage": lists(np.full(num, "exposed"), fixed),
        "labels.click": lists((rng.random(num) < 0.1).astype(np.float32), fixed),
    }
    for feature in schema.stored("user", "candidate"):
        size = _NUM_USERS if feature.owner == "user" else num
        values: Any = rng.normal(size=size).astype(np.float32)
        if feature.kind == "categorical":
            values = rng.integers(0, 10 ** (1 + int(feature.name[1:]) % 3), size)
        if feature.owner == "user":
            table[feature.column] = pa.array(values[user])
        else:
            table[feature.column] = lists(values, fixed)
    write_log(out, schema, [pa.table(table)])
    return open_log(out)


def _zipf(rng: np.random.Generator, num: int) -> np.ndarray[Any, Any]:
    """Draw item ids with frequencies that fall as rank to the power of -1.1."""
    weights = np.arange(1, _NUM_ITEMS + 1) ** -1.1
    ends = np.cumsum(weights) / weights.sum()
    return np.minimum(np.searchsorted(ends, rng.random(num)), _NUM_ITEMS - 1)


def bench_storage(
    log: Log | None = None,
    *,
    per_request: Sequence[int] = (1, 4, 8, 16),
    num_requests: int = 4000,
    max_history: int = 200,
    repeats: int = 3,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Write a log in three layouts and measure bytes and the CPU time of decoding.

    Parameters
    ----------
    log : Log, optional
        A log to take the first ``num_requests`` of part ``train`` (or of all) from, beside the
        synthetic one; its requests should have as many candidates as are asked for.
    per_request : sequence of int
        Impressions of a request.
    num_requests : int
        Requests of either log.
    max_history : int
        Events kept of the given log's histories.
    repeats : int
        Rounds; layouts take turns, medians are reported.
    say : callable
        Takes a line of progress now and then.

    Returns
    -------
    dict
        ``machine``; ``rows``: one per log, impressions, layout, with ``mb``,
        ``bytes_per_impression``, ``arrow_ms`` (Parquet to Arrow, pyarrow alone) and ``read_ms``
        (the library's reader: decoded, checked, in batches); ``ratios``: other layouts over
        ``requests``, ``storage/synthetic/k16/shuffled/bytes``, ``.../arrow``, ``.../read``.
    """
    found: dict[str, Any] = {"machine": describe_machine(), "rows": [], "ratios": {}}
    with tempfile.TemporaryDirectory() as folder:
        sources: dict[str, Part] = {}
        most = max(per_request)
        made = write_synthetic(
            Path(folder) / "log", num_requests=num_requests, per_request=most, history=max_history
        )
        sources["synthetic"] = made.all()
        if log is not None:
            part = log["train"] if "train" in log.parts else log.all()
            rows = part.rows.within(0, log.num_requests)[:num_requests]
            sources[log.path.name] = Part(log, RowRanges.of(rows), part.name)
        for name, source in sources.items():
            for k in per_request:
                at = Path(folder) / f"{name}-{k}"
                measured = [
                    {"log": name, "k": k, **row}
                    for row in _measure(source, at, k, max_history, repeats)
                ]
                found["rows"] += measured
                found["ratios"] |= _ratios(measured)
                say(f"{name}, {k} impressions: " + ", ".join(_words(row) for row in measured))
    return found


def _measure(
    source: Part, folder: Path, k: int, max_history: int, repeats: int
) -> Iterator[dict[str, Any]]:
    logs = {
        layout: write_layout(
            source, folder / layout, layout, per_request=k, max_history=max_history
        )
        for layout in LAYOUTS
    }
    arrow: dict[str, list[float]] = {layout: [] for layout in LAYOUTS}
    read: dict[str, list[float]] = {layout: [] for layout in LAYOUTS}
    for _ in range(repeats):
        for layout, written in logs.items():
            start = time.process_time()
            _arrow(written)
            arrow[layout].append(time.process_time() - start)
            start = time.process_time()
            for _ in written.all().columns(128 if layout == "requests" else 128 * k):
                pass
            read[layout].append(time.process_time() - start)
    for layout, written in logs.items():
        size, num = request_bytes(written), written.manifest.num_candidates
        yield {
            "layout": layout,
            "rows": written.num_requests,
            "impressions": num,
            "mb": size / 1e6,
            "bytes_per_impression": size / num,
            "arrow_ms": 1e3 * float(np.median(arrow[layout])),
            "read_ms": 1e3 * float(np.median(read[layout])),
        }


def _arrow(log: Log) -> None:
    names = [c.name for c in request_columns(log.schema)]
    for name in log.manifest.files:
        if name.startswith("requests/"):
            file = pq.ParquetFile(log.path / name)
            for group in range(file.num_row_groups):
                file.read_row_group(group, columns=names, use_threads=False)


def _ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    base = next(row for row in rows if row["layout"] == "requests")
    return {
        f"storage/{row['log']}/k{row['k']}/{row['layout']}/{what}": row[key] / base[key]
        for row in rows
        if row is not base
        for what, key in (("bytes", "mb"), ("arrow", "arrow_ms"), ("read", "read_ms"))
    }


def _words(row: dict[str, Any]) -> str:
    return f"{row['layout']} {row['mb']:.2f} MB, {row['read_ms']:.0f} ms"
