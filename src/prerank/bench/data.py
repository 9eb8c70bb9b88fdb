"""How fast a log is read, beside reading the same columns with pyarrow alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from prerank.bench.machine import describe_machine
from prerank.log import Part, Transforms
from prerank.log.format.layout import request_columns

__all__ = ["bench_data"]


def bench_data(part: Part, *, batch_size: int = 128, repeats: int = 5) -> dict[str, Any]:
    """Time three ways of reading a part, side by side, one thread of pyarrow each.

    ``pyarrow``: row groups to Arrow tables, nothing else. ``columns``: decoded, checked and cut
    into batches. ``batches``: shuffled and assembled to tensors, in the calling thread.

    Parameters
    ----------
    part : Part
        What to read; row groups are read whole, so a part that is the whole log compares best.
    batch_size : int
        Requests per batch.
    repeats : int
        Rounds; the three take turns and medians are reported.

    Returns
    -------
    dict
        ``machine``, ``rows`` (one per way, requests/s and candidates/s), ``ratios`` to pyarrow.
    """
    log = part.log
    transforms = Transforms.fit(part)
    assembled = transforms.assembler(log)
    names = [c.name for c in request_columns(log.schema) if c.name != "request_id"]
    files = [log.path / n for n in log.manifest.files if n.startswith("requests/")]

    def pyarrow() -> int:
        num = 0
        for path in files:
            file = pq.ParquetFile(path, page_checksum_verification=True)
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=names, use_threads=False)
                num += len(table["candidates.item"].combine_chunks().flatten())
        return num

    def columns() -> int:
        return sum(int(c.candidates.offsets[-1]) for c in part.columns(batch_size))

    def batches() -> int:
        return sum(
            assembled.batch(c).num_candidates for c in part.columns(batch_size, shuffle=True)
        )

    ways: dict[str, Callable[[], int]] = {
        "pyarrow": pyarrow,
        "columns": columns,
        "batches": batches,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    num_candidates = {}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            num_candidates[name] = way()
            seconds[name].append(time.perf_counter() - start)
    rows: list[dict[str, Any]] = []
    for name in ways:
        median = float(np.median(seconds[name]))
        num_requests = log.num_requests if name == "pyarrow" else part.num_requests
        rows.append(
            {
                "way": name,
                "seconds": median,
                "requests_per_s": num_requests / median,
                "candidates_per_s": num_candidates[name] / median,
            }
        )
    base = rows[0]["candidates_per_s"]
    return {
        "machine": describe_machine(),
        "rows": rows,
        "ratios": {f"data/{r['way']}/pyarrow": r["candidates_per_s"] / base for r in rows[1:]},
        "log": str(log.path),
        "requests": part.num_requests,
        "candidates": num_candidates["columns"],
    }
