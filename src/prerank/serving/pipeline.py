"""From raw requests to answers: encode, hold states, rank, say.

::

    request -> candidates, context ----------------------> pairs ------------------.
            -> user, history -> digest -> cached states?                            > tiers -> order
                                  no -> request states, once for all tiers -------'
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from prerank.batch import Rows
from prerank.cascade import Order
from prerank.errors import InputError
from prerank.log.format.columns import Columns
from prerank.serving.answers import build_answer
from prerank.serving.bundle import Bundle
from prerank.serving.cache import StateCache, history_digest, user_digest
from prerank.serving.catalogue import Catalogue
from prerank.serving.deadlines import TierCost
from prerank.serving.errors import BadRequestError, HistoryRequiredError
from prerank.serving.messages import RankAnswer, RankRequest, Timings
from prerank.serving.prepare import CandidateSide, join, prepare
from prerank.serving.requests import RequestStates
from prerank.serving.scoring import Dtype, HeldStates, in_bf16
from prerank.serving.settings import EngineConfig
from prerank.serving.stats import Counters

__all__ = ["Pipeline", "View"]


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What answers at a moment: swapped as a whole when items come.

    Parameters
    ----------
    version : str
        Of the bundle, ``+N`` with segments up to the N-th.
    segment : int
        Number of the last segment.
    catalogue : Catalogue
        The items.
    pinned : ndarray int64
        Rows that reserves call pinned.
    """

    version: str
    segment: int
    catalogue: Catalogue
    pinned: npt.NDArray[np.int64]


@dataclass(slots=True, eq=False)
class _Prepared:
    """One request, encoded; ``states``, or what they are made of."""

    index: int
    request: RankRequest
    time: int
    started: float
    deadline: float
    side: CandidateSide
    key: bytes
    names: list[tuple[bytes, str]]
    states: tuple[Rows, ...] | None
    columns: Columns | None


class Pipeline:
    """Everything between a raw request and its answer; safe for several threads.

    Parameters
    ----------
    bundle : Bundle
        Whose models score.
    config : EngineConfig
    clock : callable
        Seconds.
    """

    def __init__(self, bundle: Bundle, config: EngineConfig, clock: Callable[[], float]) -> None:
        self.bundle, self.config, self.clock = bundle, config, clock
        self.cascade = bundle.cascade
        self.dtype: Dtype = "fp32"
        self._scorers = list(self.cascade.models)
        self.costs = [TierCost() for _ in self.cascade.tiers]
        self.cache = StateCache(config.cache_bytes, config.cache_ttl_s, clock)
        self.counters = Counters(len(self.cascade.tiers))
        self._request_states = RequestStates(self.cascade.models, bundle.transforms_of)

    def rank(
        self, requests: Sequence[RankRequest], starts: Sequence[float], view: View
    ) -> list[RankAnswer | InputError]:
        """Order several requests; the error of one stands in its place."""
        results: list[RankAnswer | InputError | None] = [None] * len(requests)
        prepared: list[_Prepared] = []
        # Numbers that overflow make a score that is not finite, which is refused below.
        with torch.inference_mode(), np.errstate(over="ignore", invalid="ignore"):
            for k, request in enumerate(requests):
                try:
                    prepared.append(self._prepare(k, request, starts[k], view))
                except InputError as error:
                    results[k] = error
                except OverflowError:
                    results[k] = BadRequestError("request: a number is too large for 64 bits")
                except UnicodeEncodeError:
                    results[k] = BadRequestError("request: a text is not valid Unicode")
            for group in self._groups(prepared):
                for one, answer in zip(group, self._answer(group, view), strict=True):
                    results[one.index] = answer
        self.counters.count_errors(sum(isinstance(r, Exception) for r in results))
        return [r for r in results if r is not None]

    def use(self, dtype: Dtype) -> None:
        """Compute scores in another precision from now on."""
        self.dtype = dtype
        models = self.cascade.models
        self._scorers = [in_bf16(m) for m in models] if dtype == "bf16" else list(models)
        self.costs = [TierCost() for _ in models]

    def aside(self) -> Pipeline:
        """Return the same with a cache and counters of its own: for self-tests."""
        other = copy.copy(self)
        other.cache = StateCache(0, 0.0, self.clock)
        other.counters = Counters(len(self.cascade.tiers))
        return other

    def scores(self, request: RankRequest, view: View) -> list[torch.Tensor]:
        """Return the logits ``[I, T]`` that each tier gives every known candidate."""
        with torch.inference_mode():
            one = self._prepare(0, request, self.clock(), view)
            held = self._held([one], one.side, view)
            every = torch.arange(len(one.side.kept))
            return [held.score(k, every).logits for k in range(len(self.cascade.tiers))]

    def _prepare(self, index: int, request: RankRequest, started: float, view: View) -> _Prepared:
        self._check_sizes(request)
        moment = int(time.time() * 1000) if request.time is None else request.time
        bundle, catalogue = self.bundle, view.catalogue
        side = prepare(
            request,
            moment,
            catalogue,
            self.cascade.models,
            bundle.transforms_of,
            policy=self.config.unknown,
            reserves=self.cascade.reserves,
            pinned=view.pinned,
        )
        user = user_digest(view.version, request.user)
        streams = {name: events for name, events in request.history.items() if name != "version"}
        named = request.history.get("version")
        states, columns = None, None
        key: bytes | None
        if named is not None and not isinstance(named, str | int):
            raise BadRequestError("history.version: expected a string or an integer")
        if named is not None and not streams:
            key = self.cache.key(user, str(named))
            states = None if key is None else self.cache.get(key, moment)
            if key is None or states is None:
                raise HistoryRequiredError(
                    f"history version '{named:.60}' of this user is not held; send the history"
                    if isinstance(named, str)
                    else f"history version {named} of this user is not held; send the history"
                )
        else:
            key = history_digest(user, streams)
            states = self.cache.get(key, moment)
            if states is None:
                columns = bundle.encoder.request_side(
                    [(request.user.id, request.user.features)],
                    [streams],
                    [moment],
                    catalogue.find_past,
                )
        names = [(user, key.hex())] + ([] if named is None else [(user, str(named))])
        budget = request.budget_ms
        left = math.inf if budget is None else 1e-3 * budget * (1 - self.config.margin)
        return _Prepared(
            index, request, moment, started, started + left, side, key, names, states, columns
        )

    def _check_sizes(self, request: RankRequest) -> None:
        config, ids = self.config, request.candidates.ids
        num = len(ids) // 8 if isinstance(ids, bytes) else len(ids)
        if num > config.max_candidates:
            raise BadRequestError(
                f"candidates.ids: {num} candidates; at most {config.max_candidates} are taken"
            )
        for name, events in request.history.items():
            length = 0
            if isinstance(events, list):
                length = len(events)
            elif isinstance(events, dict):
                length = max(map(len, events.values()), default=0)
            if length > config.max_events:
                raise BadRequestError(
                    f"history.{name:.60}: {length} events; at most {config.max_events} are taken"
                )

    def _groups(self, prepared: list[_Prepared]) -> list[list[_Prepared]]:
        """Put requests together; one whose deadline that would break goes alone, and first."""
        if len(prepared) < 2:
            return [prepared] if prepared else []
        total = sum(len(one.side.kept) for one in prepared)
        ready = self.clock() + self._expected(min(total, self.config.coalesce))
        hasty = sorted((p for p in prepared if p.deadline < ready), key=lambda p: p.deadline)
        groups: list[list[_Prepared]] = [[one] for one in hasty]
        size = self.config.coalesce
        for one in (p for p in prepared if p.deadline >= ready):
            num = len(one.side.kept)
            if size + num > self.config.coalesce:
                groups.append([])
                size = 0
            groups[-1].append(one)
            size += num
        return groups

    def _expected(self, num: int) -> float:
        """Return the seconds that so many candidates are expected to take through all tiers."""
        shares = self.counters.shares()
        return sum(cost.seconds(num * s) for cost, s in zip(self.costs, shares, strict=True))

    def _held(self, group: list[_Prepared], side: CandidateSide, view: View) -> HeldStates:
        missing = [one for one in group if one.states is None]
        if missing:
            columns = Columns.cat([one.columns for one in missing if one.columns is not None])
            made = self._request_states.compute(columns, view.catalogue.assemblers)
            for one, states in zip(missing, made, strict=True):
                one.states = states
                self.cache.put(one.key, states, one.time, names=one.names)
        for one in group:
            if one not in missing:
                for user, name in one.names[1:]:
                    self.cache.name(one.key, user, name)
        parts = [one.states for one in group if one.states is not None]
        requests = (
            parts[0]
            if len(parts) == 1
            else tuple(type(states[0]).cat(states) for states in zip(*parts, strict=True))
        )
        return HeldStates(
            self._scorers,
            self.bundle.transforms_of,
            view.catalogue.states,
            requests,
            side,
            costs=self.costs,
            clock=self.clock,
            dtype=self.dtype,
            micro_batch=self.config.micro_batch,
        )

    def _answer(self, group: list[_Prepared], view: View) -> list[RankAnswer | InputError]:
        """Rank requests together."""
        begun = self.clock()
        side = join([one.side for one in group], view.catalogue)
        held = self._held(group, side, view)
        stated = self.clock()
        deadline = min(one.deadline for one in group)
        limit = None if deadline == math.inf else held.limit(deadline)
        try:
            order = self._order(side, held, limit)
        except InputError as error:
            if len(group) > 1:
                return [answer for one in group for answer in self._answer([one], view)]
            return [BadRequestError(f"candidates: {error}")]
        answers: list[RankAnswer | InputError] = []
        offsets = side.offsets.tolist()
        tiers = [1e3 * seconds for seconds in held.seconds.values()]
        for r, one in enumerate(group):
            timings = Timings(
                total=1e3 * (self.clock() - one.started),
                encode=1e3 * (begun - one.started),
                state=1e3 * (stated - begun),
                tiers=tiers,
            )
            span = (offsets[r], offsets[r + 1])
            answers.append(
                build_answer(
                    one.request,
                    one.side,
                    order,
                    span,
                    held,
                    self.cascade,
                    view.version,
                    timings,
                    self.config.unknown,
                    one.names[-1][1],
                )
            )
        self.counters.count(
            group_size=len(group), held=held, unknown=sum(len(one.side.unknown) for one in group)
        )
        return answers

    def _order(self, side: CandidateSide, held: HeldStates, limit: Any) -> Order:
        if not len(side.kept):
            nothing = torch.zeros(0, dtype=torch.int64)
            return Order(nothing, nothing)
        inputs = [side.inputs()] * len(self.cascade.tiers)
        return self.cascade.rank(inputs, groups=side.groups, states=held, limit=limit)
