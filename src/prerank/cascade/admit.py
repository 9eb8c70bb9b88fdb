"""Going through candidates from the best on, taking each one whose groups all have room left.

The greedy choice is by nature one candidate after another; here it takes a few rounds over whole
batches. In each round the candidates that fit even if all undecided ones before them were taken
are taken, and those whose group is full already are refused; the first undecided one of a request
is always either, so it ends, and with one limit it ends after two rounds.

Shapes: ``R`` requests, ``I`` candidates, the best of a request first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prerank.cascade.ladder import sort_within
from prerank.jagged import segment_ids

__all__ = ["Groups", "Limit", "admit"]


@dataclass(frozen=True, slots=True)
class Groups:
    """Candidates of a request that share a code, with running counts.

    Parameters
    ----------
    order : Tensor ``[I]`` int64
        Candidates group by group, within a group the best first.
    start, stop : Tensor ``[I]`` int64
        Where the group of each candidate begins and ends in ``order``.
    limited : Tensor ``[I]`` bool
        Whether the candidate has a group.
    """

    order: Tensor
    start: Tensor
    stop: Tensor
    limited: Tensor

    @classmethod
    def of(cls, code: Tensor, offsets: Tensor) -> Groups:
        """Group by request and code ``[I]`` int64; a negative code is no group.

        Examples
        --------
        >>> groups = Groups.of(torch.tensor([7, 3, 7]), torch.tensor([0, 3]))
        >>> groups.before(torch.tensor([True, True, True]))
        tensor([0, 0, 1])
        """
        num = code.numel()
        order = sort_within(code, offsets)
        request, sorted_code = segment_ids(offsets, num), code[order]
        begins = torch.ones(num, dtype=torch.bool, device=code.device)
        if num:
            begins[1:] = (sorted_code.diff() != 0) | (request.diff() != 0)
        starts = begins.nonzero().squeeze(1)
        which = begins.cumsum(0) - 1
        ends = torch.cat([starts[1:], starts.new_tensor([num])]) if num else starts
        start, stop = torch.empty_like(code), torch.empty_like(code)
        start[order], stop[order] = starts[which], ends[which]
        return cls(order, start, stop, code >= 0)

    @property
    def is_first(self) -> Tensor:
        """Whether a candidate ``[I]`` is the first of its group."""
        first = torch.zeros_like(self.limited)
        first[self.order[self.start]] = True
        return first & self.limited

    def before(self, chosen: Tensor) -> Tensor:
        """Return how many chosen ones ``[I]`` bool of its group stand before each candidate."""
        running = self._running(chosen)
        place = torch.empty_like(self.order)
        place[self.order] = torch.arange(place.numel(), device=place.device)
        return running[place] - running[self.start]

    def count(self, chosen: Tensor) -> Tensor:
        """Return how many of its group are chosen, for each candidate ``[I]``."""
        running = self._running(chosen)
        return running[self.stop] - running[self.start]

    def _running(self, chosen: Tensor) -> Tensor:
        running = torch.zeros(chosen.numel() + 1, dtype=torch.int64, device=chosen.device)
        torch.cumsum(chosen[self.order], dim=0, out=running[1:])
        return running


@dataclass(frozen=True, slots=True)
class Limit:
    """Room in groups: ``room [I]`` int64 is that of each candidate's group."""

    groups: Groups
    room: Tensor


def admit(wanted: Tensor, limits: Sequence[Limit]) -> Tensor:
    """Take candidates in order while all their groups have room.

    Parameters
    ----------
    wanted : Tensor ``[I]`` bool
        Who stands in line.
    limits : sequence of Limit
        A candidate without a group is not limited by it.

    Returns
    -------
    Tensor ``[I]`` bool

    Examples
    --------
    >>> line = torch.ones(4, dtype=torch.bool)
    >>> groups = Groups.of(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 4]))
    >>> admit(line, [Limit(groups, torch.full((4,), 2))])
    tensor([ True,  True, False,  True])
    """
    taken, undecided = torch.zeros_like(wanted), wanted
    while bool(undecided.any()):
        fits, full = undecided, torch.zeros_like(wanted)
        for limit in limits:
            free = ~limit.groups.limited
            fits = fits & (free | (limit.groups.before(taken | undecided) < limit.room))
            full = full | ~(free | (limit.groups.before(taken) < limit.room))
        taken, undecided = taken | fits, undecided & ~(fits | full)
    return taken
