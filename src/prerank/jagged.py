"""Jagged tensors and segment operations in plain torch.

Shapes: ``R`` rows, ``N`` values in all rows together, ``...`` trailing dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "Jagged",
    "lengths_to_offsets",
    "ranges",
    "segment_ids",
    "segment_logsumexp",
    "segment_max",
    "segment_mean",
    "segment_softmax",
    "segment_sum",
]


def lengths_to_offsets(lengths: Tensor) -> Tensor:
    """Return ``[R + 1]`` int64 offsets of rows of the given lengths ``[R]``.

    Examples
    --------
    >>> lengths_to_offsets(torch.tensor([2, 0, 3]))
    tensor([0, 2, 2, 5])
    """
    offsets = torch.zeros(lengths.numel() + 1, dtype=torch.int64, device=lengths.device)
    torch.cumsum(lengths, dim=0, out=offsets[1:])
    return offsets


def segment_ids(offsets: Tensor, num_values: int) -> Tensor:
    """Return the row of each value, ``[N]`` int64, from offsets ``[R + 1]``.

    Examples
    --------
    >>> segment_ids(torch.tensor([0, 2, 2, 5]), 5)
    tensor([0, 0, 2, 2, 2])
    """
    rows = torch.arange(offsets.numel() - 1, device=offsets.device)
    return torch.repeat_interleave(rows, offsets.diff(), output_size=num_values)


def ranges(starts: Tensor, lengths: Tensor) -> Tensor:
    """Return ``start, start + 1, ...`` of every row, one after another, int64.

    Examples
    --------
    >>> ranges(torch.tensor([10, 20, 30]), torch.tensor([2, 0, 3]))
    tensor([10, 11, 30, 31, 32])
    """
    offsets = lengths_to_offsets(lengths)
    total = int(offsets[-1])
    shift = torch.repeat_interleave(starts - offsets[:-1], lengths, output_size=total)
    return torch.arange(total, device=starts.device) + shift


def segment_sum(values: Tensor, segment: Tensor, num_segments: int) -> Tensor:
    """Sum values ``[N, ...]`` by their row ``segment [N]`` into ``[R, ...]``; empty rows give 0.

    Examples
    --------
    >>> segment_sum(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 0, 2]), 3)
    tensor([3., 0., 4.])
    """
    out = values.new_zeros((num_segments, *values.shape[1:]))
    return out.index_add(0, segment, values)


def segment_mean(values: Tensor, segment: Tensor, num_segments: int) -> Tensor:
    """Average values ``[N, ...]`` by row into ``[R, ...]``; empty rows give 0.

    Examples
    --------
    >>> segment_mean(torch.tensor([1.0, 3.0]), torch.tensor([1, 1]), 2)
    tensor([0., 2.])
    """
    total = segment_sum(values, segment, num_segments)
    count = torch.bincount(segment, minlength=num_segments).clamp(min=1).to(values.dtype)
    return total / count.view(-1, *([1] * (values.dim() - 1)))


def segment_max(values: Tensor, segment: Tensor, num_segments: int) -> Tensor:
    """Return the largest value of each row ``[R, ...]``; empty rows give -inf.

    Among ties the gradient is shared equally.

    Examples
    --------
    >>> segment_max(torch.tensor([1.0, 3.0]), torch.tensor([1, 1]), 2)
    tensor([-inf, 3.])
    """
    out = values.new_full((num_segments, *values.shape[1:]), float("-inf"))
    index = segment.view(-1, *([1] * (values.dim() - 1))).expand_as(values)
    return out.scatter_reduce(0, index, values, reduce="amax", include_self=True)


def segment_logsumexp(values: Tensor, segment: Tensor, num_segments: int) -> Tensor:
    """Return log(sum(exp(values))) of each row ``[R, ...]``; empty rows give -inf.

    Examples
    --------
    >>> segment_logsumexp(torch.zeros(2), torch.tensor([0, 0]), 2)
    tensor([0.6931,   -inf])
    """
    top = segment_max(values.detach(), segment, num_segments)
    top = torch.where(torch.isfinite(top), top, torch.zeros_like(top))
    total = segment_sum(torch.exp(values - top[segment]), segment, num_segments)
    empty = total == 0
    log = torch.log(torch.where(empty, torch.ones_like(total), total)) + top
    return torch.where(empty, torch.full_like(log, float("-inf")), log)


def segment_softmax(values: Tensor, segment: Tensor, num_segments: int) -> Tensor:
    """Return the softmax of values ``[N, ...]`` within each row, the same shape.

    Examples
    --------
    >>> segment_softmax(torch.zeros(3), torch.tensor([0, 0, 1]), 2)
    tensor([0.5000, 0.5000, 1.0000])
    """
    return torch.exp(values - segment_logsumexp(values, segment, num_segments)[segment])


@dataclass(frozen=True, slots=True)
class Jagged:
    """Rows of different lengths: ``values [N, ...]`` and int64 ``offsets [R + 1]``.

    Row ``r`` holds ``values[offsets[r]:offsets[r + 1]]``.

    Examples
    --------
    >>> rows = Jagged.from_lengths(torch.tensor([5, 6, 7]), torch.tensor([2, 0, 1]))
    >>> rows.select(torch.tensor([2, 0])).values
    tensor([7, 5, 6])
    """

    values: Tensor
    offsets: Tensor

    @classmethod
    def from_lengths(cls, values: Tensor, lengths: Tensor) -> Jagged:
        """Make rows from concatenated values ``[N, ...]`` and lengths ``[R]``."""
        return cls(values, lengths_to_offsets(lengths))

    @property
    def num_rows(self) -> int:
        """Number of rows ``R``."""
        return self.offsets.numel() - 1

    @property
    def lengths(self) -> Tensor:
        """Lengths ``[R]`` int64."""
        return self.offsets.diff()

    @property
    def row_of(self) -> Tensor:
        """Row of each value ``[N]`` int64."""
        return segment_ids(self.offsets, self.values.shape[0])

    @property
    def nbytes(self) -> int:
        """Bytes held by values and offsets."""
        return self.values.nbytes + self.offsets.nbytes

    def select(self, rows: Tensor) -> Jagged:
        """Return the given rows ``[R']`` int64, in that order, repeats allowed."""
        starts, lengths = self.offsets[rows], self.lengths[rows]
        values = self.values.index_select(0, ranges(starts, lengths))
        return Jagged(values, lengths_to_offsets(lengths))

    def to(self, *args: torch.device | torch.dtype | str) -> Jagged:
        """Move to a device, or convert floating-point values to a dtype."""
        return Jagged(_to(self.values, *args), _to(self.offsets, *args))

    def with_values(self, values: Tensor) -> Jagged:
        """Return the same rows with other values ``[N, ...]``."""
        return Jagged(values, self.offsets)

    def sum(self) -> Tensor:
        """Sum of each row ``[R, ...]``."""
        return segment_sum(self.values, self.row_of, self.num_rows)

    def mean(self) -> Tensor:
        """Mean of each row ``[R, ...]``, 0 for empty rows."""
        return segment_mean(self.values, self.row_of, self.num_rows)

    def to_padded(self, length: int, fill: float = 0.0, *, keep: str = "last") -> Tensor:
        """Return ``[R, length, ...]``, filled at the right.

        Parameters
        ----------
        length : int
            Width of the result; longer rows lose their first (``keep="last"``) or last values.
        fill : float
            Value of the padding.
        keep : {"last", "first"}
            Which end of a longer row to keep.
        """
        lengths = self.lengths.clamp(max=length)
        starts = self.offsets[1:] - lengths if keep == "last" else self.offsets[:-1]
        out = self.values.new_full((self.num_rows, length, *self.values.shape[1:]), fill)
        row = torch.repeat_interleave(torch.arange(self.num_rows, device=lengths.device), lengths)
        column = ranges(torch.zeros_like(lengths), lengths)
        return out.index_put((row, column), self.values[ranges(starts, lengths)])

    @classmethod
    def from_padded(cls, padded: Tensor, lengths: Tensor) -> Jagged:
        """Make rows from ``[R, L, ...]`` filled at the right and lengths ``[R]``."""
        mask = torch.arange(padded.shape[1], device=padded.device) < lengths.unsqueeze(1)
        return cls.from_lengths(padded[mask], lengths)

    @staticmethod
    def cat(parts: Sequence[Jagged]) -> Jagged:
        """Concatenate rows of several jagged tensors."""
        lengths = torch.cat([part.lengths for part in parts])
        return Jagged.from_lengths(torch.cat([part.values for part in parts]), lengths)


def _to(tensor: Tensor, *args: torch.device | torch.dtype | str) -> Tensor:
    for arg in args:
        if isinstance(arg, torch.dtype):
            tensor = tensor.to(arg) if tensor.is_floating_point() else tensor
        else:
            tensor = tensor.to(arg)
    return tensor
