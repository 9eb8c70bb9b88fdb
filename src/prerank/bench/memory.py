"""Peak memory of streaming a log, beside the size of the log once decoded."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from prerank.bench.machine import describe_machine
from prerank.log import Columns, Part, Transforms

__all__ = ["bench_memory", "decoded_bytes"]

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_MIB = 1024.0


def _status_mib(field: str) -> float:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return float(line.split()[1]) / _MIB
    raise OSError(f"{_STATUS} has no {field}")


def decoded_bytes(columns: Columns) -> int:
    """Return the bytes of decoded rows."""
    total = sum(column.nbytes for column in columns.scalars.values())
    for group in columns.groups.values():
        total += group.offsets.nbytes + sum(column.nbytes for column in group.values.values())
    return total


def bench_memory(part: Part, transforms: Transforms, *, batch_size: int = 128) -> dict[str, Any]:
    """Stream a part once, shuffled, and report the peak memory above what was there before.

    The peak counter of the process (``VmHWM``) is reset first, so run one log per process.

    Parameters
    ----------
    part : Part
        What to stream; every batch is assembled to tensors, two ahead in a thread.
    transforms : Transforms
        Fitted before, so that fitting does not count.
    batch_size : int
        Requests per batch.

    Returns
    -------
    dict
        ``machine``, ``peak_mib`` (above the start), ``decoded_mib``, ``requests``,
        ``candidates``, ``requests_per_s``, ``candidates_per_s``.

    Raises
    ------
    OSError
        The system has no ``/proc`` to read memory from.
    """
    decoded = sum(decoded_bytes(columns) for columns in part.columns(4096))
    transforms.assembler(part.log)
    _CLEAR.write_text("5", encoding="ascii")
    before = _status_mib("VmRSS")
    num_requests = num_candidates = 0
    start = time.perf_counter()
    for batch in part.batches(transforms, batch_size, shuffle=True):
        num_requests += batch.num_requests
        num_candidates += batch.num_candidates
    seconds = time.perf_counter() - start
    return {
        "machine": describe_machine(),
        "log": str(part.log.path),
        "peak_mib": _status_mib("VmHWM") - before,
        "decoded_mib": decoded / _MIB**2,
        "requests": num_requests,
        "candidates": num_candidates,
        "requests_per_s": num_requests / seconds,
        "candidates_per_s": num_candidates / seconds,
    }
