"""Every knob of the synthetic funnel, with the unit of each."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from prerank.config import Config
from prerank.errors import InputError

if TYPE_CHECKING:
    from prerank.world.world import World

__all__ = ["CHANNELS", "DAY_MS", "WorldConfig"]

DAY_MS = 86_400_000
CHANNELS = ("interest", "similar", "popular", "fresh")
"""Retrieval channels: by noisy topic fit, by the last clicks, user-blind, newly published."""

_AT_LEAST_ONE = (
    "num_users",
    "num_items",
    "num_clusters",
    "num_subclusters",
    "num_styles",
    "num_super_topics",
    "num_types",
    "num_interests",
    "num_devices",
    "latent_dim",
    "max_history",
    "num_exposed",
)
_NOT_NEGATIVE = (
    "start_ms",
    "item_skew",
    "user_skew",
    "drift",
    "popularity_drift",
    "warm_clicks",
    "match_window",
    "beta",
    "num_pool",
    "retrieval_focus",
    "noise_retrieval",
    "noise_prerank",
    "noise_rank",
    "feature_noise",
    "long_watch_ms",
)
_SHARES = ("new_items", "click_noise", "missing", "share_similar", "share_popular", "share_fresh")


class WorldConfig(Config, frozen=True):
    """Parameters of a :class:`~prerank.world.World`; all randomness comes from ``seed``.

    Parameters
    ----------
    seed : int
        The same configuration gives the same bytes, whatever the chunking.
    num_users, num_items, num_requests, num_days : int
        Sizes; requests are spread evenly over at least three days.
    start_ms : int
        First midnight (UTC, ms since the epoch).
    num_clusters, num_subclusters, num_styles, num_super_topics : int
        Items have a cluster, one of ``num_subclusters`` in it, and a style; clusters belong to
        super-topics.
    num_types, num_interests, num_devices, latent_dim : int
        User types, interests of a user, devices, width of the hidden topic vectors.
    item_skew, user_skew : float
        Zipf exponents of item popularity and of user activity.
    new_items : float
        Share of items published during the log instead of before it.
    drift, popularity_drift : float
        Mean rotation of an interest (radians a day); sd of log-popularity over time.
    max_history, match_window, warm_clicks, refresh_minutes : int
        Longest stored history; how many last clicks the utility counts; mean number of clicks
        before the log starts; clicks reach histories at the next multiple of ``refresh_minutes``
        (a divisor of a day).
    topic, match, style, quality, context, freshness : float
        Weights of the parts of the utility; see :mod:`prerank.world.utility`.
    beta, ctr, click_noise : float
        Slope of the click sigmoid per unit of utility; click rate on exposures that its offset is
        set for (on a pilot without feedback, so the realised rate differs a little); share of
        clicks that ignore the utility.
    num_retrieved, num_preranked, num_ranked, num_exposed : int
        How many candidates retrieval, pre-ranking, ranking and the screen keep; retrieval may
        find a few less.
    num_pool : int
        Random never-retrieved items stored with each request of the last two days.
    share_similar, share_popular, share_fresh : float
        Shares of the retrieval channels; ``interest`` takes the rest.
    retrieval_focus : float
        How strongly retrieval prefers topics that seem to fit (0: not at all).
    noise_retrieval, noise_prerank, noise_rank : float
        Noise sd of the topic fit that retrieval sees (fit has sd 1), and of the scores of
        pre-ranker and ranker (units of utility).
    prerank_fine : float
        Share of the fine parts (match, style) that the logging pre-ranker knows.
    gap : float
        Divides the three noises: a larger gap makes the sources easier to tell apart.
    retrieval_score : bool
        Whether candidates carry the dense feature ``retrieval_score``.
    feature_noise, missing : float
        Noise sd of the observed quality and of ``retrieval_score``; share of missing values of
        the user's ``type`` and the item's ``quality``.
    leak_click, leak_stage : float
        Negative controls, off at 0: add this much per realised click, or per stage passed, to
        ``retrieval_score``.
    long_watch_ms : int
        If positive, there is a second task ``long``: ``watch_ms >= long_watch_ms``.

    Raises
    ------
    InputError
        Quotas that grow along the funnel, shares outside [0, 1], sizes below one.

    Examples
    --------
    >>> WorldConfig(num_preranked=300)
    Traceback (most recent call last):
        ...
    prerank.errors.InputError: world: num_preranked is 300, more than num_retrieved (200); \
quotas must not grow along the funnel
    """

    seed: int = 0
    num_users: int = 2_000
    num_items: int = 20_000
    num_requests: int = 8_000
    num_days: int = 10
    start_ms: int = 1_735_689_600_000

    num_clusters: int = 60
    num_subclusters: int = 8
    num_styles: int = 8
    num_super_topics: int = 8
    num_types: int = 6
    num_interests: int = 3
    num_devices: int = 3
    latent_dim: int = 16
    item_skew: float = 0.9
    user_skew: float = 0.6
    new_items: float = 0.25
    drift: float = 0.05
    popularity_drift: float = 0.5

    max_history: int = 50
    match_window: int = 20
    warm_clicks: int = 20
    refresh_minutes: int = 60

    topic: float = 1.5
    match: float = 1.2
    style: float = 0.7
    quality: float = 0.5
    context: float = 0.4
    freshness: float = 0.3

    beta: float = 1.0
    ctr: float = 0.2
    click_noise: float = 0.0

    num_retrieved: int = 200
    num_preranked: int = 50
    num_ranked: int = 20
    num_exposed: int = 10
    num_pool: int = 0
    share_similar: float = 0.15
    share_popular: float = 0.25
    share_fresh: float = 0.05
    retrieval_focus: float = 2.0
    noise_retrieval: float = 0.5
    noise_prerank: float = 0.8
    noise_rank: float = 0.5
    prerank_fine: float = 0.5
    gap: float = 1.0

    retrieval_score: bool = True
    feature_noise: float = 1.0
    missing: float = 0.03
    leak_click: float = 0.0
    leak_stage: float = 0.0
    long_watch_ms: int = 0

    def __post_init__(self) -> None:
        for name in _AT_LEAST_ONE:
            if (value := getattr(self, name)) < 1:
                raise InputError(f"world: {name} is {value}, expected at least 1")
        for name in _NOT_NEGATIVE:
            if (value := getattr(self, name)) < 0:
                raise InputError(f"world: {name} is {value}, expected 0 or more")
        for name in _SHARES:
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise InputError(f"world: {name} is {value}, expected a share from 0 to 1")
        if self.share_similar + self.share_popular + self.share_fresh > 1:
            raise InputError("world: the shares of the retrieval channels add up to more than 1")
        if not 0 <= self.seed < 1 << 63:
            raise InputError(f"world: seed is {self.seed}, expected from 0 to 2**63 - 1")
        if not 3 <= self.num_days <= self.num_requests:
            raise InputError(
                f"world: num_days is {self.num_days}, expected at least 3 (for train, valid and "
                f"test) and at most num_requests ({self.num_requests})"
            )
        quotas = ("num_retrieved", "num_preranked", "num_ranked", "num_exposed")
        for wide, narrow in pairwise(quotas):
            if getattr(self, narrow) > getattr(self, wide):
                raise InputError(
                    f"world: {narrow} is {getattr(self, narrow)}, more than {wide} "
                    f"({getattr(self, wide)}); quotas must not grow along the funnel"
                )
        if self.refresh_minutes < 1 or 1440 % self.refresh_minutes:
            raise InputError(
                f"world: refresh_minutes is {self.refresh_minutes}, expected a divisor of 1440"
            )
        if self.start_ms % DAY_MS:
            raise InputError(f"world: start_ms is {self.start_ms}, expected a midnight UTC in ms")
        if not 0 < self.ctr < 1:
            raise InputError(f"world: ctr is {self.ctr}, expected between 0 and 1")
        if self.gap <= 0:
            raise InputError(f"world: gap is {self.gap}, expected more than 0")
        if (self.leak_click or self.leak_stage) and not self.retrieval_score:
            raise InputError(
                "world: leak_click and leak_stage write into retrieval_score; set it to true"
            )

    @property
    def num_cells(self) -> int:
        """Number of sub-clusters of all clusters together, ``S`` in the code."""
        return self.num_clusters * self.num_subclusters

    def build(self) -> World:
        """Return the world of this configuration."""
        from prerank.world.world import World

        return World(self)
