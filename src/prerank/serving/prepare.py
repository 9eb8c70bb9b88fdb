"""One request's raw values to what scoring needs, and several of them put together.

Each request is encoded alone, so that one that does not fit fails alone.

Shapes: ``R`` requests, ``I`` candidates that are scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prerank.batch import Features, Inputs, Pairs, Rows
from prerank.cascade import Reserves
from prerank.jagged import lengths_to_offsets
from prerank.log.format.columns import CANDIDATES, Columns, Group
from prerank.log.format.items import ItemTable
from prerank.log.format.vocab import UNKNOWN_ROW
from prerank.models.base import Model
from prerank.serving.catalogue import Catalogue
from prerank.serving.encode import Numbered
from prerank.serving.errors import BadRequestError
from prerank.serving.messages import Id, RankRequest, Value
from prerank.serving.settings import Policy

__all__ = ["CandidateSide", "join", "prepare"]

_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class CandidateSide:
    """The candidates of one request, or of several.

    Parameters
    ----------
    kept : ndarray ``[I]`` int64
        Index of each scored candidate in its request's ids.
    unknown : ndarray int64
        Indices of ids that the bundle does not know.
    state_rows : Tensor ``[I]`` int64
        Where its item states are; beyond the catalogue: in ``more``.
    pairs : tuple of Pairs
        One per set of transforms; ``item_of`` is the catalogue row.
    more : tuple of Rows or None
        States of the request's own items, one per tier.
    offsets : Tensor ``[R + 1]`` int64
    groups : dict of str to Tensor ``[I]``
        What reserves speak of.
    items : Features or None
        Item features by ``item_of``, where reserves read them.
    """

    kept: npt.NDArray[np.int64]
    unknown: npt.NDArray[np.int64]
    state_rows: Tensor
    pairs: tuple[Pairs, ...]
    more: tuple[Rows | None, ...]
    offsets: Tensor
    groups: Mapping[str, Tensor]
    items: Features | None

    def inputs(self) -> Inputs:
        """Return what a cascade reads beside scores: requests, and features of reserves."""
        pairs = self.pairs[0]
        return Inputs(
            user=pairs.context,
            context=pairs.context,
            history={},
            items=self.items if self.items is not None else pairs.context,
            candidate=pairs.candidate,
            offsets=self.offsets,
            request_of=pairs.request_of,
            item_of=pairs.item_of,
        )


def prepare(
    request: RankRequest,
    time: int,
    catalogue: Catalogue,
    models: Sequence[Model],
    transforms_of: Sequence[int],
    *,
    policy: Policy,
    reserves: Reserves | None,
    pinned: npt.NDArray[np.int64],
) -> CandidateSide:
    """Encode the candidates and the context of one request at a time (ms).

    Raises
    ------
    BadRequestError, UnknownFeatureError
        Values that do not fit.
    """
    encoder, raw = catalogue.encoder, request.candidates.ids
    rows = catalogue.find(raw)
    num = len(rows)
    _check_once(raw, rows)
    values = encoder.candidates(request.candidates.features, num)
    unknown = np.flatnonzero(rows == UNKNOWN_ROW)
    new: list[Mapping[str, Value]] = []
    kept = np.arange(num)
    if len(unknown):
        given: dict[Id, Mapping[str, Value]] = {}
        if policy == "features":
            given = {item.id: item.features for item in request.candidates.new}
        ids = catalogue.raw(raw)
        for at in unknown.tolist():
            features = given.get(ids[at])
            if features is not None:
                rows[at] = catalogue.num_items + len(new)
                new.append(features)
        if len(new) < len(unknown):
            kept = np.flatnonzero(rows != UNKNOWN_ROW)
            rows = rows[kept]
            values = {name: column[kept] for name, column in values.items()}
    offsets = np.array([0, len(rows)], dtype=np.int64)
    columns = encoder.candidate_side(
        [request.context], [time], Group(offsets, {"item": rows, **values})
    )
    assemblers = catalogue.assemblers
    more: tuple[Rows | None, ...] = (None,) * len(models)
    items = assemblers[0].item_features if reserves is not None else None
    if new:
        own = encoder.items(new, "candidates.new")
        features_of = [
            a.over(own, np.full(len(new), UNKNOWN_ROW, dtype=np.int32)).item_features
            for a in assemblers
        ]
        more = tuple(
            model.item_state(features_of[k]) for model, k in zip(models, transforms_of, strict=True)
        )
        assemblers = [a.over(_with_times(catalogue, own)) for a in assemblers]
        if items is not None:
            items = Features.cat([items, features_of[0]])
    pairs = tuple(a.pairs(columns) for a in assemblers)
    channels = models[0].schema.channels
    groups = {} if reserves is None else _groups(reserves, columns, catalogue, pinned, channels)
    return CandidateSide(
        kept=kept,
        unknown=unknown,
        state_rows=catalogue.state_rows(rows),
        pairs=pairs,
        more=more,
        offsets=torch.from_numpy(offsets),
        groups=groups,
        items=items,
    )


def join(sides: Sequence[CandidateSide], catalogue: Catalogue) -> CandidateSide:
    """Put the candidates of several requests together."""
    if len(sides) == 1:
        return sides[0]
    lengths = torch.tensor([len(side.kept) for side in sides])
    num_new = [next((m.num_rows for m in s.more if m is not None), 0) for s in sides]
    before = np.cumsum([0, *num_new])[:-1].tolist()
    # Each request counts its own items from the end of the catalogue.
    num_states = catalogue.num_own + len(catalogue.added.items)
    state_rows = [
        side.state_rows + shift * (side.state_rows >= num_states)
        for side, shift in zip(sides, before, strict=True)
    ]
    pairs = tuple(
        _join_pairs([side.pairs[k] for side in sides], before, catalogue.num_items)
        for k in range(len(sides[0].pairs))
    )
    more = []
    for tier in range(len(sides[0].more)):
        parts = [m for side in sides if (m := side.more[tier]) is not None]
        more.append(type(parts[0]).cat(parts) if parts else None)
    items = sides[0].items
    if items is not None and any(num_new):
        blocks = [catalogue.assemblers[0].item_features]
        for side, n in zip(sides, num_new, strict=True):
            assert side.items is not None
            blocks.append(
                side.items.select(torch.arange(catalogue.num_items, n + catalogue.num_items))
            )
        items = Features.cat(blocks)
    return CandidateSide(
        kept=np.concatenate([side.kept for side in sides]),
        unknown=np.zeros(0, dtype=np.int64),
        state_rows=torch.cat(state_rows),
        pairs=pairs,
        more=tuple(more),
        offsets=lengths_to_offsets(lengths),
        groups={n: torch.cat([side.groups[n] for side in sides]) for n in sides[0].groups},
        items=items,
    )


def _join_pairs(parts: Sequence[Pairs], before: Sequence[int], num_items: int) -> Pairs:
    shifted = [p.item_of + b * (p.item_of >= num_items) for p, b in zip(parts, before, strict=True)]
    return Pairs(
        request_of=torch.cat([p.request_of + r for r, p in enumerate(parts)]),
        item_of=torch.cat(shifted),
        candidate=Features.cat([p.candidate for p in parts]),
        context=Features.cat([p.context for p in parts]),
    )


def select(side: CandidateSide, candidates: Tensor, index: int) -> tuple[Pairs, Tensor]:
    """Return the pairs of a set of transforms and the state rows of some candidates ``[F]``."""
    pairs = side.pairs[index]
    if candidates.numel() == pairs.request_of.numel():
        return pairs, side.state_rows
    return pairs.select(candidates), side.state_rows[candidates]


def _check_once(raw: Sequence[Id] | bytes, rows: npt.NDArray[np.int64]) -> None:
    ids: Sequence[Id] = np.frombuffer(raw, "<i8").tolist() if isinstance(raw, bytes) else raw
    if len(set(ids)) == len(rows):
        return
    seen: set[Any] = set()
    twice = next(i for i in ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
    raise BadRequestError(f"candidates.ids: item {twice!r:.60} stands twice; send each once")


def _with_times(catalogue: Catalogue, own: ItemTable) -> ItemTable:
    """Return an item table that is longer by a request's items, for what pairs look up in it."""
    items, carriers = catalogue.items, {f.of for f in catalogue.encoder.schema.features if f.of}
    scalars = {
        name: np.concatenate([items.scalars[name], own.scalars[name]])
        for name in carriers & items.scalars.keys()
    }
    return ItemTable(Numbered(items.num_items + own.num_items), scalars, {}, items.stats)


def _groups(
    reserves: Reserves,
    columns: Columns,
    catalogue: Catalogue,
    pinned: npt.NDArray[np.int64],
    channels: Sequence[str],
) -> dict[str, Tensor]:
    """Return what the engine knows of the groups that reserves speak of."""
    wanted = {rule.of for rule in reserves.rules}
    values = columns.groups[CANDIDATES].values
    rows = values["item"]
    found: dict[str, Tensor] = {}
    if "channel" in wanted:
        codes = {name: code for code, name in enumerate(channels)}
        # The last one is for candidates without a channel.
        table = [codes.get(name, -1) for name in catalogue.encoder.schema.channels] + [-1]
        none = np.full(len(rows), -1, dtype=np.int8)
        found["channel"] = torch.tensor(table)[values.get("channel", none).astype(np.int64)]
    if "pinned" in wanted:
        found["pinned"] = torch.from_numpy(np.isin(rows, pinned))
    if "new" in wanted:
        assert reserves.new_days is not None
        time = int(columns.scalars["time"][0])
        # A request's own items are new.
        seen = np.append(catalogue.first_seen_ms, time)[np.minimum(rows, catalogue.num_items)]
        found["new"] = torch.from_numpy(time - seen < reserves.new_days * _DAY_MS)
    return found
