"""De-duplication in memory: rows whose request side is equal become one request.

Sources: RecD (arXiv 2211.05239) finds the feature values that samples of one browsing session share
and computes on the distinct ones; request-only optimisation (ROO, arXiv 2508.05640) stores them
once from the start. Stated there: what is gained, and that the rows of a session must lie in one
batch. Ours: whole request sides instead of one feature group at a time, so that one link serves
everything; and equality that is checked, not believed of a hash.

Shapes: ``N`` rows as they come, ``R`` requests that are left, ``I`` candidates.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prerank.batch import RequestBatch
from prerank.jagged import Jagged, lengths_to_offsets, ranges
from prerank.log.format.columns import CANDIDATES, Columns, Group
from prerank.rng import hash64

__all__ = ["as_impressions", "dedup_columns", "dedup_impressions", "distinct_requests"]

Array = npt.NDArray[Any]
Index = npt.NDArray[np.int64]
_NOT_COMPARED = ("row", "request_id")  # where and under which name a row was stored


def as_impressions(batch: RequestBatch) -> RequestBatch:
    """Return the same candidates with a request of their own each: the impression-level batch.

    Logits, losses that are means over candidates, and their gradients are those of ``batch``; the
    request side is computed ``I`` times. A request without candidates leaves nothing behind.

    Examples
    --------
    >>> from dataclasses import fields
    >>> from prerank.batch import Evidence, Features, Inputs
    >>> one, two = (Features(torch.ones(n, 1).long(), (), torch.ones(n, 0), ()) for n in (1, 2))
    >>> zeros = torch.zeros(2).long()
    >>> offsets, items = torch.tensor([0, 2]), torch.arange(2)
    >>> inputs = Inputs(one, one, {}, two, two, offsets, request_of=zeros, item_of=items)
    >>> names = [f.name for f in fields(Evidence)][:13]
    >>> per_request = dict.fromkeys(("row", "user", "time"), zeros[:1])
    >>> batch = RequestBatch(inputs, Evidence(**(dict.fromkeys(names, zeros) | per_request)))
    >>> flat = as_impressions(batch)
    >>> batch.num_requests, flat.num_requests, dedup_impressions(flat).num_requests
    (1, 2, 1)
    """
    of = batch.inputs.request_of
    candidates = torch.arange(of.numel(), device=of.device)
    return _regrouped(batch, of, candidates, torch.ones_like(of))


def dedup_impressions(batch: RequestBatch, key: Tensor | None = None) -> RequestBatch:
    """Merge the rows of a batch whose request sides are equal; the reverse of `as_impressions`.

    Rows are equal when every bit of user, context, history, ``evidence.user`` and
    ``evidence.time`` is; ``evidence.row`` may differ, and that of the first row is kept. A row that
    differs in anything stays a request of its own, also under the same key. Requests stand in the
    order of their first row, candidates in the order in which they came; labels, weights and all
    other evidence go with them.

    Parameters
    ----------
    batch : RequestBatch
        Rows in any order, with any number of candidates each.
    key : Tensor ``[N]`` of integers, optional
        Rows of different keys are kept apart, for example requests of one user at one moment.

    Examples
    --------
    See `as_impressions`; ``Part.deduplicated`` does it while a flat log is read.
    """
    inputs, evidence = batch.inputs, batch.evidence
    sides = [_Side(None, [_bits(evidence.user), _bits(evidence.time)])]
    if key is not None:
        sides.append(_Side(None, [_bits(key)]))
    for features in (inputs.user, inputs.context):
        tensors = [features.categorical, features.dense, *features.vectors]
        sides.append(_Side(None, [_bits(x) for x in tensors]))
        sides += _jagged(features.multi)
    for history in inputs.history.values():
        sides += _jagged((history.item_of, history.age_ms, history.categorical, history.dense))
    found = _merge(sides, inputs.num_requests)
    if found is None:
        return batch
    device = inputs.offsets.device
    kept, order, num_rows = (torch.from_numpy(x).to(device) for x in _in_groups(*found))
    lengths = inputs.offsets.diff()[order]
    candidates = ranges(inputs.offsets[order], lengths)
    ends = lengths_to_offsets(lengths)[lengths_to_offsets(num_rows)]
    return _regrouped(batch, kept, candidates, ends.diff())


def dedup_columns(columns: Columns) -> Columns:
    """Merge request rows that are equal in all but ``row``, ``request_id`` and their candidates.

    What `dedup_impressions` does to a batch, before anything is transformed: candidates of equal
    rows follow each other.

    Examples
    --------
    >>> clicks = Group(np.arange(4), {"item": np.array([7, 8, 9])})
    >>> rows = Columns(
    ...     {"row": np.arange(3), "user": np.array([5, 6, 5])}, {"candidates": clicks}
    ... )
    >>> merged = dedup_columns(rows)
    >>> merged.scalars["row"], merged.candidates.offsets, merged.candidates.values["item"]
    (array([0, 1]), array([0, 2, 3]), array([7, 9, 8]))
    """
    found = distinct_requests(columns)
    if found is None:
        return columns
    kept, order, num_rows = _in_groups(*found)
    candidates = columns.candidates.take(order)
    ends = candidates.offsets[np.concatenate([[0], np.cumsum(num_rows)])]
    rest = {name: group for name, group in columns.groups.items() if name != CANDIDATES}
    merged = Columns(columns.scalars, rest).take(kept)
    merged.groups[CANDIDATES] = Group(ends, candidates.values)
    return merged


def distinct_requests(columns: Columns) -> tuple[Index, Index] | None:
    """Find request rows that are equal in all but ``row``, ``request_id`` and their candidates.

    Returns
    -------
    tuple of two ndarrays int64, or None
        ``kept [R]``: the first row of each request, ascending; ``group [N]``: the request of each
        row. None: no two rows are equal.

    Examples
    --------
    >>> rows = Columns({"row": np.arange(3), "user": np.array([5, 6, 5])}, {})
    >>> distinct_requests(rows)
    (array([0, 1]), array([0, 1, 0]))
    """
    scalars = [x for name, x in columns.scalars.items() if name not in _NOT_COMPARED]
    sides = [_Side(None, [_array_bits(x) for x in scalars])]
    for name, group in columns.groups.items():
        if name != CANDIDATES:
            values = [_array_bits(x) for x in group.values.values()]
            sides.append(_Side(group.offsets, values))
    return _merge(sides, columns.num_requests)


def _regrouped(
    batch: RequestBatch, requests: Tensor, candidates: Tensor, num_candidates: Tensor
) -> RequestBatch:
    """Return request rows ``[R']`` with the next ``num_candidates [R']`` of the candidates each."""
    rows = torch.arange(requests.numel(), device=requests.device)
    inputs = batch.inputs
    regrouped = replace(
        inputs,
        user=inputs.user.select(requests),
        context=inputs.context.select(requests),
        history={name: history.select(requests) for name, history in inputs.history.items()},
        candidate=inputs.candidate.select(candidates),
        offsets=lengths_to_offsets(num_candidates),
        request_of=torch.repeat_interleave(rows, num_candidates),
        item_of=inputs.item_of[candidates],
    )
    return RequestBatch(regrouped, batch.evidence.select(requests, candidates))


@dataclass(frozen=True, slots=True)
class _Side:
    """Columns of the rows, as integers: one value each, or lists that share ``offsets``."""

    offsets: Index | None
    columns: Sequence[Array]

    def code(self, num_rows: int) -> Iterable[Array]:
        """Yield cheap numbers per row ``[N]`` that differ only where rows do."""
        if self.offsets is not None:
            yield np.diff(self.offsets)
            return
        for column in self.columns:
            yield from np.moveaxis(column.reshape(num_rows, -1), 1, 0)

    def content(self, rows: Index) -> npt.NDArray[np.uint64]:
        """Hash the lists of the given rows ``[n]``."""
        assert self.offsets is not None
        lengths = np.diff(self.offsets)[rows]
        ends = np.concatenate([[0], np.cumsum(lengths)])
        place = np.arange(ends[-1]) - np.repeat(ends[:-1], lengths)
        index = place + np.repeat(self.offsets[rows], lengths)
        keys = [place]
        for column in self.columns:
            keys += list(np.moveaxis(column[index].reshape(len(index), -1), 1, 0))
        total = np.concatenate([[np.uint64(0)], np.cumsum(hash64(*keys))])
        return np.asarray(total[ends[1:]] - total[ends[:-1]])

    def differ(self, left: Index, right: Index) -> npt.NDArray[np.bool_]:
        """Return which of the pairs of rows ``[n]`` are not equal."""
        unlike = np.zeros(len(left), dtype=np.bool_)
        if self.offsets is None:
            for column in self.columns:
                other = column[left] != column[right]
                unlike |= other.any(axis=tuple(range(1, other.ndim)))
            return unlike
        lengths = np.diff(self.offsets)
        unlike[:] = lengths[left] != lengths[right]
        same = np.flatnonzero(~unlike)
        lengths = lengths[left[same]]
        ends = np.concatenate([[0], np.cumsum(lengths)])
        place = np.arange(ends[-1])
        at = place + np.repeat(self.offsets[left[same]] - ends[:-1], lengths)
        beside = place + np.repeat(self.offsets[right[same]] - ends[:-1], lengths)
        for column in self.columns:
            other = column[at] != column[beside]
            places = np.flatnonzero(other.any(axis=tuple(range(1, other.ndim))))
            unlike[same[np.searchsorted(ends, places, side="right") - 1]] = True
        return unlike


def _merge(sides: Sequence[_Side], num_rows: int) -> tuple[Index, Index] | None:
    """Return the first row of each group of equal rows, and the group of each row."""
    first = _first_equal(sides, num_rows)
    kept = np.flatnonzero(first == np.arange(num_rows))
    if len(kept) == num_rows:
        return None
    return kept, np.searchsorted(kept, first)


def _in_groups(kept: Index, group: Index) -> tuple[Index, Index, Index]:
    """Return ``kept``, the rows group after group ``[N]``, and the number of rows of each."""
    return kept, np.argsort(group, kind="stable"), np.bincount(group, minlength=len(kept))


def _first_equal(sides: Sequence[_Side], num_rows: int) -> Index:
    """Return the first row that equals each row ``[N]``."""
    first = np.arange(num_rows)
    if not num_rows:
        return first
    # Lists are hashed only for rows that lengths and single values cannot tell apart although they
    # differ: comparing is much cheaper than hashing, and has to be done anyway.
    code = np.zeros(num_rows, dtype=np.uint64)
    for side in sides:
        code = hash64(code.view(np.int64), *side.code(num_rows))
    rows, hashed = first.copy(), False
    while len(rows):
        _, start, group = np.unique(code[rows], return_index=True, return_inverse=True)
        leader = rows[start[group]]
        follows = rows != leader
        rows, leader = rows[follows], leader[follows]
        unlike = np.zeros(len(rows), dtype=np.bool_)
        for side in sides:
            unlike |= side.differ(rows, leader)
        first[rows[~unlike]] = leader[~unlike]
        rows = rows[unlike]
        if len(rows) and not hashed:
            lists = [side.content(rows) for side in sides if side.offsets is not None]
            code[rows] = hash64(code[rows].view(np.int64), *(x.view(np.int64) for x in lists))
            hashed = True
    return first


def _jagged(columns: Sequence[Jagged]) -> list[_Side]:
    return [_Side(_bits(x.offsets), [_bits(x.values)]) for x in columns]


def _bits(tensor: Tensor) -> Array:
    """Return a tensor's values as integers, bit for bit."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.int16)
    return _array_bits(tensor.numpy())


def _array_bits(array: Array) -> Array:
    """Return values as integers, bit for bit: NaN equals NaN."""
    if array.dtype.kind == "f":
        return np.ascontiguousarray(array).view(f"i{array.dtype.itemsize}")
    return array.astype(np.int8) if array.dtype.kind == "b" else array
