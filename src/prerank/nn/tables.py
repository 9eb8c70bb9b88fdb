"""All embedding tables of a model in one parameter.

Shapes: ``V`` vocabularies, ``N`` rows looked up, ``C`` columns of ids, ``D`` width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from prerank.config import Config as BaseConfig
from prerank.jagged import Jagged
from prerank.schema import NUM_RESERVED, Feature, Schema

__all__ = ["FusedTables", "gather_rows"]

_FEW = 4096
"""Lookups below which ``F.embedding`` costs less than what sets up the faster one."""


class FusedTables(nn.Module):
    """The embeddings of every vocabulary, stacked in one parameter ``weight [rows, D]``.

    One parameter means one lookup for all columns of an owner and one sparse gradient for the
    optimiser. Features that share a vocabulary share its rows. Training finds tables by
    ``isinstance(module, FusedTables)`` and gives them a sparse row-wise optimiser.

    The two reserved rows (missing, unknown) start at zero: an id that training never met then
    adds nothing, instead of noise.

    Stored in bfloat16 the weights take half the memory and lookups read half the bytes; what a
    lookup returns is float32, gradients of single lookups have bfloat16's 8 bits, and the
    optimisers of :mod:`prerank.training` sum them and keep their state in float32.

    Parameters
    ----------
    sizes : mapping of str to int
        Rows of every vocabulary, the reserved ones included.
    config : FusedTables.Config
        Width, initial standard deviation, whether gradients are sparse, and how weights are stored.

    Examples
    --------
    >>> tables = FusedTables.Config(dim=4).build({"user": 5, "item": 10})
    >>> columns = tables.columns(["item", "user"])
    >>> tables(torch.tensor([[9, 4], [2, 3]]), columns).shape
    torch.Size([2, 2, 4])
    """

    class Config(BaseConfig, frozen=True):
        """Width ``dim``, standard deviation of the initial normal, kind of gradients, storage."""

        dim: int = 16
        init_std: float = 0.05
        sparse: bool = True
        storage: Literal["fp32", "bf16"] = "fp32"

        def build(self, sizes: Mapping[str, int]) -> FusedTables:
            """Make tables of the given sizes."""
            return FusedTables(sizes, self)

        def build_for(self, schema: Schema, features: Iterable[Feature]) -> FusedTables:
            """Make tables for the vocabularies that the categorical ones of features read."""
            kinds = ("categorical", "multi")
            return FusedTables(
                {f.vocab: schema.size(f.vocab) for f in features if f.kind in kinds}, self
            )

    starts: Tensor
    sizes: Tensor

    def __init__(self, sizes: Mapping[str, int], config: Config) -> None:
        super().__init__()
        self.config = config
        self.vocabularies = tuple(sizes)
        self._index = {name: k for k, name in enumerate(sizes)}
        sizes_V = torch.tensor(list(sizes.values()), dtype=torch.int64)
        self.register_buffer("sizes", sizes_V, persistent=False)
        self.register_buffer("starts", sizes_V.cumsum(0) - sizes_V, persistent=False)
        dtype = torch.bfloat16 if config.storage == "bf16" else None
        self.weight = nn.Parameter(torch.empty(int(sizes_V.sum()), config.dim, dtype=dtype))
        self.reset_parameters()

    @property
    def dim(self) -> int:
        """Width ``D`` of an embedding."""
        return self.config.dim

    def reset_parameters(self) -> None:
        """Draw the weights anew: normal, zero in the reserved rows."""
        with torch.no_grad():
            self.weight.normal_(std=self.config.init_std)
            for start in self.starts.tolist():
                self.weight[start : start + NUM_RESERVED].zero_()

    def columns(self, vocabularies: Iterable[str]) -> Tensor:
        """Return the numbers ``[C]`` int64 by which lookups name vocabularies."""
        return torch.tensor([self._index[name] for name in vocabularies], dtype=torch.int64)

    def rows_of(self, vocabulary: str) -> slice:
        """Return the rows of ``weight`` that hold a vocabulary."""
        k = self._index[vocabulary]
        start = int(self.starts[k])
        return slice(start, start + int(self.sizes[k]))

    def forward(self, ids: Tensor, columns: Tensor) -> Tensor:
        """Look up ids, column ``c`` in vocabulary ``columns[c]``.

        Parameters
        ----------
        ids : Tensor ``[N, C]`` int64
            Vocabulary rows. The log maps raw values, so an id out of range is a bug, not input.
        columns : Tensor ``[C]`` int64
            From :meth:`columns`.

        Returns
        -------
        Tensor ``[N, C, D]``
        """
        assert self._in_range(ids, columns), "id outside its vocabulary"
        rows = ids + self.starts[columns]
        return _wide(_look_up(self.weight, rows, sparse=self.config.sparse))

    def pooled(self, ids: Jagged, column: Tensor) -> Tensor:
        """Return the mean embedding of each row of ids, ``[N, D]``; empty rows give 0.

        Parameters
        ----------
        ids : Jagged of int64, ``N`` rows
            Vocabulary rows.
        column : Tensor ``[1]`` int64
            From :meth:`columns`.
        """
        assert self._in_range(ids.values.unsqueeze(1), column), "id outside its vocabulary"
        pooled = F.embedding_bag(
            ids.values + self.starts[column],
            self.weight,
            ids.offsets,
            mode="mean",
            sparse=self.config.sparse,
            include_last_offset=True,
        )
        return _wide(pooled)

    def _in_range(self, ids: Tensor, columns: Tensor) -> bool:
        # A look at the values would stall an accelerator and break a compiled graph.
        if ids.device.type != "cpu" or ids.numel() == 0 or torch.compiler.is_compiling():
            return True
        # As unsigned a negative id is a huge one, so one pass does; numpy's is faster than torch's.
        sizes_C = self.sizes[columns].numpy().view(np.uint64)
        return bool((ids.numpy().view(np.uint64) < sizes_C).all())

    def extra_repr(self) -> str:
        """Describe the tables in ``repr(model)``."""
        return f"{len(self.vocabularies)} vocabularies, {tuple(self.weight.shape)}"


def gather_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Return ``table[rows]`` without a gradient, fast on CPU where the table exceeds the caches.

    Parameters
    ----------
    table : Tensor ``[V, D]``
        Floating point.
    rows : Tensor ``[...]`` int64
        Row numbers.

    Returns
    -------
    Tensor ``[..., D]``

    Examples
    --------
    >>> gather_rows(torch.eye(3), torch.tensor([2, 0]))
    tensor([[0., 0., 1.],
            [1., 0., 0.]])
    """
    table = table.detach()
    if table.device.type != "cpu" or rows.numel() < _FEW or torch.compiler.is_compiling():
        return F.embedding(rows, table)
    # Bags of one row each: their kernel fetches rows ahead, which that of single rows does not.
    bags = F.embedding_bag(rows.reshape(-1), table, _first_numbers(rows.numel()), mode="sum")
    return bags.view(*rows.shape, table.shape[1])


_NUMBERS = [torch.arange(_FEW)]


def _first_numbers(count: int) -> Tensor:
    """Return ``0 .. count - 1`` int64, to be read only: a view of the longest one made so far."""
    if len(_NUMBERS[0]) < count:
        _NUMBERS[0] = torch.arange(1 << (count - 1).bit_length())
    return _NUMBERS[0][:count]


class _Lookup(torch.autograd.Function):
    """``F.embedding`` with a sparse gradient, by :func:`gather_rows`."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = weight.shape
        return gather_rows(weight, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        values = grad.reshape(-1, ctx.shape[1])
        index = rows.reshape(1, -1)
        return torch.sparse_coo_tensor(index, values, ctx.shape, check_invariants=False), None


def _look_up(weight: Tensor, rows: Tensor, *, sparse: bool) -> Tensor:
    if not (weight.requires_grad and torch.is_grad_enabled()):
        return gather_rows(weight, rows)
    if sparse and rows.numel() >= _FEW and not torch.compiler.is_compiling():
        looked_up: Tensor = _Lookup.apply(weight, rows)  # type: ignore[no-untyped-call]
        return looked_up
    return F.embedding(rows, weight, sparse=sparse)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype is torch.bfloat16 else x
