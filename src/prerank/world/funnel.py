"""One pass of the logged cascade: retrieval, pre-ranking, ranking, exposure, feedback.

Every noise term is a pure function of (seed, request row, item), so scores exist for any pair.

Shapes: ``B`` requests of a block, ``K`` candidate slots; slots without a candidate hold item -1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prerank.world.config import WorldConfig
from prerank.world.draws import Bools, Draws, Floats, Ints
from prerank.world.population import Items
from prerank.world.retrieval import Retrieval
from prerank.world.utility import Moment, Utility

__all__ = ["STAGES", "Funnel", "Outcome", "sigmoid"]

STAGES = ("pool", "retrieval", "prerank", "rank", "exposed")
_CLICK_DELAY_MS = 120_000
_MAX_WATCH_MS = 600_000
_MEDIAN_WATCH_MS = 20_000


def sigmoid(x: Floats) -> Floats:
    """Return 1 / (1 + exp(-x)) without overflow.

    Examples
    --------
    >>> sigmoid(np.array([-1000.0, 0.0])).tolist()
    [0.0, 0.5]
    """
    half: Floats = 0.5 * (1.0 + np.tanh(0.5 * x))
    return half


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened to the candidates of a block, every field ``[B, K]``.

    Parameters
    ----------
    item, channel, stage : ndarray of int64
        -1 where there is no candidate (and, for the channel, for pool items).
    ranks : dict of str to ndarray of int64
        Position in the list that the stage ordered; -1 where it did not score the candidate.
    ranker : ndarray of float64
        Score of the ranker, NaN for pool items.
    online : ndarray of bool
        Whether the ranker ran on the candidate.
    retrieval_score : ndarray of float64
        The dense candidate feature.
    sample_prob : ndarray of float64
        Probability with which a stored pool item was drawn; 1 for retrieved ones.
    click, watch_ms : ndarray of float64
        Feedback, NaN where not exposed.
    click_time : ndarray of int64
        When a click happened, -1 where it did not.
    """

    item: Ints
    channel: Ints
    stage: Ints
    ranks: dict[str, Ints]
    ranker: Floats
    online: Bools
    retrieval_score: Floats
    sample_prob: Floats
    click: Floats
    watch_ms: Floats
    click_time: Ints


def _positions(score: Floats, among: Bools) -> Ints:
    """Return the 0-based place of each slot by falling score among the marked ones, else -1."""
    order = np.argsort(np.where(among, -score, np.inf), axis=1, kind="stable")
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.arange(score.shape[1])[None, :], axis=1)
    return np.where(among, place, -1)


class Funnel:
    """Runs the cascade on blocks of requests of one day."""

    def __init__(
        self, config: WorldConfig, items: Items, utility: Utility, retrieval: Retrieval
    ) -> None:
        self._config, self._items = config, items
        self._utility, self._retrieval = utility, retrieval
        self._draws = Draws(config.seed)

    def click_probability(self, utility: Floats, offset: float) -> Floats:
        """Return the probability of a click on an exposed item of known utility, any shape."""
        config = self._config
        wanted = sigmoid(config.beta * (utility - offset))
        return (1.0 - config.click_noise) * wanted + config.click_noise * config.ctr

    def run(
        self, rows: Ints, day: int, moment: Moment, clicked: Ints, offset: float
    ) -> tuple[Outcome, Floats]:
        """Return what happened to the candidates of requests ``rows [B]`` and their utility."""
        config = self._config
        noisy_fit = self._retrieval.noisy_fit(rows, moment.fit)
        item, channel = self._retrieval.retrieve(rows, day, noisy_fit, clicked)
        sample_prob = np.ones(item.shape)
        if config.num_pool and day >= config.num_days - 2:
            pool, chance = self._retrieval.pool(rows, day, item)
            item = np.concatenate([item, pool], axis=1)
            channel = np.concatenate([channel, np.full_like(pool, -1)], axis=1)
            drawn = np.broadcast_to(chance[:, None], pool.shape)
            sample_prob = np.concatenate([sample_prob, drawn], axis=1)

        request, row = np.arange(rows.size)[:, None], rows[:, None]
        parts = self._utility.parts(moment, request, item)
        fine = parts["match"] + parts["style"]
        utility = sum(parts.values(), np.zeros(item.shape))
        guess = utility - (1.0 - config.prerank_fine) * fine
        ranker = utility + self._noise("rank", config.noise_rank, row, item)

        retrieved = channel >= 0
        guess = guess + self._noise("prerank", config.noise_prerank, row, item)
        place_prerank = _positions(guess, retrieved)
        online = retrieved & (place_prerank < config.num_preranked)
        place_rank = _positions(ranker, online)
        ranked = online & (place_rank < config.num_ranked)
        shown = online & (place_rank < config.num_exposed)
        # True counts as 1: each list that kept a candidate takes it one stage further.
        stage = retrieved.astype(np.int64) + online + ranked + shown

        keys = np.broadcast_arrays(row, item)
        click, watch_ms, click_time = self._feedback(keys, moment.time, utility, shown, offset)
        seen_fit = noisy_fit[request, self._items.sub[item]]
        return Outcome(
            item=item,
            channel=channel,
            stage=np.where(item >= 0, stage, -1),
            ranks={
                "prerank": place_prerank,
                "rank": place_rank,
                "exposed": np.where(shown, place_rank, -1),
            },
            ranker=np.where(retrieved, ranker, np.nan),
            online=online,
            retrieval_score=self._retrieval_score(keys, seen_fit, stage, click),
            sample_prob=sample_prob,
            click=click,
            watch_ms=watch_ms,
            click_time=click_time,
        ), utility

    def _noise(self, name: str, scale: float, row: Ints, item: Ints) -> Floats:
        noise: Floats = scale / self._config.gap * self._draws.normal(f"{name}/noise", row, item)
        return noise

    def _feedback(
        self, keys: Sequence[Ints], time: Ints, utility: Floats, shown: Bools, offset: float
    ) -> tuple[Floats, Floats, Ints]:
        """Return clicks, watch times and click times; only exposed slots are drawn."""
        at = np.nonzero(shown)
        key = [each[at] for each in keys]
        wish = utility[at]
        clicked = self._draws.uniform("click", *key) < self.click_probability(wish, offset)
        spread = 0.3 * (wish - offset) + 0.7 * self._draws.normal("watch", *key)
        length = np.minimum(np.round(_MEDIAN_WATCH_MS * np.exp(spread)), _MAX_WATCH_MS)
        delay = 1 + self._draws.index("click/delay", _CLICK_DELAY_MS, *key)

        click = np.full(shown.shape, np.nan)
        watch_ms = np.full(shown.shape, np.nan)
        click_time = np.full(shown.shape, -1, dtype=np.int64)
        click[at] = clicked
        watch_ms[at] = np.where(clicked, length, 0.0)
        click_time[at] = np.where(clicked, time[at[0]] + delay, -1)
        return click, watch_ms, click_time

    def _retrieval_score(
        self, keys: Sequence[Ints], seen_fit: Floats, stage: Ints, click: Floats
    ) -> Floats:
        """Return the topic fit that retrieval saw plus noise per item, and leaks if asked for."""
        config = self._config
        noise = self._draws.normal("retrieval_score/noise", *keys)
        score: Floats = seen_fit + config.feature_noise * noise
        if config.leak_click:
            score = score + config.leak_click * np.nan_to_num(click)
        if config.leak_stage:
            score = score + config.leak_stage * stage
        return score
