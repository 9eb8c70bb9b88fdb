"""What scoring costs: time per request, item and candidate, FLOPs, parameters."""

from __future__ import annotations

import dataclasses
import platform
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from prerank.batch import Inputs
from prerank.models.base import Model
from prerank.nn import FusedTables

__all__ = ["Cost", "count_flops", "count_parameters", "measure_cost"]

_REPEATS = 7


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """Cost of a model; times are medians on this machine, with the threads torch had.

    Parameters
    ----------
    us_per_request, us_per_item, us_per_candidate : float
        Microseconds of ``request_state``, ``item_state`` and ``score`` per row. The items of
        histories count to the request.
    flops_per_candidate : float
        FLOPs of ``score`` per candidate, 2 per multiply-add: products and sums, of matrices and
        element by element; not activations, normalisations and look-ups.
    params_dense, params_table : int
        Parameters outside and inside embedding tables.
    num_candidates, num_requests : int
        Of the batch that was scored: the size that the times hold for.
    peak_mb : float
        Most memory (MiB) that tensors held at once while the batch was scored, beyond parameters
        and inputs.
    device, threads : str, int
        Where: the processor's name, threads of torch.
    """

    us_per_request: float
    us_per_item: float
    us_per_candidate: float
    flops_per_candidate: float
    params_dense: int
    params_table: int
    num_candidates: int = 0
    num_requests: int = 0
    peak_mb: float = 0.0
    device: str = ""
    threads: int = 0


def count_parameters(model: Model) -> tuple[int, int]:
    """Return the number of dense and of table parameters."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, FusedTables)}
    table = sum(p.numel() for p in model.parameters() if id(p) in tables)
    return sum(p.numel() for p in model.parameters()) - table, table


def count_flops(call: Callable[[], object]) -> tuple[int, int]:
    """Return the FLOPs of a call: of products of matrices, and element by element.

    Examples
    --------
    >>> a = torch.ones(2, 3)
    >>> count_flops(lambda: (a @ a.t()) + 1.0)
    (24, 4)
    """
    with _Matrices() as matrices, _Elementwise() as elements:
        call()
    return matrices.flops, elements.flops


@torch.inference_mode()
def measure_cost(model: Model, inputs: Inputs) -> Cost:
    """Time the three methods of a model on one batch.

    Parameters
    ----------
    model : Model
        In eval mode.
    inputs : Inputs
        On the model's device, with at least one candidate; its size is the size the times hold
        for.
    """
    alone = _history_only(inputs)
    pairs, device = inputs.pairs, inputs.request_of.device
    requests, items = model.request_state(alone), model.item_state(inputs.items)
    flops = sum(count_flops(lambda: model.score(requests, items, pairs)))
    us_request = _median_us(lambda: model.request_state(alone), device)
    us_item = _median_us(lambda: model.item_state(inputs.items), device)
    us_score = _median_us(lambda: model.score(requests, items, pairs), device)
    with _Memory() as memory:
        model.score(model.request_state(alone), model.item_state(inputs.items), pairs)
    dense, table = count_parameters(model)
    return Cost(
        us_per_request=us_request / inputs.num_requests,
        us_per_item=us_item / inputs.items.num_rows,
        us_per_candidate=us_score / inputs.num_candidates,
        flops_per_candidate=flops / inputs.num_candidates,
        params_dense=dense,
        params_table=table,
        num_candidates=inputs.num_candidates,
        num_requests=inputs.num_requests,
        peak_mb=memory.peak / 2**20,
        device=_device_name(device),
        threads=torch.get_num_threads(),
    )


def _history_only(inputs: Inputs) -> Inputs:
    """Return the requests without candidates, and with the items of their histories only."""
    none = inputs.request_of[:0]
    lengths = [h.item_of.values.numel() for h in inputs.history.values()]
    events = torch.cat([none, *(h.item_of.values for h in inputs.history.values())])
    items, item_of = torch.unique(events, return_inverse=True)
    history = {
        name: dataclasses.replace(h, item_of=h.item_of.with_values(part))
        for (name, h), part in zip(inputs.history.items(), item_of.split(lengths), strict=True)
    }
    return dataclasses.replace(
        inputs,
        history=history,
        items=inputs.items.select(items),
        candidate=inputs.candidate.select(none),
        offsets=torch.zeros_like(inputs.offsets),
        request_of=none,
        item_of=none,
    )


class _Light(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode that never meets torch's compiler, so that importing it can be spared: seconds."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class _Matrices(_Light):
    """Counts products of matrices by torch's own formulas, compound operations by their parts."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func is not torch.ops.prim.device.default:
            with self:
                out = func.decompose(*args, **named)
            if out is not NotImplemented:
                return out
        out = func(*args, **named)
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **named, out_val=out)
        return out


class _Elementwise(_Light):
    """Counts what torch's counter leaves out, and is all that a dot product of two towers does."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        aten, operation = torch.ops.aten, func.overloadpacket
        if operation in (aten.mul, aten.add, aten.sub) and out.is_floating_point():
            self.flops += out.numel()
        elif operation == aten.sum and out.is_floating_point():
            self.flops += args[0].numel()
        return out


class _Memory(_Light):
    """Follows the bytes of the storages that calls allocate, and when they are freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._held: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        before = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if _real(t)}
        for tensor in tree_leaves(out):
            if _real(tensor):
                storage = tensor.untyped_storage()
                address = storage.data_ptr()
                if address not in self._held and address not in before:
                    self._held[address] = storage.nbytes()
                    weakref.finalize(storage, self._held.pop, address, None)
        self.peak = max(self.peak, sum(self._held.values()))
        return out


def _real(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.layout is torch.strided


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _median_us(call: Callable[[], object], device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    call()
    times = []
    for _ in range(_REPEATS):
        wait()
        start = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e6
