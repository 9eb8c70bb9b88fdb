"""Values of a fitted funnel."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from prerank.config import Config
from prerank.errors import InputError
from prerank.models.din import DIN
from prerank.models.two_tower import TwoTower
from prerank.nn import MLP, FusedTables
from prerank.training import FitConfig

__all__ = ["CHANNELS", "FunnelConfig", "Quotas", "Shares"]

CHANNELS = ("similar", "factors", "popular")
"""Retrieval channels: items like the last ones of the history, factorisation, popularity."""

_WEAK = TwoTower.Config(tables=FusedTables.Config(dim=8), tower=MLP.Config(hidden=()), width=8)


class Quotas(Config, frozen=True):
    """How many candidates each stage keeps, the real ones among them.

    Examples
    --------
    >>> Quotas().scaled(800, slate=5)
    Quotas(retrieval=200, prerank=50, rank=15)
    >>> Quotas().scaled(800, slate=38)
    Quotas(retrieval=228, prerank=114, rank=57)
    """

    retrieval: int = 400
    prerank: int = 100
    rank: int = 30

    def __post_init__(self) -> None:
        names = ("retrieval", "prerank", "rank")
        for wide, narrow in pairwise(names):
            if not 1 <= getattr(self, narrow) <= getattr(self, wide):
                raise InputError(
                    f"funnel: quota {narrow} is {getattr(self, narrow)}; expected at least 1 and "
                    f"at most {wide} ({getattr(self, wide)})"
                )

    def scaled(self, num_items: int, slate: float) -> Quotas:
        """Return quotas for few items or long slates.

        The same proportions with at most a quarter of the items retrieved; then at least half as
        many ranked candidates again as a slate has, and every earlier list twice the later one.
        """
        factor = min(1.0, num_items / 4 / self.retrieval)
        rank = max(1, round(self.rank * factor), round(1.5 * slate))
        prerank = max(round(self.prerank * factor), min(2 * rank, num_items))
        retrieval = max(round(self.retrieval * factor), min(2 * prerank, num_items))
        prerank = min(prerank, retrieval)
        return Quotas(retrieval=retrieval, prerank=prerank, rank=min(rank, prerank))


class Shares(Config, frozen=True):
    """Parts of the retrieval quota; a channel that finds too little leaves its rest to others."""

    similar: float = 0.4
    factors: float = 0.4
    popular: float = 0.2

    def __post_init__(self) -> None:
        values = [getattr(self, name) for name in CHANNELS]
        if min(values) < 0 or abs(sum(values) - 1) > 1e-9:
            raise InputError(f"funnel: shares {values} must not be negative and add up to 1")


class FunnelConfig(Config, frozen=True):
    """Parameters of :func:`~prerank.funnel.build_funnel`.

    Parameters
    ----------
    seed : int, default 0
        Of everything drawn: folds, models, pool rows, ties.
    quotas : Quotas, optional
        Sizes of the stages. Default: 400, 100, 30, fewer where few items are alive, more where
        slates are long (:meth:`Quotas.scaled`).
    shares : Shares
        Parts of the channels.
    num_pool : int, default 100
        Random never-retrieved items stored with each request outside the first part.
    clock : {"auto", "user", "global"}
        ``user``: times of different users are not comparable, models are cross-fitted over users.
        ``global``: models are refitted on the past. ``auto``: ``user`` where the log was split
        user by user.
    folds : int, default 2
        Groups of users when cross-fitting.
    refits : int, default 4
        Sets of models along a global clock.
    warm_up : float, default 0.2
        Share of the requests along a global clock that only serve the first fit; they are not
        written, because nothing was fitted before them.
    max_requests : int, optional
        Keep a random subset of the requests.
    exclude_seen : bool, optional
        Whether retrieval leaves out what the user has met before. Default: where less than 1 % of
        the real exposures repeat an item of the history.
    alive_hours : float, optional
        Along a global clock, an item without a publishing time can be retrieved for so long after
        its last exposure. Default: 99 % of the gaps between two exposures of an item before the
        first fit; no limit if that is more than half of the log's time.
    neighbours, dim : int
        Stored neighbours of an item; width of the factorisation.
    num_negatives : int, default 10
        Random items added to each training request of pre-ranker and ranker.
    max_history : int, default 50
        Most recent events that the models read.
    rows_per_shard : int, default 256
        Requests computed together and stored; an interrupted run goes on after the last shard.
    prerank, rank : TwoTower.Config, DIN.Config
        The deliberately weak logging pre-ranker and the strong ranker.
    prerank_fit, rank_fit : FitConfig
        How they are trained.

    Examples
    --------
    >>> FunnelConfig(folds=1)
    Traceback (most recent call last):
        ...
    prerank.errors.InputError: funnel: folds is 1; expected at least 2
    """

    seed: int = 0
    quotas: Quotas | None = None
    shares: Shares = Shares()
    num_pool: int = 100
    clock: Literal["auto", "user", "global"] = "auto"
    folds: int = 2
    refits: int = 4
    warm_up: float = 0.2
    max_requests: int | None = None
    exclude_seen: bool | None = None
    alive_hours: float | None = None
    neighbours: int = 100
    dim: int = 32
    num_negatives: int = 10
    max_history: int = 50
    rows_per_shard: int = 256
    prerank: TwoTower.Config = _WEAK
    rank: DIN.Config = DIN.Config()
    prerank_fit: FitConfig = FitConfig(batch_size=128)
    rank_fit: FitConfig = FitConfig(batch_size=64, epochs=2)

    def __post_init__(self) -> None:
        least = {"folds": 2, "refits": 1, "num_pool": 0, "num_negatives": 1, "seed": 0}
        for name in ("neighbours", "dim", "max_history", "rows_per_shard"):
            least[name] = 1
        for name, low in least.items():
            if (value := getattr(self, name)) < low:
                raise InputError(f"funnel: {name} is {value}; expected at least {low}")
        if not 0 < self.warm_up < 1:
            raise InputError(f"funnel: warm_up is {self.warm_up}; expected above 0 and below 1")
        if self.max_requests is not None and self.max_requests < 1:
            raise InputError(f"funnel: max_requests is {self.max_requests}; expected at least 1")
