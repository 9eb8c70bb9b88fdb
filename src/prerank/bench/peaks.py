"""What a core of this machine can do at most: matrix products and copying, as measured now."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

__all__ = ["fastest", "measure_peaks"]


def fastest(function: Callable[[], object], repeats: int = 7) -> float:
    """Return the shortest of several CPU times of a call, in seconds."""
    function()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def measure_peaks(*, size: int = 1024, megabytes: int = 128) -> dict[str, float]:
    """Measure float32 matrix products and copies, per second of CPU time.

    Parameters
    ----------
    size : int
        Rows and columns of the square matrices.
    megabytes : int
        Size of what is copied; well beyond the caches.

    Returns
    -------
    dict of str to float
        ``gemm_gflops``; ``copy_gb_per_s``, bytes read plus bytes written.

    Examples
    --------
    >>> sorted(measure_peaks(size=64, megabytes=1))
    ['copy_gb_per_s', 'gemm_gflops']
    """
    a, b = torch.randn(size, size), torch.randn(size, size)
    product = torch.empty(size, size)
    source = torch.randn(megabytes * 1024 * 256)
    target = torch.empty_like(source)
    return {
        "gemm_gflops": 2 * size**3 / fastest(lambda: torch.mm(a, b, out=product)) / 1e9,
        "copy_gb_per_s": 2 * source.nbytes / fastest(lambda: target.copy_(source)) / 1e9,
    }
