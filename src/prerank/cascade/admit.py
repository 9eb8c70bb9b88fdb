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
    order, place : Tensor ``[I]`` int64
        Candidates group by group, within a group the best first; and where each stands there.
    start, last : Tensor ``[I]`` int64
        Where the group of the candidate at each place of ``order`` begins, and its last place.
    limited : Tensor ``[I]`` bool
        Whether the candidate has a group.
    """

    order: Tensor
    place: Tensor
    start: Tensor
    last: Tensor
    limited: Tensor

    @classmethod
    def of(cls, code: Tensor, offsets: Tensor) -> Groups:
        """Group by request and code ``[I]`` int64; a negative code is no group.

        Examples
        --------
        >>> groups = Groups.of(torch.tensor([7, 3, 7]), torch.tensor([0, 3]))
        >>> groups.before(torch.tensor([True, True, True]))
        tensor([0, 0, 1], dtype=torch.int32)
        """
        num = code.numel()
        order = sort_within(code, offsets)
        sorted_code = code.index_select(0, order)
        begins = torch.ones(num, dtype=torch.bool, device=code.device)
        begins[1:] = sorted_code[1:] != sorted_code[:-1]
        begins[offsets[:-1][offsets[:-1] < num]] = True
        starts = begins.nonzero().squeeze(1)
        lengths = torch.cat([starts[1:], starts.new_full((1,), num)]) - starts if num else starts
        start = torch.repeat_interleave(starts, lengths, output_size=num)
        last = torch.repeat_interleave(starts + lengths - 1, lengths, output_size=num)
        place = torch.empty_like(order)
        place[order] = torch.arange(num, device=code.device)
        return cls(order, place, start, last, code >= 0)

    @classmethod
    def whole(cls, offsets: Tensor) -> Groups:
        """Make one group of each request."""
        num = int(offsets[-1])
        request = segment_ids(offsets, num)
        place = torch.arange(num, device=offsets.device)
        start, last = offsets[:-1][request], offsets[1:][request] - 1
        return cls(place, place, start, last, torch.ones_like(place, dtype=torch.bool))

    @property
    def is_first(self) -> Tensor:
        """Whether a candidate ``[I]`` is the first of its group."""
        return self.limited & (self.start.index_select(0, self.place) == self.place)

    def before(self, chosen: Tensor) -> Tensor:
        """Return how many chosen ones of its group stand before each candidate.

        Parameters
        ----------
        chosen : Tensor ``[..., I]`` bool
            One or more choices at once.

        Returns
        -------
        Tensor ``[..., I]`` int32
        """
        mine = chosen.index_select(-1, self.order).int()
        above = mine.cumsum(-1, dtype=torch.int32) - mine
        above = above - above.index_select(-1, self.start)
        return above.index_select(-1, self.place)

    def count(self, chosen: Tensor) -> Tensor:
        """Return how many of its group are chosen, for each candidate ``[I]``."""
        mine = chosen.index_select(0, self.order)
        through = mine.cumsum(0)
        above = (through - mine.long()).index_select(0, self.start)
        return (through.index_select(0, self.last) - above).index_select(0, self.place)


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
        # The most and the least that can have been taken before each candidate.
        most_least = torch.stack([taken | undecided, taken])
        fits = undecided.expand(2, -1)
        for limit in limits:
            room = limit.groups.before(most_least) < limit.room
            fits = fits & (room | ~limit.groups.limited)
        taken, undecided = taken | fits[0], fits[1] & ~fits[0]
    return taken
