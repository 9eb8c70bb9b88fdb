"""Reserves and caps: what must, and what may at most, be among the first places of an order.

Applied to the finished order, whatever the models said, and reported. The kept set of ``quota``
candidates is chosen first:

1. *Minima*, in the order given: the best candidates of each group are reserved until the minimum
   is met; one that an earlier rule reserved counts. A dropped candidate can be reserved.
2. The rest of the quota is filled from the top.
3. *Maxima* hold in both steps: a candidate of a full group is passed over and the next best comes.
   Where nothing else is left, the places are filled all the same and the excess is reported.

Then the kept ones come first and the others follow, both in the order they had: nothing else
moves, a promoted candidate takes one of the last places, and an order that satisfies the rules
stays as it is. For one minimum over disjoint groups, or caps on one group, no other choice keeps
more of the original first places; for several overlapping rules it is a greedy choice in the order
given, and a minimum that a cap stands against is reported as unmet.

Which candidates get reserved places is this module's own design; the authors of HAP say nothing
of it.

Shapes: ``R`` requests, ``I`` candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prerank.batch import Inputs
from prerank.cascade.admit import Groups, Limit, admit
from prerank.cascade.ladder import sort_within
from prerank.config import Config
from prerank.errors import InputError, did_you_mean
from prerank.jagged import segment_ids, segment_sum
from prerank.schema import Schema

__all__ = ["Arranged", "Maximum", "Minimum", "Moves", "Reserves", "group_codes"]

# Vocabulary rows 0 and 1 stand for no value and for many values.
_FIRST_VALUE = 2


class Minimum(Config, frozen=True):
    """At least so many of a group among the first places.

    Parameters
    ----------
    of : str
        A mark (``pinned``, ``new``) or a code (``channel``, any categorical feature of item or
        candidate); with a code, each value that occurs in a request is a group.
    at_least : int
        1 or more.
    values : tuple of int or str, optional
        Only these codes; channels may be given by name.
    """

    of: str
    at_least: int
    values: tuple[int | str, ...] | None = None

    @property
    def key(self) -> str:
        """Name of the rule in reports."""
        return _key("minimum", self.of, self.values)


class Maximum(Config, frozen=True):
    """At most so many of a group among the first places.

    Parameters
    ----------
    of : str
        As in :class:`Minimum`; candidates without a value (null, rare) are not limited.
    at_most : int
        0 or more.
    values : tuple of int or str, optional
        Only these codes.
    """

    of: str
    at_most: int
    values: tuple[int | str, ...] | None = None

    @property
    def key(self) -> str:
        """Name of the rule in reports."""
        return _key("maximum", self.of, self.values)


@dataclass(frozen=True, slots=True)
class Moves:
    """What one rule did in each request; ``all`` counts what moved whatever the reason.

    Parameters
    ----------
    promoted : Tensor ``[R]`` int64
        Reserved candidates that would not have been among the first places.
    demoted : Tensor ``[R]`` int64
        Candidates that lost one of the first places while their group is full.
    unmet : Tensor ``[R]`` int64
        Of a minimum: existing candidates that are missing. Of a maximum: candidates too many.
    """

    promoted: Tensor
    demoted: Tensor
    unmet: Tensor


@dataclass(frozen=True, slots=True)
class Arranged:
    """An order after its reserves.

    Parameters
    ----------
    order : Tensor ``[I]`` int64
        Index of the candidate (in the given order) at each new place, request by request.
    alive : Tensor ``[I]`` bool
        Whether the candidate at each new place has one.
    moves : dict of rule to Moves
    """

    order: Tensor
    alive: Tensor
    moves: dict[str, Moves]


class Reserves(Config, frozen=True):
    """Minima and maxima among the first ``quota`` places of each request.

    Parameters
    ----------
    quota : int
        How many candidates the next stage takes.
    minimum : tuple of Minimum
        The most important first.
    maximum : tuple of Maximum
        All hold together.
    pinned : tuple of int or str
        Raw ids of the items that ``pinned`` speaks of; whoever has the vocabulary makes the mark.
    new_days : float, optional
        ``new`` are items that first were a candidate less than so many days before the request.

    Raises
    ------
    InputError
        No rule, a rule given twice, a count out of range, pinned items without a rule.

    Examples
    --------
    >>> rules = Reserves(quota=2, minimum=(Minimum(of="pinned", at_least=1),))
    >>> pinned = torch.tensor([-1, -1, -1, 0])
    >>> offsets, alive = torch.tensor([0, 4]), torch.ones(4, dtype=torch.bool)
    >>> arranged = rules.apply(offsets, {"minimum:pinned": pinned}, alive)
    >>> arranged.order, arranged.moves["minimum:pinned"].promoted
    (tensor([0, 3, 1, 2]), tensor([1]))
    """

    quota: int
    minimum: tuple[Minimum, ...] = ()
    maximum: tuple[Maximum, ...] = ()
    pinned: tuple[int | str, ...] = ()
    new_days: float | None = None

    def __post_init__(self) -> None:
        if self.quota < 1:
            raise InputError(f"reserves: quota is {self.quota}; expected 1 or more")
        keys = [rule.key for rule in self.rules]
        if not keys:
            raise InputError("reserves: no rule; give a minimum or a maximum, or leave them out")
        for k, key in enumerate(keys):
            if key in keys[:k]:
                raise InputError(f"reserves: {key} is given twice; give each once")
        for least in self.minimum:
            if not 1 <= least.at_least <= self.quota:
                raise InputError(
                    f"reserves: {least.key} is {least.at_least}; expected from 1 to the quota "
                    f"({self.quota})"
                )
        for most in self.maximum:
            if most.at_most < 0:
                raise InputError(f"reserves: {most.key} is {most.at_most}; expected 0 or more")

        for name, given in (("pinned", bool(self.pinned)), ("new", self.new_days is not None)):
            if given and all(rule.of != name for rule in self.rules):
                raise InputError(f"reserves: says what is {name}, but has no rule of '{name}'")

    @property
    def rules(self) -> tuple[Minimum | Maximum, ...]:
        """All rules."""
        return (*self.minimum, *self.maximum)

    def describe(self) -> str:
        """Return the rules in words, for reports."""
        parts = [f"{rule.key} {rule.at_least}" for rule in self.minimum]
        parts += [f"{rule.key} {rule.at_most}" for rule in self.maximum]
        return f"of the first {self.quota}: {', '.join(parts)}"

    def apply(self, offsets: Tensor, codes: Mapping[str, Tensor], alive: Tensor) -> Arranged:
        """Choose who is among the first places.

        Parameters
        ----------
        offsets : Tensor ``[R + 1]`` int64
            Where each request begins.
        codes : mapping of rule to Tensor ``[I]`` int64
            Group of each candidate in the finished order, best first; negative for none.
        alive : Tensor ``[I]`` bool
            Which candidates have a place; they come first in their request.
        """
        num_requests = offsets.numel() - 1
        request = segment_ids(offsets, alive.numel())
        place = torch.arange(alive.numel(), device=alive.device) - offsets[request]
        # A minimum and a maximum of one group share its tensor, so they share its sort.
        sorted_once = {id(code): Groups.of(code, offsets) for code in codes.values()}
        groups = {key: sorted_once[id(code)] for key, code in codes.items()}
        whole = Groups.whole(offsets)
        caps = [(groups[rule.key], rule.at_most) for rule in self.maximum]
        reserved = torch.zeros_like(alive)
        quota = [(whole, self.quota)]
        taken_by: dict[str, Tensor] = {}
        for rule in self.minimum:
            mine = groups[rule.key]
            limits = _left([*caps, *quota, (mine, rule.at_least)], reserved)
            taken = admit((codes[rule.key] >= 0) & ~reserved, limits)
            reserved, taken_by[rule.key] = reserved | taken, taken
        kept = reserved | admit(alive & ~reserved, _left([*caps, *quota], reserved))
        kept |= admit(alive & ~kept, _left(quota, kept))
        before = alive & (place < self.quota)

        def count(chosen: Tensor) -> Tensor:
            return segment_sum(chosen.long(), request, num_requests)

        nothing = torch.zeros_like(offsets[1:])
        out = before & ~kept
        moves = {"all": Moves(count(kept & ~before), count(out), nothing)}
        for rule in self.minimum:
            mine, exists = groups[rule.key], torch.ones_like(alive)
            wanted = mine.count(exists).clamp(max=rule.at_least)
            short = (wanted - mine.count(kept)).clamp(min=0) * mine.is_first
            unmet = segment_sum(short, request, num_requests)
            moves[rule.key] = Moves(count(taken_by[rule.key] & ~before), nothing, unmet)
        for cap in self.maximum:
            mine = groups[cap.key]
            held = mine.count(kept)
            full = mine.limited & (held >= cap.at_most)
            over = (held - cap.at_most).clamp(min=0) * mine.is_first
            unmet = segment_sum(over, request, num_requests)
            moves[cap.key] = Moves(nothing, count(out & full), unmet)
        order = sort_within(~kept, offsets)
        alive = (alive | kept)[order]
        return Arranged(order, alive, moves)


def _left(limits: Sequence[tuple[Groups, int]], held: Tensor) -> list[Limit]:
    """Return the room that is left in each group beside those who are held already."""
    return [Limit(groups, most - groups.count(held)) for groups, most in limits]


def group_codes(
    reserves: Reserves, inputs: Inputs, schema: Schema, groups: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the group of each candidate ``[I]`` int64 for every rule; negative for none.

    Parameters
    ----------
    reserves : Reserves
        The rules.
    inputs : Inputs
        Of the first tier, for categorical features.
    schema : Schema
        Of the first tier's model.
    groups : mapping of str to Tensor ``[I]``
        Marks (bool) and codes that the caller knows; they come before features.

    Raises
    ------
    InputError
        A group that nobody gave and that is no categorical feature; of the wrong length.
    """
    found: dict[str, Tensor] = {}
    whole: dict[str, Tensor] = {}
    for rule in reserves.rules:
        if rule.of not in whole:
            whole[rule.of] = _codes_of(rule.of, inputs, schema, groups)
        code = whole[rule.of]
        if code.shape != inputs.request_of.shape:
            raise InputError(
                f"reserves: '{rule.of}' has {code.numel()} values for "
                f"{inputs.num_candidates} candidates; give one each"
            )
        if rule.values is not None:
            wanted = [_value(rule.of, value, schema) for value in rule.values]
            code = torch.where(torch.isin(code, code.new_tensor(wanted)), code, -1)
        found[rule.key] = code
    return found


def _codes_of(name: str, inputs: Inputs, schema: Schema, groups: Mapping[str, Tensor]) -> Tensor:
    if name in groups:
        given = groups[name]
        return torch.where(given, 0, -1) if given.dtype == torch.bool else given.long()
    known = list(groups)
    for owner, features in (("candidate", inputs.candidate), ("item", inputs.items)):
        for column, feature in enumerate(schema.of(owner, "categorical")):  # type: ignore[arg-type]
            known.append(feature.name)
            if name in (feature.name, f"{owner}.{feature.name}"):
                row = features.categorical[:, column]
                row = row if owner == "candidate" else row[inputs.item_of]
                return torch.where(row >= _FIRST_VALUE, row, -1)
    raise InputError(
        f"reserves: group '{name}' was not given and is no categorical feature of item or "
        f"candidate; {did_you_mean(name, known)}"
    )


def _value(name: str, value: int | str, schema: Schema) -> int:
    if isinstance(value, int):
        return value
    if name != "channel" or value not in schema.channels:
        hint = did_you_mean(value, schema.channels if name == "channel" else ())
        raise InputError(f"reserves: '{value}' is no value of '{name}'; give a code, or {hint}")
    return schema.channels.index(value)


def _key(kind: str, of: str, values: Sequence[int | str] | None) -> str:
    return f"{kind}:{of}" + ("" if values is None else f"={','.join(map(str, values))}")
