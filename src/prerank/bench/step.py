"""Where the time of one update goes, beside what the machine could do."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prerank.nn import FusedTables
from prerank.training.optim import sum_rows
from prerank.training.optim.gradients import sparse_rows

__all__ = ["step_times"]


class _Stopwatch:
    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self._since = 0.0

    def start(self) -> None:
        self._since = time.process_time()

    def lap(self, name: str) -> None:
        now = time.process_time()
        self.seconds.setdefault(name, []).append(now - self._since)
        self._since = time.process_time()


def step_times(
    tables: FusedTables,
    columns: Tensor,
    mlp: nn.Module,
    optimisers: Mapping[str, torch.optim.Optimizer],
    batches: Sequence[tuple[Tensor, Tensor]],
    peaks: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Time the pieces of an update, each beside what the machine could do.

    Parameters
    ----------
    tables, columns, mlp
        The model: lookups of ids in these columns, side by side into the network.
    optimisers : mapping
        ``table`` and ``dense``, as :func:`prerank.training.optim.build_optimisers` makes them.
    batches : sequence of (Tensor ``[N, C]``, Tensor ``[N]``)
        Ids and labels; the model is trained on them.
    peaks : mapping
        Of :func:`prerank.bench.peaks.measure_peaks`.

    Returns
    -------
    list of dict
        ``piece``, ``ms`` (median CPU time), ``share`` of the update; where there is a bound,
        ``bound`` (``bytes`` or ``flops``) and ``of_peak``: the least time it allows over the time
        measured.
    """
    weight = tables.weight
    watch = _Stopwatch()
    num_distinct: list[int] = []
    for ids, label in batches:
        for optimiser in optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        watch.start()
        embedded = tables(ids, columns).flatten(1)
        watch.lap("gather")
        loss = F.binary_cross_entropy_with_logits(mlp(embedded).squeeze(1), label)
        watch.lap("forward")
        loss.backward()  # type: ignore[no-untyped-call]
        watch.lap("backward")
        assert weight.grad is not None
        distinct, summed = sum_rows(weight.grad)
        watch.lap("coalesce")
        weight.grad = sparse_rows(distinct, summed, weight, coalesced=True)
        num_distinct.append(len(distinct))
        watch.start()
        optimisers["table"].step()
        watch.lap("table optimiser")
        optimisers["dense"].step()
        watch.lap("dense optimiser")
    times = watch.seconds
    num, fields = batches[0][0].shape
    lookups, touched = num * fields, float(np.mean(num_distinct))
    row_bytes = weight.shape[1] * weight.element_size()
    flops = 2 * num * sum(p.numel() for p in mlp.parameters() if p.dim() == 2)
    # Least bytes and operations a piece must move and do.
    least: dict[str, tuple[str, float]] = {
        "gather": ("bytes", 2 * lookups * row_bytes + lookups * 8),
        "forward": ("flops", flops),
        "backward": ("flops", 2 * flops),
        "coalesce": ("bytes", (lookups + touched) * row_bytes + 2 * lookups * 8),
        "table optimiser": ("bytes", touched * (3 * row_bytes + 8)),
    }
    total = sum(float(np.median(seconds)) for seconds in times.values())
    result: list[dict[str, Any]] = []
    for name, seconds in times.items():
        median = float(np.median(seconds))
        row: dict[str, Any] = {"piece": name, "ms": 1e3 * median, "share": median / total}
        if name in least:
            kind, amount = least[name]
            peak = peaks["gemm_gflops" if kind == "flops" else "copy_gb_per_s"] * 1e9
            row |= {"bound": kind, "of_peak": amount / median / peak}
        result.append(row)
    return result
