"""Who sees whom: the blocks of queries and keys of a batch, their masks and their buckets.

A token's *order* says when it happened: 0 for contextual tokens, 1 + j for event j of the history,
1 + the number of events for every candidate. A query sees the keys of smaller order and itself, so
that candidates share one position, see the whole history and never each other (rule of the
candidate mask in the open code of HSTU's authors, re-stated). Contextual tokens see each other and,
optionally, the whole history. A window limits how far back events are seen.

Shapes: ``G`` rows of a group, ``Q`` queries, ``S`` keys, ``c`` queries of a chunk, ``s`` keys that
a chunk can see; a leading 1 stands for "the same for all".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from prerank.jagged import lengths_to_offsets
from prerank.nn.hstu.buckets import distance_buckets, time_bucket
from prerank.nn.hstu.padding import Padding, similar_rows

__all__ = ["Chunk", "Group", "Rule", "plan_crossing", "plan_sequences"]

_KEPT = 1 << 22
"""Elements of masks and buckets that a plan keeps for all layers; others are made anew."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rule:
    """What is the same for all batches of a stack.

    Parameters
    ----------
    num_context : int
        Contextual tokens of each request.
    context_sees : {"history", "context"}
        What contextual tokens see beside themselves.
    window : int, optional
        Events further back than this are not seen.
    length : float, optional
        What weights are divided by; None: the number of tokens that the query sees.
    position_buckets, time_buckets : int
        Buckets of the relative biases; 0: none. One more row belongs to pairs with a contextual
        token.
    chunk : int
        Queries of a block.
    cells : int
        Pairs of query and key, per head, that the rows of a group may have at once.
    """

    num_context: int
    context_sees: Literal["history", "context"]
    window: int | None
    length: float | None
    position_buckets: int
    time_buckets: int
    chunk: int
    cells: int

    def pieces(self, rows: Sequence[int], queries: int, keys: int) -> Iterator[Sequence[int]]:
        """Cut rows of so many queries and keys into groups of at most ``cells`` pairs."""
        most = max(1, self.cells // (min(queries, self.chunk) * keys))
        for first in range(0, len(rows), most):
            yield rows[first : first + most]

    def num_visible(self, num_events: Tensor) -> Tensor:
        """Return how many tokens a candidate sees, itself among them, by number of events."""
        seen = num_events if self.window is None else num_events.clamp(max=self.window)
        return seen + self.num_context + 1


@dataclass(frozen=True, slots=True)
class Chunk:
    """Queries ``first:last`` of a group's rows and the keys that any of them may see.

    Parameters
    ----------
    first, last : int
        Columns of the queries' block.
    keys : slice or Tensor ``[s]`` int64
        Columns of the keys' block.
    mask : Tensor ``[1 | G, 1 | c, s]`` float
        0 where a key is not seen, else 1 over the normaliser.
    position, time : Tensor ``[1 | G, 1 | c, s]`` int, optional
        Buckets of the relative biases.
    """

    first: int
    last: int
    keys: slice | Tensor
    mask: Tensor
    position: Tensor | None
    time: Tensor | None


@dataclass(frozen=True, slots=True)
class Pairs:
    """What orders alone say of a chunk: see :class:`Chunk`; ``with_context`` marks such pairs."""

    mask: Tensor
    position: Tensor | None
    with_context: Tensor | None


class Kept:
    """Masks and buckets of a plan, up to a number of elements: attention must not need more."""

    def __init__(self) -> None:
        self._left = _KEPT
        self._made: dict[tuple[int, ...], Any] = {}

    def get(self, key: tuple[int, ...], make: Callable[[], T], size: Callable[[T], int]) -> T:
        """Return what was kept under a key, or make it and keep it if there is room."""
        if key in self._made:
            found: T = self._made[key]
            return found
        made = make()
        if size(made) <= self._left:
            self._left -= size(made)
            self._made[key] = made
        return made


class Group:
    """Rows of similar length: where their queries and keys lie, and their chunks.

    Parameters
    ----------
    rule : Rule
        Who sees whom.
    queries, keys : Padding
        Blocks ``[G, Q]`` and ``[G, S]``; the same object where tokens attend to one another.
    num_events : list of int
        Events of each row.
    age : Tensor ``[N]`` int32, optional
        Seconds from each key's event to its request.
    dtype : torch.dtype
        Of the masks.
    kept : Kept
        Of the plan.
    number : int
        Of the group in the plan.
    """

    def __init__(
        self,
        rule: Rule,
        queries: Padding,
        keys: Padding,
        num_events: list[int],
        age: Tensor | None,
        dtype: torch.dtype,
        device: torch.device,
        kept: Kept,
        number: int,
    ) -> None:
        self._kept, self._number = kept, number
        self.rule, self.queries, self.keys = rule, queries, keys
        self.dtype = dtype
        same = min(num_events) == max(num_events)
        self._fewest = min(num_events)
        self.num_events = torch.tensor(num_events[:1] if same else num_events, device=device)
        self._age = None if age is None else keys.pad(age.unsqueeze(1)).squeeze(2)
        self._by_place = True
        place = torch.arange(keys.width, device=device)
        self._place, C = place, rule.num_context
        order = (place - (C - 1)).clamp(min=0).unsqueeze(0)
        if queries is keys and any(
            n - e - C > 1 for n, e in zip(keys.lengths, num_events, strict=True)
        ):
            # Several candidates of a row share the order after its events; what follows is padding.
            same = min(keys.lengths) == keys.width
            lengths = torch.tensor(keys.lengths[:1] if same else keys.lengths, device=device)
            lengths = lengths.unsqueeze(1)
            padding = torch.full_like(order, 2 * keys.width)
            order = order.clamp(max=1 + self.num_events.unsqueeze(1))
            order = torch.where(place < lengths, order, padding)
            self._by_place = False
        self._order = order

    @property
    def is_crossing(self) -> bool:
        """Whether queries are candidates and keys are stored states."""
        return self.queries is not self.keys

    def chunks(self) -> Iterator[Chunk]:
        """Yield the chunks of queries."""
        yield from self._crossing() if self.is_crossing else self._sequence()

    def _columns(self, earliest: int, last: int) -> slice | Tensor:
        """Return the keys from contextual tokens and from what a window leaves, up to ``last``."""
        C, window = self.rule.num_context, self.rule.window
        first = C if window is None else max(C, earliest - window)
        if first == C:
            return slice(0, last)
        if not C:
            return slice(first, last)
        return torch.cat([self._place[:C], self._place[first:last]])

    def _sequence(self) -> Iterator[Chunk]:
        C, width, step = self.rule.num_context, self.keys.width, self.rule.chunk
        bounds = list(range(0, width, step))
        if C and self.rule.context_sees == "history":
            bounds = [0, *range(C, width, step)]
        for first, last in zip(bounds, [*bounds[1:], width], strict=True):
            reads_all = first < C and self.rule.context_sees == "history"
            earliest = min(first, C + self._fewest)
            keys = slice(0, width) if reads_all else self._columns(earliest, last)
            # Causal chunks of equal columns are the same in all groups of a plan.
            key = (first, last, earliest)
            if reads_all or not self._by_place:
                key = (-1 - self._number, *key[:2])
            make = partial(self._pairs_within, first, last, keys)
            pairs = self._kept.get(key, make, _size_of_pairs)
            time = None
            if self._age is not None:
                make_time = partial(self._time_within, first, last, keys, pairs)
                time = self._kept.get((self._number, first), make_time, Tensor.numel)
            yield Chunk(first, last, keys, pairs.mask, pairs.position, time)

    def _crossing(self) -> Iterator[Chunk]:
        width, step = self.queries.width, self.rule.chunk
        keys = self._columns(self.rule.num_context + self._fewest, self.keys.width)
        order_G11 = 1 + self.num_events.view(-1, 1, 1)
        make = partial(self._pairs, order_G11, self._order[:, None, keys], None, False)
        pairs = self._kept.get((-1 - self._number,), make, _size_of_pairs)
        time = None
        if self._age is not None:
            time = self._time(self._age[:, None, keys], pairs)
        for first in range(0, width, step):
            last = min(first + step, width)
            yield Chunk(first, last, keys, pairs.mask, pairs.position, time)

    def _pairs_within(self, first: int, last: int, keys: slice | Tensor) -> Pairs:
        is_self_cs = self._place[first:last].unsqueeze(1) == self._place[keys]
        query, key = self._order[:, first:last, None], self._order[:, None, keys]
        return self._pairs(query, key, is_self_cs, first < self.rule.num_context)

    def _time_within(self, first: int, last: int, keys: slice | Tensor, pairs: Pairs) -> Tensor:
        assert self._age is not None
        return self._time(self._age[:, None, keys] - self._age[:, first:last, None], pairs)

    def _pairs(
        self, query: Tensor, key: Tensor, is_self_cs: Tensor | None, has_context: bool
    ) -> Pairs:
        """Return mask and buckets of queries and keys of given orders."""
        rule = self.rule
        distance = query - key
        seen = distance > 0
        if rule.window is not None:
            seen &= (distance <= rule.window) | (key == 0)
        with_context = None
        if rule.num_context:
            with_context = (query == 0) | (key == 0)
        if is_self_cs is not None:
            seen = seen | is_self_cs
        if has_context:
            limit = self.num_events.view(-1, 1, 1) if rule.context_sees == "history" else 0
            seen = seen | ((query == 0) & (key <= limit))
        mask = seen.to(self.dtype)
        if rule.length is not None:
            mask /= rule.length
        else:
            mask /= seen.sum(2, keepdim=True) + (is_self_cs is None)
        position = None
        if rule.position_buckets:
            longest = self.keys.width + 1
            table = distance_buckets(longest, rule.position_buckets).to(key.device, torch.int32)
            position = table[distance.clamp(0, longest)]
            position = _marked(position, with_context, rule.position_buckets)
        return Pairs(mask, position, with_context)

    def _time(self, elapsed: Tensor, pairs: Pairs) -> Tensor:
        time = time_bucket(elapsed, self.rule.time_buckets)
        return _marked(time, pairs.with_context, self.rule.time_buckets)


def _size_of_pairs(pairs: Pairs) -> int:
    parts = (pairs.mask, pairs.position, pairs.with_context)
    return sum(part.numel() for part in parts if part is not None)


def _marked(index: Tensor, with_context: Tensor | None, value: int) -> Tensor:
    return index if with_context is None else index.masked_fill(with_context, value)


def plan_sequences(
    rule: Rule, offsets: Tensor, num_events: Tensor, age: Tensor | None, dtype: torch.dtype
) -> list[Group]:
    """Plan attention among the tokens of each row.

    Parameters
    ----------
    rule : Rule
        Who sees whom.
    offsets : Tensor ``[R + 1]`` int64
        Rows of flat tokens: contextual ones, events, candidates.
    num_events : Tensor ``[R]`` int64
        Events of each row; what follows them are candidates.
    age : Tensor ``[N]`` int32, optional
        Seconds to the request, 0 for what is no event; read for a time bias.
    dtype : torch.dtype
        Of the queries.
    """
    starts, lengths, events = offsets.tolist(), offsets.diff().tolist(), num_events.tolist()
    device, kept = offsets.device, Kept()
    groups: list[Group] = []
    for similar in similar_rows(lengths):
        width = max(lengths[r] for r in similar)
        for rows in rule.pieces(similar, width, width):
            padding = Padding.of([starts[r] for r in rows], [lengths[r] for r in rows], device)
            in_rows = [events[r] for r in rows]
            group = (padding, padding, in_rows, age, dtype, device, kept, len(groups))
            groups.append(Group(rule, *group))
    return groups


def plan_crossing(
    rule: Rule, offsets: Tensor, request_of: Tensor, age: Tensor | None, dtype: torch.dtype
) -> list[Group]:
    """Plan attention of candidates to the stored tokens of their requests.

    Parameters
    ----------
    rule : Rule
        Who sees whom.
    offsets : Tensor ``[R + 1]`` int64
        Rows of stored tokens: contextual ones, then events.
    request_of : Tensor ``[I]`` int64
        Row of each candidate, in any order.
    age : Tensor ``[N]`` int32, optional
        As in :func:`plan_sequences`.
    dtype : torch.dtype
        Of the queries.
    """
    count = torch.bincount(request_of, minlength=offsets.numel() - 1)
    starts, lengths, counts = offsets.tolist(), offsets.diff().tolist(), count.tolist()
    firsts = lengths_to_offsets(count).tolist()
    order: Tensor | None = None
    if bool((request_of.diff() < 0).any()):
        order = torch.argsort(request_of, stable=True)
    device, kept = offsets.device, Kept()
    groups: list[Group] = []
    for similar in similar_rows([n if k else 0 for n, k in zip(lengths, counts, strict=True)]):
        for members in similar_rows([counts[r] for r in similar]):
            chosen = sorted(similar[m] for m in members)
            num_keys = max(lengths[r] for r in chosen)
            for rows in rule.pieces(chosen, max(counts[r] for r in chosen), num_keys):
                queries = Padding.of(
                    [firsts[r] for r in rows], [counts[r] for r in rows], device, order
                )
                keys = Padding.of([starts[r] for r in rows], [lengths[r] for r in rows], device)
                events = [lengths[r] - rule.num_context for r in rows]
                group = (queries, keys, events, age, dtype, device, kept, len(groups))
                groups.append(Group(rule, *group))
    return groups
