"""Who and what exists: topics, items and users, all drawn from the seed.

Shapes: ``N`` items, ``U`` users, ``S`` sub-clusters of all clusters, ``M`` interests, ``D`` width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prerank.world.config import DAY_MS, WorldConfig
from prerank.world.draws import Bools, Draws, Floats, Ints, unit

__all__ = ["Items", "Topics", "Users"]

_SUB_SPREAD = 0.6
_TASTE_SPREAD = 0.4
_ITEMS_PER_CREATOR = 20
_OLDEST_DAYS = 60
_POPULARITY_PERIOD_DAYS = 14.0


@dataclass(frozen=True, slots=True)
class Topics:
    """Directions of sub-clusters ``vectors [S, D]`` and the super-topic of each cluster ``[C]``."""

    vectors: Floats
    super_topic: Ints
    weights: Floats

    @classmethod
    def draw(cls, config: WorldConfig) -> Topics:
        """Draw the topics of a world."""
        draws, width = Draws(config.seed), np.arange(config.latent_dim)
        cluster = np.arange(config.num_clusters)
        sub = np.arange(config.num_cells)
        centres = unit(draws.normal("cluster", cluster[:, None], width))
        offsets = unit(draws.normal("subcluster", sub[:, None], width))
        vectors = unit(centres[sub // config.num_subclusters] + _SUB_SPREAD * offsets)
        return cls(
            vectors=vectors,
            super_topic=draws.index("super_topic", config.num_super_topics, cluster),
            weights=_zipf(cluster, 0.5),
        )


@dataclass(frozen=True, slots=True)
class Items:
    """Items, every field ``[N]``.

    ``quality`` is true, ``observed_quality`` the noisy feature (NaN: missing). An item published
    at ``published`` (ms) can be retrieved from the start of day ``first_day`` on.
    """

    cluster: Ints
    sub: Ints
    style: Ints
    creator: Ints
    quality: Floats
    observed_quality: Floats
    published: Ints
    first_day: Ints
    popularity: Floats
    phase: Floats

    @classmethod
    def draw(cls, config: WorldConfig, topics: Topics) -> Items:
        """Draw the items of a world."""
        draws, num = Draws(config.seed), config.num_items
        item = np.arange(num)
        cluster = draws.weighted("item/cluster", topics.weights, item)
        sub = cluster * config.num_subclusters + draws.index(
            "item/sub", config.num_subclusters, item
        )
        per_cluster = max(1, num // (_ITEMS_PER_CREATOR * config.num_clusters))
        creator = cluster * per_cluster + draws.index("item/creator", per_cluster, item)
        # A creator's items resemble each other, so the creator says something about quality.
        quality = 0.6 * draws.normal("creator/quality", creator) + 0.8 * draws.normal(
            "item/quality", item
        )
        seen = quality + config.feature_noise * draws.normal("item/observed", item)
        lost = draws.uniform("item/missing", item) < config.missing

        is_new = draws.uniform("item/new", item) < config.new_items
        born = draws.index("item/born", max(1, config.num_days - 1), item) + 1
        first_day = np.where(is_new, born, -draws.index("item/old", _OLDEST_DAYS, item))
        before = 1 + draws.index("item/hour", DAY_MS - 1, item)

        # Better items tend to be the popular ones, far from always.
        appeal = 0.5 * quality + draws.normal("item/appeal", item)
        rank = np.empty(num, dtype=np.int64)
        rank[np.argsort(-appeal, kind="stable")] = item
        return cls(
            cluster=cluster,
            sub=sub,
            style=draws.index("item/style", config.num_styles, item),
            creator=creator,
            quality=quality,
            observed_quality=np.where(lost, np.nan, seen),
            published=config.start_ms + first_day * DAY_MS - before,
            first_day=first_day,
            popularity=_zipf(rank, config.item_skew),
            phase=2 * np.pi * draws.uniform("item/phase", item),
        )

    def alive(self, day: int) -> Bools:
        """Return which items can be retrieved on a day, ``[N]``."""
        return self.first_day <= day

    def popularity_on(self, day: int, drift: float) -> Floats:
        """Return the popularity of each item on a day ``[N]``, 0 before it is published."""
        wave = np.sqrt(2.0) * np.sin(self.phase + 2 * np.pi * day / _POPULARITY_PERIOD_DAYS)
        return np.where(self.alive(day), self.popularity * np.exp(drift * wave), 0.0)


@dataclass(frozen=True, slots=True)
class Users:
    """Users: ``kind [U]`` (type), ``activity [U]``, and rotating interests.

    Interest ``m`` of a user turns from ``home`` towards ``away`` (both ``[U, M, D]``, orthogonal)
    by ``speed [U, M]`` radians a day.
    """

    kind: Ints
    known_kind: Bools
    activity: Floats
    device: Ints
    num_warm: Ints
    home: Floats
    away: Floats
    speed: Floats

    @classmethod
    def draw(cls, config: WorldConfig, topics: Topics) -> Users:
        """Draw the users of a world."""
        draws, user = Draws(config.seed), np.arange(config.num_users)
        interest = np.arange(config.num_interests)
        width = np.arange(config.latent_dim)

        def taste(name: str) -> Floats:
            cluster = draws.weighted(name, topics.weights, user[:, None], interest)
            sub = cluster * config.num_subclusters + draws.index(
                f"{name}/sub", config.num_subclusters, user[:, None], interest
            )
            noise = draws.normal(f"{name}/noise", user[:, None, None], interest[:, None], width)
            scale = _TASTE_SPREAD / np.sqrt(config.latent_dim)
            return unit(topics.vectors[sub] + scale * noise)

        home, away = taste("user/home"), taste("user/away")
        # The tiny extra term keeps the second direction defined where both tastes coincide.
        away = away + 1e-6 * unit(draws.normal("user/turn", user[:, None, None], 0, width))
        away = away - (away * home).sum(axis=-1, keepdims=True) * home
        rank = np.empty(config.num_users, dtype=np.int64)
        rank[np.argsort(draws.uniform("user/rank", user), kind="stable")] = user
        activity = _zipf(rank, config.user_skew)
        spread = -np.log1p(-draws.uniform("user/warm", user))
        expected = config.warm_clicks * spread * np.sqrt(activity / activity.mean())
        return cls(
            kind=draws.index("user/kind", config.num_types, user),
            known_kind=draws.uniform("user/missing", user) >= config.missing,
            activity=activity,
            device=draws.index("user/device", config.num_devices, user),
            num_warm=np.minimum(np.round(expected).astype(np.int64), config.max_history),
            home=home,
            away=unit(away),
            speed=config.drift * (0.5 + draws.uniform("user/speed", user[:, None], interest)),
        )

    def interests(self, user: Ints, day: Ints) -> Floats:
        """Return the unit interest vectors ``[B, M, D]`` of users ``[B]`` on days ``[B]``."""
        angle = (self.speed[user] * day[:, None])[:, :, None]
        turned: Floats = np.cos(angle) * self.home[user] + np.sin(angle) * self.away[user]
        return turned


def _zipf(rank: Ints, exponent: float) -> Floats:
    """Return the weight of each 0-based rank, ``(rank + 1) ** -exponent``."""
    weights: Floats = np.power(rank + 1.0, -exponent)
    return weights
