"""What scoring costs: time per request, item and candidate, FLOPs, parameters."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from prerank.batch import Inputs
from prerank.models.base import Model
from prerank.nn import FusedTables

__all__ = ["Cost", "count_parameters", "measure_cost"]

_REPEATS = 7


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """Cost of a model; times are medians on this machine, with the threads torch had.

    Parameters
    ----------
    us_per_request, us_per_item, us_per_candidate : float
        Microseconds of ``request_state``, ``item_state`` and ``score`` per row.
    flops_per_candidate : float
        FLOPs of ``score`` per candidate, 2 per multiply-add; matrix products only.
    params_dense, params_table : int
        Parameters outside and inside embedding tables.
    """

    us_per_request: float
    us_per_item: float
    us_per_candidate: float
    flops_per_candidate: float
    params_dense: int
    params_table: int


def count_parameters(model: Model) -> tuple[int, int]:
    """Return the number of dense and of table parameters."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, FusedTables)}
    table = sum(p.numel() for p in model.parameters() if id(p) in tables)
    return sum(p.numel() for p in model.parameters()) - table, table


@torch.inference_mode()
def measure_cost(model: Model, inputs: Inputs) -> Cost:
    """Time the three methods of a model on one batch.

    Parameters
    ----------
    model : Model
        In eval mode.
    inputs : Inputs
        With at least one candidate; its size is the size the times hold for.
    """
    requests, items = model.request_state(inputs), model.item_state(inputs.items)
    pairs = inputs.pairs
    with FlopCounterMode(display=False) as counter:
        model.score(requests, items, pairs)
    num_candidates = max(inputs.num_candidates, 1)
    dense, table = count_parameters(model)
    return Cost(
        us_per_request=_median_us(lambda: model.request_state(inputs)) / inputs.num_requests,
        us_per_item=_median_us(lambda: model.item_state(inputs.items))
        / max(inputs.items.num_rows, 1),
        us_per_candidate=_median_us(lambda: model.score(requests, items, pairs)) / num_candidates,
        flops_per_candidate=counter.get_total_flops() / num_candidates,
        params_dense=dense,
        params_table=table,
    )


def _median_us(call: Callable[[], object]) -> float:
    call()
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e6
