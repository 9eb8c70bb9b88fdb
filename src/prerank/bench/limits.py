"""One training step of each model beside what this machine could do at most.

The limit of a step is the time of its matrix products at the measured rate of large ones, plus the
time to copy the least bytes it must move: rows of tables that it looks up, their gradients, the
rows it updates, and weights, gradients and moments of the dense part. Nothing can reach it: small
products run below the rate of large ones, and every function between two products reads and writes
its tensors. So what is left is split further: bytes that the other operations moved as they were
executed, and the price of starting as many operations.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from prerank import models, objectives, sampling
from prerank.batch import RequestBatch
from prerank.bench.machine import describe_machine
from prerank.bench.peaks import measure_peaks
from prerank.log import Part, Transforms
from prerank.log.log import GROUPS_PER_WINDOW
from prerank.nn import FusedTables
from prerank.training import FitConfig
from prerank.training.combine import Sum
from prerank.training.loop import Trainer
from prerank.training.metrics_log import MetricsLog

__all__ = ["MODELS", "bench_limits"]

MODELS: dict[str, tuple[str, int]] = {
    "two_tower": ("bce", 32),
    "mlp": ("bce", 32),
    "din": ("bce", 32),
    "hap_light": ("ghcl", 64),
    "hap_expressive": ("ghcl", 64),
}
"""Objective and requests per update, as in the recipes of these names."""

_VIEWS = {
    "view",
    "t",
    "transpose",
    "expand",
    "unsqueeze",
    "squeeze",
    "slice",
    "select",
    "detach",
    "permute",
    "as_strided",
    "split",
    "alias",
    "unbind",
    "_unsafe_view",
    "_reshape_alias",
}


class _Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations, those of matrix products, and the bytes that all others move."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops, self.num_ops, self.other_bytes = 0, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet.__name__ in _VIEWS:
            return out
        self.num_ops += 1
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
            return out
        for leaf in tree_leaves((args, kwargs, out)):
            # A table is read and written at some rows only: those are counted by themselves.
            if isinstance(leaf, Tensor) and leaf.layout is torch.strided and leaf.numel() < 1 << 22:
                self.other_bytes += leaf.nbytes
        return out


class _Clock:
    """Sums CPU time by piece."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, its time added to a piece."""

        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            result = function(*args, **kwargs)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start
            return result

        return call


def bench_limits(
    part: Part,
    *,
    names: Sequence[str] = tuple(MODELS),
    num_steps: int = 40,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Take a few steps of each model on a log with HAP's sampling, and say what bounds them.

    Parameters
    ----------
    part : Part
        Training requests.
    names : sequence of str
        Of :data:`MODELS`; sizes are those of the recipes.
    num_steps : int
        Updates that are timed, after a few that are not.
    say : callable
        Takes a line of progress now and then.

    Returns
    -------
    dict
        ``machine``; ``peaks`` (with ``op_us``, CPU time to start a small operation); ``rows``, one
        per model: sizes of a step, ``step_ms`` (median CPU time), ``pieces`` of it, ``reader_ms``
        by piece, ``gflop``, ``least_mb``, ``limit_ms``, ``of_limit`` (limit over time), and
        ``left``: milliseconds of the step beyond the limit that are ``traffic`` (bytes of other
        operations, as executed, at copying speed), ``starts`` (of operations) and ``rest``;
        ``ratios``: ``limits/MODEL``, the fraction of the limit that is reached.
    """
    peaks = measure_peaks() | {"op_us": _start_us()}
    transforms = Transforms.fit(part, min_count=2, max_history=50)
    rows = []
    for name in names:
        rows.append(_measure(name, part, transforms, num_steps, peaks))
        say(f"{name}: {rows[-1]['step_ms']:.1f} ms, limit {rows[-1]['limit_ms']:.1f} ms")
    ratios = {f"limits/{row['model']}": row["of_limit"] for row in rows}
    return {"machine": describe_machine(), "peaks": peaks, "rows": rows, "ratios": ratios}


def _start_us() -> float:
    one = torch.ones(8)
    times = []
    for _ in range(50):
        start = time.process_time()
        for _ in range(100):
            torch.add(one, one)
        times.append((time.process_time() - start) / 100)
    return 1e6 * float(np.median(times))


def _read(
    part: Part, transforms: Transforms, size: int, num: int
) -> tuple[list[RequestBatch], dict[str, float]]:
    """Return batches and the mean milliseconds of what makes them."""
    clock = _Clock()
    sampler = sampling.get("hap").Config().build(part)
    sample = clock.timed("sample", sampler.sample)
    assemble = clock.timed("assemble", transforms.assembler(part.log).batch)
    batches: list[RequestBatch] = []
    # A window is read for its first batch: its cost is shared by all of them.
    window = GROUPS_PER_WINDOW * part.log.num_requests // part.log.num_groups
    num_read = max(num, min(window // size, part.num_batches(size)))
    start = time.process_time()
    stream = part.columns(size, shuffle=True, logged=sampler.logged)
    for index, columns in zip(range(num_read), stream, strict=False):
        if index < num:
            first = int(columns.scalars["row"][0])
            batches.append(assemble(sample(columns, seed=0, epoch=0, key=first)))
    whole = time.process_time() - start
    decode = (whole - sum(clock.seconds.values())) / num_read
    clock.seconds["decode"] = decode * len(batches)
    return batches, {name: 1e3 * s / len(batches) for name, s in clock.seconds.items()}


def _trainer(name: str, part: Part, transforms: Transforms, size: int) -> Trainer:
    torch.manual_seed(0)
    kind: Any = models.get(name)
    schema = part.log.schema
    config = kind.Config.preset("study") if name.startswith("hap_") else kind.Config()
    model = config.build(schema)
    model.transforms = transforms
    return Trainer(
        model,
        objectives.get(MODELS[name][0]).Config().build(schema),
        Sum(),
        FitConfig(batch_size=size, clip_norm=10.0),
        steps_per_epoch=part.num_batches(size),
        log=MetricsLog(None),
        device=torch.device("cpu"),
    )


def _measure(
    name: str, part: Part, transforms: Transforms, num_steps: int, peaks: Mapping[str, float]
) -> dict[str, Any]:
    size = MODELS[name][1]
    batches, reader_ms = _read(part, transforms, size, num_steps + 5)
    trainer = _trainer(name, part, transforms, size)
    for batch in batches[:5]:
        trainer.update(batch)
    batches = batches[5:] or batches  # a small part has no others
    count = _Count()
    with count:
        trainer.update(batches[0])
    times = []
    for batch in batches:
        start = time.process_time()
        trainer.update(batch)
        times.append(time.process_time() - start)
    step_s = float(np.median(times))
    least = _least_bytes(trainer, batches[0])
    gemm_s = count.flops / peaks["gemm_gflops"] / 1e9
    copy = peaks["copy_gb_per_s"] * 1e9
    limit_s = gemm_s + least / copy
    traffic_s = max(count.other_bytes - least, 0) / copy
    starts_s = count.num_ops * peaks["op_us"] / 1e6
    return {
        "model": name,
        "objective": MODELS[name][0],
        "requests": size,
        "candidates": float(np.mean([b.num_candidates for b in batches])),
        "items": float(np.mean([b.inputs.items.num_rows for b in batches])),
        "step_ms": 1e3 * step_s,
        "reader_ms": reader_ms,
        "pieces": _pieces(trainer, batches),
        "gflop": count.flops / 1e9,
        "least_mb": least / 1e6,
        "other_mb": count.other_bytes / 1e6,
        "operations": count.num_ops,
        "limit_ms": 1e3 * limit_s,
        "of_limit": limit_s / step_s,
        "left": {
            "traffic_ms": 1e3 * traffic_s,
            "starts_ms": 1e3 * starts_s,
            "rest_ms": 1e3 * (step_s - limit_s - traffic_s - starts_s),
        },
    }


def _least_bytes(trainer: Trainer, batch: RequestBatch) -> float:
    """Return what a step must move at least: rows of tables, and the dense part's state."""
    looked_up = [0]
    tables = [m for m in trainer.model.modules() if isinstance(m, FusedTables)]
    hooks = [
        table.register_forward_hook(lambda _, args, __: looked_up.append(args[0].numel()))
        for table in tables
    ]
    scores = trainer.model(batch.inputs)
    for hook in hooks:
        hook.remove()
    for parameter in trainer.parameters:
        parameter.grad = None
    scores.logits.sum().backward()
    weights = {id(table.weight) for table in tables}
    total = 0.0
    for parameter in trainer.parameters:
        if parameter.grad is None:
            continue
        if id(parameter) in weights and parameter.grad.is_sparse:
            row = parameter.shape[1] * parameter.element_size()
            touched = len(torch.unique(parameter.grad._indices()))
            # Read and hand on, the gradient back, summed; weights and sums read and written.
            total += 3 * sum(looked_up) * row + touched * (3 * row + 8)
        else:
            # Read forward and back, its gradient written and read; Adam reads and writes three.
            total += 10 * parameter.nbytes
        parameter.grad = None
    return total


def _pieces(trainer: Trainer, batches: Sequence[RequestBatch]) -> list[dict[str, Any]]:
    """Return the mean milliseconds of a step's pieces."""
    clock = _Clock()
    for table in (m for m in trainer.model.modules() if isinstance(m, FusedTables)):
        table.forward = clock.timed("gather", table.forward)  # type: ignore[method-assign]
        table.pooled = clock.timed("gather", table.pooled)  # type: ignore[method-assign]
    trainer.model.forward = clock.timed("forward", trainer.model.forward)  # type: ignore[method-assign]
    trainer.objective = clock.timed("loss", trainer.objective)  # type: ignore[assignment]
    trainer.combine = clock.timed("backward", trainer.combine)  # type: ignore[assignment]
    for key, optimiser in trainer.optimisers.items():
        optimiser.step = clock.timed(f"{key} optimiser", optimiser.step)  # type: ignore[method-assign]
    update = clock.timed("all", trainer.update)
    for batch in batches:
        update(batch)
    whole = clock.seconds.pop("all")
    clock.seconds["forward"] -= clock.seconds.get("gather", 0.0)
    clock.seconds["clipping and the rest"] = whole - sum(clock.seconds.values())
    return [
        {"piece": name, "ms": 1e3 * seconds / len(batches), "share": seconds / whole}
        for name, seconds in clock.seconds.items()
    ]
