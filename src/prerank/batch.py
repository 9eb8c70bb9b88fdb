"""The one structure that flows through everything: requests, their candidates, unique items.

Shapes: ``R`` requests, ``I`` candidates, ``U`` unique items (candidates and history together),
``L`` history events of all requests, ``T`` tasks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from prerank.jagged import Jagged, _to, lengths_to_offsets, ranges

__all__ = [
    "POSITIVE",
    "UNKNOWN",
    "Evidence",
    "Features",
    "History",
    "Inputs",
    "Pairs",
    "RequestBatch",
    "Rows",
    "Scores",
]

POSITIVE = -1
"""``evidence.source`` of an engaged candidate."""
UNKNOWN = -2
"""``evidence.source`` of a candidate that is neither a positive nor a member of a source."""

Destination = torch.device | torch.dtype | str


def _map(value: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to every tensor, jagged tensor and tree below a field."""
    if value is None:
        return None
    if isinstance(value, tuple):
        return tuple(_map(v, function) for v in value)
    if isinstance(value, dict):
        return {k: _map(v, function) for k, v in value.items()}
    return function(value)


def _leaves(value: Any) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, tuple):
        return [leaf for v in value for leaf in _leaves(v)]
    if isinstance(value, dict):
        return [leaf for v in value.values() for leaf in _leaves(v)]
    return [value]


def _select(leaf: Any, index: Tensor) -> Any:
    return leaf.index_select(0, index) if isinstance(leaf, Tensor) else leaf.select(index)


def _num_rows(leaf: Any) -> int:
    return int(leaf.shape[0]) if isinstance(leaf, Tensor) else int(leaf.num_rows)


def _cat(parts: Sequence[Any]) -> Any:
    first = parts[0]
    if first is None:
        return None
    if isinstance(first, tuple):
        return tuple(_cat(column) for column in zip(*parts, strict=True))
    if isinstance(first, dict):
        return {key: _cat([part[key] for part in parts]) for key in first}
    return torch.cat(list(parts)) if isinstance(first, Tensor) else type(first).cat(parts)


class Rows:
    """A frozen tree of tensors that all have the same rows: the base of features and states.

    Subclasses are frozen dataclasses whose fields are tensors ``[N, ...]``, :class:`Jagged`, other
    ``Rows``, tuples or dicts of those, or None. Every model state is one, so caching,
    micro-batching and export work for every model.

    Examples
    --------
    >>> @dataclass(frozen=True, slots=True)
    ... class State(Rows):
    ...     vector: Tensor
    >>> state = State(torch.arange(6.0).view(3, 2))
    >>> state.num_rows, state.nbytes
    (3, 24)
    >>> State.cat([state.select(torch.tensor([2])), state]).num_rows
    4
    """

    __slots__ = ()

    def _fields(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    def _rebuild(self, function: Callable[[Any], Any]) -> Self:
        return type(self)(**{k: _map(v, function) for k, v in self._fields().items()})

    @property
    def num_rows(self) -> int:
        """Number of rows (0 for a tree without leaves)."""
        leaves = [leaf for value in self._fields().values() for leaf in _leaves(value)]
        return _num_rows(leaves[0]) if leaves else 0

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(leaf.nbytes for value in self._fields().values() for leaf in _leaves(value))

    def select(self, index: Tensor) -> Self:
        """Return the rows ``index [N']`` int64, in that order, repeats allowed."""
        return self._rebuild(lambda leaf: _select(leaf, index))

    def to(self, *args: Destination) -> Self:
        """Move to a device and/or convert floating-point tensors to a dtype."""
        return self._rebuild(
            lambda leaf: _to(leaf, *args) if isinstance(leaf, Tensor) else leaf.to(*args)
        )

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Concatenate the rows of several trees of one shape."""
        fields = [part._fields() for part in parts]
        return cls(**{name: _cat([f[name] for f in fields]) for name in fields[0]})


@dataclass(frozen=True, slots=True)
class Features(Rows):
    """The features of one owner, packed by kind, columns in the schema's order.

    Parameters
    ----------
    categorical : Tensor ``[N, C]`` int64
        Vocabulary rows; 0 missing, 1 unknown.
    multi : tuple of Jagged ``[N]`` int64
        One per multi-valued categorical.
    dense : Tensor ``[N, 2 * F]`` float
        F transformed values (0 where missing), then F missing indicators.
    vectors : tuple of Tensor ``[N, dim]`` float
        One per vector feature.
    """

    categorical: Tensor
    multi: tuple[Jagged, ...]
    dense: Tensor
    vectors: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class History(Rows):
    """One stream of past events per request, oldest first, all before the request.

    Parameters
    ----------
    item_of : Jagged of int64, ``R`` rows, ``L`` values
        Row of each event's item in ``inputs.items``.
    age_ms : Jagged of int64
        Milliseconds from the event to the request, > 0.
    categorical, dense : Jagged
        Features of the events, as in :class:`Features`: values ``[L, C]`` and ``[L, 2 * F]``.
    """

    item_of: Jagged
    age_ms: Jagged
    categorical: Jagged
    dense: Jagged


@dataclass(frozen=True, slots=True)
class Pairs:
    """What is known of each candidate beside its request's and its item's state.

    Parameters
    ----------
    request_of, item_of : Tensor ``[I]`` int64
        Row of the candidate's request and item state.
    candidate : Features, ``I`` rows
        Candidate features.
    context : Features, ``R`` rows
        Context features, one row per request: they change without invalidating a cached
        request state.
    """

    request_of: Tensor
    item_of: Tensor
    candidate: Features
    context: Features

    def select(self, candidates: Tensor) -> Pairs:
        """Return the given candidates ``[I']`` int64; requests and their context stay."""
        return dataclasses.replace(
            self,
            request_of=self.request_of[candidates],
            item_of=self.item_of[candidates],
            candidate=self.candidate.select(candidates),
        )


@dataclass(frozen=True, slots=True)
class Inputs:
    """All that a model may read.

    Parameters
    ----------
    user, context : Features, ``R`` rows
        Request-side features.
    history : dict of str to History
        One per stream.
    items : Features, ``U`` rows
        Unique items of the batch, candidates and history events together.
    candidate : Features, ``I`` rows
        Features of an item in this request.
    offsets : Tensor ``[R + 1]`` int64
        Candidates of request ``r`` are ``offsets[r]:offsets[r + 1]``.
    request_of, item_of : Tensor ``[I]`` int64
        The only links: candidate to request, candidate to unique item.
    """

    user: Features
    context: Features
    history: dict[str, History]
    items: Features
    candidate: Features
    offsets: Tensor
    request_of: Tensor
    item_of: Tensor

    @property
    def num_requests(self) -> int:
        """Number of requests ``R``."""
        return self.offsets.numel() - 1

    @property
    def num_candidates(self) -> int:
        """Number of candidates ``I``."""
        return self.request_of.numel()

    @property
    def pairs(self) -> Pairs:
        """The candidate side, as ``Model.score`` takes it."""
        return Pairs(self.request_of, self.item_of, self.candidate, self.context)

    def select(self, requests: Tensor) -> Inputs:
        """Return the given requests ``[R']`` int64 with their candidates; items stay."""
        lengths = self.offsets.diff()[requests]
        candidates = ranges(self.offsets[requests], lengths)
        rows = torch.arange(requests.numel(), device=requests.device)
        return Inputs(
            user=self.user.select(requests),
            context=self.context.select(requests),
            history={name: h.select(requests) for name, h in self.history.items()},
            items=self.items,
            candidate=self.candidate.select(candidates),
            offsets=lengths_to_offsets(lengths),
            request_of=torch.repeat_interleave(rows, lengths),
            item_of=self.item_of[candidates],
        )

    def to(self, *args: Destination) -> Inputs:
        """Move to a device and/or convert floating-point tensors to a dtype."""
        return Inputs(
            user=self.user.to(*args),
            context=self.context.to(*args),
            history={name: h.to(*args) for name, h in self.history.items()},
            items=self.items.to(*args),
            candidate=self.candidate.to(*args),
            offsets=_to(self.offsets, *args),
            request_of=_to(self.request_of, *args),
            item_of=_to(self.item_of, *args),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What happened: read by objectives and metrics, never by models.

    Parameters
    ----------
    row : Tensor ``[R]`` int64
        Row of each request in the log.
    user, time : Tensor ``[R]`` int64
        User index and request time in ms.
    stage : Tensor ``[I]`` int64
        Code of the deepest stage, in the schema's order.
    source : Tensor ``[I]`` int64
        Code of the source in ``schema.source_names``; ``POSITIVE`` or ``UNKNOWN``.
    engaged : Tensor ``[I]`` float32
        1, 0, or NaN for unknown.
    targets : Tensor ``[I, T]`` float32
        The tasks; 1, 0, or NaN for unknown.
    labels, ranks, scores : dict of str to Tensor ``[I]``
        Labels and logged scores as float32 (NaN = null); 0-based ranks as int64 (-1 = null).
    item : Tensor ``[I]`` int64
        Item index in the log.
    channel : Tensor ``[I]`` int64
        Code of the retrieval channel, -1 = null.
    weight, propensity, sample_prob : Tensor ``[I]`` float32
        Ones where the log has no such column.
    scored_online : Tensor ``[I]`` bool
        Whether the logged system itself computed the scores (true where the log does not say).
    """

    row: Tensor
    user: Tensor
    time: Tensor
    stage: Tensor
    source: Tensor
    engaged: Tensor
    targets: Tensor
    item: Tensor
    channel: Tensor
    weight: Tensor
    propensity: Tensor
    sample_prob: Tensor
    scored_online: Tensor
    labels: dict[str, Tensor] = field(default_factory=dict)
    ranks: dict[str, Tensor] = field(default_factory=dict)
    scores: dict[str, Tensor] = field(default_factory=dict)

    _PER_REQUEST = ("row", "user", "time")

    def _rebuild(
        self, per_request: Callable[[Tensor], Tensor], per_candidate: Callable[[Tensor], Tensor]
    ) -> Evidence:
        values: dict[str, Any] = {}
        for f in dataclasses.fields(self):
            function = per_request if f.name in self._PER_REQUEST else per_candidate
            values[f.name] = _map(getattr(self, f.name), function)
        return Evidence(**values)

    def select(self, requests: Tensor, candidates: Tensor) -> Evidence:
        """Return given requests ``[R']`` and candidates ``[I']`` (int64 indices)."""
        return self._rebuild(lambda x: x[requests], lambda x: x[candidates])

    def to(self, *args: Destination) -> Evidence:
        """Move to a device and/or convert floating-point tensors to a dtype."""
        return self._rebuild(lambda x: _to(x, *args), lambda x: _to(x, *args))


@dataclass(frozen=True, slots=True)
class RequestBatch:
    """A batch of requests: ``inputs`` for models, ``evidence`` for objectives and metrics."""

    inputs: Inputs
    evidence: Evidence

    @property
    def num_requests(self) -> int:
        """Number of requests ``R``."""
        return self.inputs.num_requests

    @property
    def num_candidates(self) -> int:
        """Number of candidates ``I``."""
        return self.inputs.num_candidates

    def select(self, requests: Tensor) -> RequestBatch:
        """Return the given requests ``[R']`` int64 with their candidates."""
        offsets = self.inputs.offsets
        candidates = ranges(offsets[requests], offsets.diff()[requests])
        return RequestBatch(
            self.inputs.select(requests), self.evidence.select(requests, candidates)
        )

    def to(self, *args: Destination) -> RequestBatch:
        """Move to a device and/or convert floating-point tensors to a dtype."""
        return RequestBatch(self.inputs.to(*args), self.evidence.to(*args))


@dataclass(frozen=True, slots=True)
class Scores:
    """What a model says of each candidate.

    Parameters
    ----------
    logits : Tensor ``[I, T]``
        One column per task.
    extra : mapping of str to Tensor
        Auxiliary heads, members, router statistics; empty in eval mode unless asked for.
    """

    logits: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)
