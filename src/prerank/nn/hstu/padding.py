"""Rows of similar length side by side: how jagged tokens become a few dense blocks.

Dense layers run on the flat tokens; only attention needs rows of one length. Rows are sorted by
length and cut into groups, so that little of a block is padding, whatever lengths a batch mixes.

Shapes: ``N`` flat tokens, ``G`` rows of a group, ``S`` tokens of its longest row, ``F`` width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prerank.jagged import Jagged, lengths_to_offsets, ranges

__all__ = ["Padding", "join_rows", "similar_rows"]

_SLACK = 8
"""Tokens of padding that are always allowed: below that a block costs calls, not arithmetic."""


def similar_rows(lengths: Sequence[int], *, fill: float = 0.8) -> list[list[int]]:
    """Group rows whose lengths are close: each at least ``fill`` of its group's longest.

    Rows that miss this by no more than a few tokens may join. Empty rows are left out. Groups come
    longest first, rows of equal length in their own order.

    Examples
    --------
    >>> similar_rows([100, 3, 90, 0, 50])
    [[0, 2], [4], [1]]
    """
    order = sorted((r for r, n in enumerate(lengths) if n), key=lambda r: (-lengths[r], r))
    groups: list[list[int]] = []
    least = 0.0
    for r in order:
        if not groups or lengths[r] < least:
            groups.append([])
            least = min(lengths[r] * fill, lengths[r] - _SLACK)
        groups[-1].append(r)
    return groups


@dataclass(frozen=True, slots=True)
class Padding:
    """Where the tokens of a group of rows lie in a block ``[G, S]``, filled at the right.

    Parameters
    ----------
    lengths : list of int
        Tokens of each row.
    width : int
        ``S``.
    start : int
        First token, where ``rows`` is None: the rows then lie one after another, all ``S`` long.
    rows : Tensor ``[n]`` int64, optional
        Flat tokens, row by row.
    slots : Tensor ``[n]`` int64, optional
        Their places in the block; None where every row is ``S`` long.
    """

    lengths: list[int]
    width: int
    start: int = 0
    rows: Tensor | None = None
    slots: Tensor | None = None

    @classmethod
    def of(
        cls,
        starts: Sequence[int],
        lengths: Sequence[int],
        device: torch.device,
        order: Tensor | None = None,
    ) -> Padding:
        """Describe rows by first token and length; ``order [N]`` maps places to flat tokens."""
        lengths, width = list(lengths), max(lengths)
        full = min(lengths) == width
        follow = all(s == starts[0] + k * width for k, s in enumerate(starts))
        if full and follow and order is None:
            return cls(lengths, width, starts[0])
        starts_G = torch.tensor(starts, device=device)
        lengths_G = torch.tensor(lengths, device=device)
        rows = ranges(starts_G, lengths_G)
        rows = rows if order is None else order[rows]
        if full:
            return cls(lengths, width, 0, rows)
        slots = ranges(torch.arange(len(lengths), device=device) * width, lengths_G)
        return cls(lengths, width, 0, rows, slots)

    def pad(self, x_NF: Tensor) -> Tensor:
        """Return the block ``[G, S, F]`` of flat tokens, zeros where a row has ended."""
        shape = (len(self.lengths), self.width, x_NF.shape[1])
        if self.rows is None:
            return x_NF[self.start : self.start + shape[0] * shape[1]].reshape(shape)
        x_nF = x_NF.index_select(0, self.rows)
        if self.slots is None:
            return x_nF.view(shape)
        block = x_NF.new_zeros(shape[0] * shape[1], shape[2])
        return block.index_copy_(0, self.slots, x_nF).view(shape)

    def put(self, block_GSF: Tensor, out_NF: Tensor) -> None:
        """Write the tokens of a block to their flat rows of ``out_NF``."""
        x_nF = block_GSF.reshape(-1, block_GSF.shape[2])
        if self.rows is None:
            out_NF[self.start : self.start + x_nF.shape[0]] = x_nF
            return
        x_nF = x_nF if self.slots is None else x_nF.index_select(0, self.slots)
        out_NF.index_copy_(0, self.rows, x_nF)


def join_rows(parts: Sequence[Jagged]) -> Jagged:
    """Return rows that hold the parts' rows one after another.

    Parameters
    ----------
    parts : sequence of Jagged, ``R`` rows each
        Of the same trailing shape.

    Examples
    --------
    >>> a = Jagged.from_lengths(torch.tensor([1, 2, 3]), torch.tensor([2, 1]))
    >>> b = Jagged.from_lengths(torch.tensor([7, 8]), torch.tensor([1, 1]))
    >>> join_rows([a, b]).values
    tensor([1, 2, 7, 3, 8])
    """
    if len(parts) == 1:
        return parts[0]
    lengths = torch.stack([part.lengths for part in parts])
    offsets = lengths_to_offsets(lengths.sum(0))
    num_rows = offsets.numel() - 1
    if num_rows and bool((lengths == lengths[:, :1]).all()):
        # Rows of one shape: a plain concatenation, several times faster forward and backward.
        tail = parts[0].values.shape[1:]
        blocks = [part.values.view(num_rows, -1, *tail) for part in parts if part.values.numel()]
        return Jagged(torch.cat(blocks, 1).flatten(0, 1) if blocks else parts[0].values, offsets)
    flat = torch.cat([part.values for part in parts])
    source = torch.empty(flat.shape[0], dtype=torch.int64, device=flat.device)
    starts, first = offsets[:-1], 0
    for part, length_R in zip(parts, lengths, strict=True):
        num = part.values.shape[0]
        source[ranges(starts, length_R)] = torch.arange(first, first + num, device=flat.device)
        starts, first = starts + length_R, first + num
    return Jagged(flat.index_select(0, source), offsets)
