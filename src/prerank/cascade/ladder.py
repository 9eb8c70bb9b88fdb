"""A tier's candidates, best first within each request, and sorting within requests.

Shapes: ``R`` requests, ``F`` candidates that reached the tier.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from prerank.jagged import segment_ids

__all__ = ["Ladder", "pad", "sort_within"]

# Sorting a padded matrix is three times as fast as sorting twice, until padding is most of it.
_PADDED = 3


@dataclass(frozen=True, slots=True)
class Ladder:
    """What a rule of forwarding may read: the values of one tier, and nothing of later ones.

    Parameters
    ----------
    value : Tensor ``[F]`` float
        The tier's order value, falling within each request.
    offsets : Tensor ``[R + 1]`` int64
        Where each request begins.
    num_candidates : Tensor ``[R]`` int64
        How many candidates each request had before the first tier.

    Examples
    --------
    >>> ladder = Ladder.of(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0, 2, 3]))
    >>> ladder.place, ladder.request
    (tensor([0, 1, 0]), tensor([0, 0, 1]))
    """

    value: Tensor
    offsets: Tensor
    num_candidates: Tensor
    request: Tensor = field(repr=False)
    place: Tensor = field(repr=False)

    @classmethod
    def of(cls, value: Tensor, offsets: Tensor, num_candidates: Tensor | None = None) -> Ladder:
        """Make a ladder of values that fall within each request already."""
        request = segment_ids(offsets, value.numel())
        place = torch.arange(value.numel(), device=value.device) - offsets[request]
        return cls(
            value,
            offsets,
            offsets.diff() if num_candidates is None else num_candidates,
            request,
            place,
        )

    @property
    def num_requests(self) -> int:
        """Number of requests ``R``."""
        return self.offsets.numel() - 1

    @property
    def lengths(self) -> Tensor:
        """Candidates of each request at this tier, ``[R]`` int64."""
        return self.offsets.diff()

    def at(self, place: Tensor) -> Tensor:
        """Return the value at a 0-based place ``[R]`` of each request ``[R]``, the last at most.

        An empty request gives 0.
        """
        if not self.value.numel():
            return self.value.new_zeros(self.num_requests)
        last = self.offsets[1:] - 1
        index = torch.minimum(self.offsets[:-1] + place, last)
        found = self.value[index.clamp(min=0)]
        return torch.where(self.lengths > 0, found, torch.zeros_like(found))


def pad(values: Tensor, offsets: Tensor, fill: float) -> Tensor:
    """Return ``[R, longest]`` with the rows ``values [F]`` filled at the right.

    Examples
    --------
    >>> pad(torch.tensor([1, 2, 3]), torch.tensor([0, 2, 3]), 9)
    tensor([[1, 2],
            [3, 9]])
    """
    inside = _inside(offsets.diff())
    if inside.numel() == values.numel():
        return values.view(inside.shape)
    out = values.new_full(inside.shape, fill)
    out[inside] = values
    return out


def sort_within(key: Tensor, offsets: Tensor, *, descending: bool = False) -> Tensor:
    """Return the stable order ``[F]`` of a key within each request.

    Parameters
    ----------
    key : Tensor ``[F]``
        Finite numbers, or bool.
    offsets : Tensor ``[R + 1]`` int64
        Where each request begins.
    descending : bool
        Largest first; equals keep the order in which they come either way.

    Returns
    -------
    Tensor ``[F]`` int64
        Candidates, request after request.

    Examples
    --------
    >>> sort_within(torch.tensor([1.0, 2.0, 2.0, 0.0]), torch.tensor([0, 3, 4]), descending=True)
    tensor([1, 2, 0, 3])
    """
    if key.dtype == torch.bool:
        key = key.to(torch.uint8)
    lengths = offsets.diff()
    num, num_requests = key.numel(), lengths.numel()
    if num_requests <= 1 or not num:
        return key.sort(stable=True, descending=descending).indices
    if int(lengths.max()) * num_requests <= _PADDED * num:
        fill = _least(key.dtype) if descending else _most(key.dtype)
        # Padding comes last in its row, so it stays behind equals of the same value.
        place = pad(key, offsets, fill).sort(dim=1, stable=True, descending=descending).indices
        return (place + offsets[:-1].unsqueeze(1))[_inside(lengths)]
    order = key.sort(stable=True, descending=descending).indices
    return order[segment_ids(offsets, num)[order].sort(stable=True).indices]


def _inside(lengths: Tensor) -> Tensor:
    """Return which places ``[R, longest]`` bool exist."""
    longest = int(lengths.max()) if lengths.numel() else 0
    return torch.arange(longest, device=lengths.device) < lengths.unsqueeze(1)


def _least(dtype: torch.dtype) -> float:
    return -torch.inf if dtype.is_floating_point else torch.iinfo(dtype).min


def _most(dtype: torch.dtype) -> float:
    return torch.inf if dtype.is_floating_point else torch.iinfo(dtype).max
