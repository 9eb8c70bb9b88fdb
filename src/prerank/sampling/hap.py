"""HAP's conflict-sensitive sampling: quotas and rank floors by source, fresh random negatives.

[Stated by the authors of HAP, arXiv 2603.03770, in their repository's description] Every request
keeps all its exposed items; to them come 10 unexposed candidates of the ranking stage from below
position 50 of its order, 10 of the pre-ranking stage from below position 200 of its order, and
2 random items of the whole pool per positive.

[Inferred or our own choice] The draws within a source are uniform; floors shrink in small funnels;
a random item that the request retrieved anyway is drawn again; random items were seen by some
request before this one, and the model has a row for them; they borrow the candidate features of a
retrieved one. How random items are distributed is in no source: uniform by default.

Shapes: ``R`` requests, ``I`` stored candidates.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from prerank import expression
from prerank.batch import POSITIVE
from prerank.config import Config as BaseConfig
from prerank.config import to_values
from prerank.errors import InputError
from prerank.log.format.columns import Columns, history_key
from prerank.log.inputs.evidence import label_columns, source_codes
from prerank.rng import hash64, stream, uniform
from prerank.sampling.append import CandidateFeatures, with_drawn
from prerank.sampling.choose import evenly, list_lengths
from prerank.sampling.draw import Drawn, Targets, draw_for_each, draw_shared
from prerank.sampling.plan import SourcePlan, plan_sources
from prerank.sampling.pool import ItemPool, count_items

if TYPE_CHECKING:
    from prerank.log import Log, Part
    from prerank.sampling.counts import SamplingCounts
    from prerank.schema import Schema

__all__ = ["HAPSampler"]

Index = npt.NDArray[np.int64]

_KEY = stream("sampling/hap")
_STORED = stream("sampling/stored")
_SHARED = stream("sampling/shared")


class HAPSampler:
    """Keeps all that was shown, some of each other source, and draws random items.

    A candidate is kept or left out before tensors are made of it. Which ones is a pure function of
    (seed, epoch, request row), whatever the batch; so are the random items, unless the requests
    of a batch share them. ``evidence.sample_prob`` becomes the probability with which each
    candidate is there (times what the log says already), so that objectives can correct for it.

    Every positive is kept, also one that was not shown. Candidates that belong to no source and
    were not shown are left out; so are stored rows of the source that is drawn fresh.

    Parameters
    ----------
    config : HAPSampler.Config
        Options.
    log : Log
        Schema and items.
    weights : ndarray ``[num_items]`` float64, optional
        Of the items of the pool, for a distribution that is not uniform.
    fitted_on : dict, optional
        Which requests the weights come from, for the record of a run.

    Examples
    --------
    >>> HAPSampler.Config(quotas={"rank": 5, "random": 1.0}, pool="shared").quotas
    {'rank': 5, 'random': 1.0}
    """

    class Config(BaseConfig, frozen=True):
        """Options; the defaults are the authors' numbers where there are any.

        Parameters
        ----------
        quotas : dict of str to int, float or None
            Negatives of each source: a whole number is per request, a number with a point is per
            positive (rounded up), None takes all. A source that is not named gives none, except
            that of shown candidates, which gives all.
        floors : dict of str to int
            Least rank, from 0, at which a member of a source may be drawn: what ranked higher is
            close to a positive. Members without rank then cannot be drawn.
        floor_share : float
            No floor is deeper than this share of the list it counts in, so that short lists keep
            members to draw.
        orders : dict of str to str
            Stage in whose order the floor of a source counts; default: the stage after the first
            one of the source, which is the one that turned its members down.
        drawn : str or None
            The source that is drawn from all items instead of from those stored; None: no source.
        pool : {"request", "shared"}
            Whether each request draws its own random items, or all requests of a batch take
            theirs from one sequence of draws, which leaves fewer distinct items to compute.
        distribution : {"uniform", "popularity"}
            Of the random items. ``popularity``: in proportion to a power of their counts in the
            part that the sampler is built from; what has no count is not drawn.
        power : float
            Of the counts; 0 draws evenly among the items that have one.
        counted : {"exposed", "candidates"}
            What counts: having been shown, or having been a candidate.
        alive : bool
            Draw only items that some request saw before the time of this one. Otherwise items
            of the future would come in as negatives and never as positives, and a model would
            learn that what it does not know is bad.
        leave_out_history : bool
            Also never draw what is in a history of the request.
        candidate_features : {"borrow", "missing"}
            Candidate features (such as the retrieval's score) that a drawn item has not.
            ``borrow`` copies those of a candidate of the same request, drawn evenly, so that they
            say nothing; ``missing`` marks every random item as one.
        requests : {"all", "with_positive"}
            ``with_positive`` leaves out requests without positive, which contrastive losses
            skip anyway.
        unknown : {"skip", "keep"}
            What becomes of items that the model has no row for, being too rare
            (``FitConfig.min_count``). ``keep`` draws them too: where hardly anything else in
            training is that rare, the shared row of unknown ids learns to be a negative, and what
            is new at serving time is ranked by it. ``skip`` needs to be told what a model knows:
            ``fit`` does so; without a model the sampler draws from all.
        """

        quotas: dict[str, int | float | None] = msgspec.field(
            default_factory=lambda: {"rank": 10, "prerank": 10, "random": 2.0}
        )
        floors: dict[str, int] = msgspec.field(default_factory=lambda: {"rank": 50, "prerank": 200})
        floor_share: float = 0.5
        orders: dict[str, str] = msgspec.field(default_factory=dict)
        drawn: str | None = "random"
        pool: Literal["request", "shared"] = "request"
        distribution: Literal["uniform", "popularity"] = "uniform"
        power: float = 0.75
        counted: Literal["exposed", "candidates"] = "exposed"
        alive: bool = True
        leave_out_history: bool = False
        candidate_features: CandidateFeatures = "borrow"
        requests: Literal["all", "with_positive"] = "all"
        unknown: Literal["skip", "keep"] = "skip"

        def build(self, source: Log | Part) -> HAPSampler:
            """Make the sampler for a log or a part; popularity is counted in a part, once.

            Raises
            ------
            InputError
                A source, stage or rank that the log does not have; a value out of range.
            """
            from prerank.log import Part

            log = source.log if isinstance(source, Part) else source
            plan_sources(self, log)  # before anything is read
            if self.distribution == "uniform":
                return HAPSampler(self, log)
            return HAPSampler(self, log, *_popularity(self, source))

    def __init__(
        self,
        config: Config,
        log: Log,
        weights: npt.NDArray[np.float64] | None = None,
        fitted_on: dict[str, Any] | None = None,
    ) -> None:
        self.config = config
        self.schema = log.schema
        self.sources = plan_sources(config, log)
        self.fitted_on = fitted_on
        self._pool: ItemPool | None = None
        self._stage = log.schema.stages[0]
        if config.drawn in config.quotas:
            self._stage = log.schema.sources[config.drawn][0]
            self._pool = ItemPool.read(log, alive=config.alive, weights=weights)

    @property
    def logged(self) -> frozenset[str]:
        """Ranks that are read: those that floors are of."""
        return frozenset(f"rank.{source.order}" for source in self.sources if source.floor)

    def describe(self) -> dict[str, Any]:
        """Return the values of the configuration, and what the popularity was counted in."""
        values = to_values(self.config)
        if self.config.unknown == "keep":
            del values["unknown"]  # as in runs from before there was a choice: those go on
        return values if self.fitted_on is None else {**values, "fitted_on": self.fitted_on}

    def knowing(self, is_known: npt.NDArray[np.bool_]) -> HAPSampler:
        """Return the sampler for a model that has rows for these items ``[num_items]``."""
        if self.config.unknown == "keep" or self._pool is None:
            return self
        sampler = copy.copy(self)
        sampler._pool = self._pool.only(is_known)
        return sampler

    def sample(
        self,
        columns: Columns,
        *,
        seed: int,
        epoch: int,
        key: int,
        counts: SamplingCounts | None = None,
    ) -> Columns:
        """Return the requests with the candidates to train on: kept ones first, then random ones.

        See :class:`~prerank.sampling.base.Sampler`.
        """
        num, stage = columns.num_requests, columns.candidates.values["stage"]
        stored = _Stored.of(columns, self.schema)
        positive = stored.source == POSITIVE
        num_positives = np.bincount(stored.request_of[positive], minlength=num)
        is_used = np.ones(num, dtype=np.bool_)
        if self.config.requests == "with_positive":
            is_used = num_positives > 0
        keys = hash64(_KEY, seed, epoch, columns.scalars["row"]).view(np.int64)
        is_kept = positive | (stage == len(self.schema.stages) - 1)
        drawn = Drawn.nothing(num)
        for source in self.sources:
            members = np.flatnonzero(stored.source == source.code)
            is_kept[members] = False
            quota = None
            if source.quota is not None:
                quota = np.where(is_used, source.wanted(num_positives), 0)
            if source.is_drawn:
                assert quota is not None
                drawn = self._draw(columns, stored, source, quota, keys, (seed, epoch, key))
                taken = np.bincount(drawn.request, minlength=num)
                eligible, hits = drawn.valid, drawn.hits
            else:
                chosen, eligible = self._choose(columns, stored, source, members, quota, keys)
                is_kept[chosen] = True
                taken = np.bincount(stored.request_of[chosen], minlength=num) * is_used
                hits = np.zeros(num, dtype=np.int64)
            if counts is not None:
                counts.of(source.name).add(
                    stored=len(members),
                    eligible=eligible * is_used,
                    wanted=taken if quota is None else quota,
                    taken=taken,
                    hits=hits,
                )
        kept = np.flatnonzero(is_kept & is_used[stored.request_of])
        out = with_drawn(
            columns,
            kept,
            stored.chance[kept],
            drawn,
            schema=self.schema,
            stage=self._stage,
            keys=keys,
            features=self.config.candidate_features,
        )
        if not is_used.all():
            out = out.take(np.flatnonzero(is_used))
        if counts is not None:
            counts.requests += num
            counts.without_positive += int((num_positives == 0).sum())
            counts.left_out += int((~is_used).sum())
            counts.stored += len(stage)
            counts.positives += int(num_positives.sum())
            counts.taken += int(out.candidates.offsets[-1])
        return out

    def _choose(
        self,
        columns: Columns,
        stored: _Stored,
        source: SourcePlan,
        members: Index,
        quota: Index | None,
        keys: Index,
    ) -> tuple[Index, Index]:
        """Choose among the stored members of a source, and write down with what chance.

        Returns
        -------
        tuple
            Positions of the chosen ones, and how many of each request could be chosen ``[R]``.
        """
        group = columns.candidates
        if source.floor:
            rank = group.values[f"rank.{source.order}"]
            length = list_lengths(rank, group.offsets)
            share = (self.config.floor_share * length).astype(np.int64)
            floor = np.minimum(source.floor, share)[stored.request_of[members]]
            rank = rank[members]
            members = members[(rank >= floor) & (rank >= 0)]
        of = stored.request_of[members]
        eligible = np.bincount(of, minlength=len(keys))
        if quota is None:
            return members, eligible
        draws = uniform(hash64(keys, _STORED).view(np.int64)[of], group.values["item"][members])
        chosen = members[evenly(draws, of, quota)]
        share_taken = np.minimum(quota, eligible) / np.maximum(eligible, 1)
        stored.chance[chosen] *= share_taken[stored.request_of[chosen]]
        return chosen, eligible

    def _draw(
        self,
        columns: Columns,
        stored: _Stored,
        source: SourcePlan,
        quota: Index,
        keys: Index,
        shared: tuple[int, int, int],
    ) -> Drawn:
        """Draw random items that the request does not have."""
        assert self._pool is not None
        request, item = stored.request_of, columns.candidates.values["item"]
        own = stored.source != source.code
        if not own.all():
            request, item = request[own], item[own]
        if self.config.leave_out_history:
            request, item = _with_history(columns, request, item, self.schema)
        targets = Targets(self._pool, columns.scalars["time"], quota, request, item)
        if self.config.pool == "shared":
            return draw_shared(targets, _SHARED, *shared)
        return draw_for_each(targets, keys)


@dataclass(frozen=True, slots=True, eq=False)
class _Stored:
    """Request, source code and ``sample_prob`` of each stored candidate ``[I]``."""

    request_of: Index
    source: Index
    chance: npt.NDArray[np.float32]

    @classmethod
    def of(cls, columns: Columns, schema: Schema) -> _Stored:
        values, offsets = columns.candidates.values, columns.candidates.offsets
        labels = label_columns(columns, schema)
        engaged = np.broadcast_to(expression.evaluate(schema.engaged, labels), offsets[-1:])
        chance = np.ones(offsets[-1], dtype=np.float32)
        if "sample_prob" in values:
            chance = values["sample_prob"].astype(np.float32)
        return cls(
            np.repeat(np.arange(columns.num_requests), np.diff(offsets)),
            source_codes(values["stage"], engaged, schema),
            chance,
        )


def _with_history(
    columns: Columns, request: Index, item: npt.NDArray[Any], schema: Schema
) -> tuple[Index, Index]:
    """Return pairs of request and item, those of its histories among them, each once."""
    requests, items = [request], [item.astype(np.int64)]
    for name in schema.streams:
        group = columns.groups[history_key(name)]
        requests.append(np.repeat(np.arange(columns.num_requests), np.diff(group.offsets)))
        items.append(group.values["item"].astype(np.int64))
    size = schema.size("item")
    codes = np.unique(np.concatenate(requests) * size + np.concatenate(items))
    return codes // size, codes % size


def _popularity(
    config: HAPSampler.Config, source: Log | Part
) -> tuple[npt.NDArray[np.float64], dict[str, Any]]:
    """Return weights of the items ``[num_items]`` and what they were counted in."""
    from prerank.log import Part

    if not isinstance(source, Part):
        raise InputError(
            f"{source.path}: sampling: popularity is counted in a part; build the sampler from "
            "the training part, or set distribution to uniform"
        )
    schema = source.log.schema
    leave_out = schema.sources.get(config.drawn or "", ())
    counts = count_items(source, exposed_only=config.counted == "exposed", leave_out=leave_out)
    weights = np.where(counts > 0, counts.astype(np.float64) ** config.power, 0.0)
    where = {"log_id": schema.lineage.log_id, "part": source.name, "items": int(counts.sum())}
    return weights, where
