"""Training of embedding tables: fused, with row-wise updates, beside one dense table per field.

Every way trains the same network on the same impressions: ids of all fields to embeddings, side by
side into a small MLP. The ways take turns, a few updates each, so that they share the machine's
moods. Labels are planted, so the loss that cannot be beaten is known.

Shapes: ``N`` impressions, ``F`` fields, ``V`` rows of a field's table, ``D`` width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prerank.bench.machine import describe_machine
from prerank.bench.peaks import measure_peaks
from prerank.bench.planted import Impressions, planted_impressions
from prerank.bench.step import step_times
from prerank.nn import MLP, FusedTables
from prerank.training import FitConfig
from prerank.training.optim import build_optimisers

__all__ = ["WAYS", "bench_train"]

OURS = "fused/rowwise_adagrad"

WAYS: dict[str, dict[str, Any]] = {
    OURS: {"table_optimizer": "rowwise_adagrad", "table_lr": 0.05},
    "fused/rowwise_adagrad/bf16": {
        "table_optimizer": "rowwise_adagrad",
        "table_lr": 0.05,
        "storage": "bf16",
    },
    "fused/lazy_adam": {"table_optimizer": "lazy_adam", "table_lr": 0.03},
    "embeddings/sparse_adam": {"table_lr": 0.03},
    "embeddings/dense_adam_fused": {"table_lr": 0.01, "fused": True},
    "embeddings/dense_adam": {"table_lr": 0.01},
}
"""The ways and the learning rates of their tables, each the best of a coarse grid.

``fused`` are ours. ``embeddings`` have one ``nn.Embedding`` per field: with ``torch.optim.Adam`` as
it is by default, with its fused kernel, and with ``torch.optim.SparseAdam`` on sparse gradients.
"""

_TURN = 10  # updates in a row


class _Separate(nn.Module):
    """One ``nn.Embedding`` per field."""

    def __init__(self, fields: int, rows: int, dim: int, *, sparse: bool) -> None:
        super().__init__()
        self.fields = nn.ModuleList(nn.Embedding(rows, dim, sparse=sparse) for _ in range(fields))
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.05)

    def forward(self, ids_NF: Tensor, columns: Tensor) -> Tensor:
        return torch.stack([table(ids_NF[:, k]) for k, table in enumerate(self.fields)], 1)


class _Network(nn.Module):
    def __init__(self, tables: nn.Module, columns: Tensor, width: int) -> None:
        super().__init__()
        self.tables = tables
        self.columns = columns
        self.mlp = MLP.Config(hidden=(64, 32)).build(width, 1)

    def forward(self, ids_NF: Tensor) -> Tensor:
        embedded: Tensor = self.tables(ids_NF, self.columns).flatten(1)
        logits: Tensor = self.mlp(embedded).squeeze(1)
        return logits


@dataclass(slots=True)
class _Contender:
    network: _Network
    optimisers: dict[str, torch.optim.Optimizer]
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    losses: list[tuple[int, float]] = field(default_factory=list)  # updates, validation loss

    def update(self, ids_NF: Tensor, label_N: Tensor) -> None:
        start, cpu_start = time.perf_counter(), time.process_time()
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        F.binary_cross_entropy_with_logits(self.network(ids_NF), label_N).backward()  # type: ignore[no-untyped-call]
        for optimiser in self.optimisers.values():
            optimiser.step()
        self.seconds.append(time.perf_counter() - start)
        self.cpu_seconds.append(time.process_time() - cpu_start)

    @torch.no_grad()
    def evaluate(self, valid: Impressions) -> None:
        logits = torch.cat([self.network(ids) for ids in torch.split(valid.ids, 8192)])
        loss = F.binary_cross_entropy_with_logits(logits, valid.label)
        self.losses.append((len(self.seconds), float(loss)))

    @property
    def step_s(self) -> float:
        """CPU time of an update."""
        return float(np.median(self.cpu_seconds))

    def seconds_to(self, loss: float) -> float | None:
        """Return the CPU time after which the validation loss was as low, or None."""
        reached = [steps for steps, value in self.losses if value <= loss]
        return reached[0] * self.step_s if reached else None

    @property
    def megabytes(self) -> tuple[float, float]:
        """Weights of tables and state of their optimiser."""
        weights = list(self.network.tables.parameters())
        state = [
            value
            for optimiser in self.optimisers.values()
            for weight in weights
            for value in optimiser.state.get(weight, {}).values()
            if isinstance(value, Tensor)
        ]
        return sum(w.nbytes for w in weights) / 1e6, sum(v.nbytes for v in state) / 1e6


def _contender(way: str, *, fields: int, rows: int, dim: int, lr: float = 1e-3) -> _Contender:
    torch.manual_seed(0)
    options = dict(WAYS[way])
    storage = options.pop("storage", "fp32")
    if way.startswith("fused/"):
        names = [f"f{k}" for k in range(fields)]
        tables = FusedTables.Config(dim=dim, storage=storage).build(dict.fromkeys(names, rows))
        network = _Network(tables, tables.columns(names), fields * dim)
        optimisers = build_optimisers(network, FitConfig(lr=lr, optimizer="adam", **options))
        return _Contender(network, optimisers)
    sparse = way == "embeddings/sparse_adam"
    network = _Network(_Separate(fields, rows, dim, sparse=sparse), torch.empty(0), fields * dim)
    weights = list(network.tables.parameters())
    kind: Any = torch.optim.SparseAdam if sparse else torch.optim.Adam
    flags = {"fused": True} if options.get("fused") else {}
    table = kind(weights, lr=options["table_lr"], **flags)
    dense = torch.optim.Adam(network.mlp.parameters(), lr=lr, fused=True)
    return _Contender(network, {"table": table, "dense": dense})


def bench_train(
    *,
    fields: int = 26,
    rows: Sequence[int] = (10_000, 200_000),
    dim: int = 16,
    batch_size: int = 2048,
    num_steps: int = 150,
    ways: Sequence[str] = tuple(WAYS),
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Train all ways side by side on planted impressions with Zipf(1.1) ids.

    Parameters
    ----------
    fields, rows, dim : int
        Categorical fields, rows of each one's table (several runs), embedding width.
    batch_size, num_steps : int
        Impressions per update, updates; every impression is seen once.
    ways : sequence of str
        Names in ``WAYS``.
    say : callable
        Takes a line of progress now and then.

    Returns
    -------
    dict
        ``machine``; ``peaks``; ``rows``: one per size and way, with samples/s, milliseconds and
        CPU milliseconds of an update (medians), validation loss and memory; ``best_loss`` of the
        planted probabilities by size; ``ratios``: CPU time of an update of each other way over
        ours, ``train/26x200k/dense_adam``, and with ``/to_loss`` the same for all updates up to
        the other way's best validation loss; ``steps``: where the time of one of our updates goes,
        by size. Ratios are of CPU time because on a busy machine the clock charges a long update
        for more of what others do.
    """
    peaks = measure_peaks()
    found: dict[str, Any] = {"machine": describe_machine(), "peaks": peaks, "rows": []}
    found |= {"ratios": {}, "best_loss": {}, "steps": {}, "batch_size": batch_size}
    for size in rows:
        name = f"{fields}x{size // 1000}k" if size >= 1000 else f"{fields}x{size}"
        num_valid = 20 * batch_size
        say(f"{name}: drawing {num_steps * batch_size + num_valid:,} impressions")
        drawn = planted_impressions(num_steps * batch_size + num_valid, fields=fields, rows=size)
        train, valid = drawn.part(num_valid), drawn.part(0, num_valid)
        racing = {way: _contender(way, fields=fields, rows=size, dim=dim) for way in ways}
        batches = train.batches(batch_size)
        for first in range(0, num_steps, _TURN):
            for contender in racing.values():
                for ids, label in batches[first : first + _TURN]:
                    contender.update(ids, label)
                if (first + _TURN) % max(_TURN, num_steps // 10) == 0:
                    contender.evaluate(valid)
            if first % (20 * _TURN) == 0:
                say(f"{name}: {first + _TURN} of {num_steps} updates")
        best = float(F.binary_cross_entropy(valid.probability, valid.label))
        found["best_loss"][name] = best
        found["rows"] += [_row(name, way, c, batch_size) for way, c in racing.items()]
        if OURS in racing:
            found["ratios"] |= _ratios(name, racing)
            ours = racing[OURS]
            tables = ours.network.tables
            assert isinstance(tables, FusedTables)
            parts = (tables, ours.network.columns, ours.network.mlp, ours.optimisers)
            found["steps"][name] = step_times(*parts, batches[-20:], peaks)
    return found


def _row(name: str, way: str, contender: _Contender, batch_size: int) -> dict[str, Any]:
    weights_mb, state_mb = contender.megabytes
    return {
        "size": name,
        "way": way,
        "samples_per_s": batch_size / float(np.median(contender.seconds)),
        "step_ms": 1e3 * float(np.median(contender.seconds)),
        "cpu_ms": 1e3 * contender.step_s,
        "valid_loss": contender.losses[-1][1],
        "best_valid_loss": min(loss for _, loss in contender.losses),
        "table_mb": weights_mb,
        "state_mb": state_mb,
    }


def _ratios(name: str, racing: dict[str, _Contender]) -> dict[str, float | None]:
    ratios: dict[str, float | None] = {}
    ours = racing[OURS]
    for way, peer in racing.items():
        if way == OURS:
            continue
        key = f"train/{name}/{way.partition('/')[2] if way.startswith('embeddings/') else way}"
        ratios[key] = peer.step_s / ours.step_s
        if way.startswith("embeddings/"):
            loss = min(value for _, value in peer.losses)
            own, theirs = ours.seconds_to(loss), peer.seconds_to(loss)
            ratios[f"{key}/to_loss"] = None if own is None or theirs is None else theirs / own
    return ratios
