"""What a user truly wants at a moment: the utility of any item in any request.

    U = topic     * max over interests of cos(interest today, sub-cluster)   (sd 1 over pairs)
      + match     * response[type, number of same-sub-cluster items among the last clicks]
      + style     * taste[type, super-topic, style]
      + quality   * quality of the item
      + context   * mood[device, part of day, style]
      + freshness * (2 exp(-age / one week) - 1)

No dot product of the usual embedding widths expresses it: the maximum bends, the response rises and
falls, turns its sign with the type, and looks at every sub-cluster separately. The form follows
what the pre-ranking literature calls user-item crossing; the constants are this project's choice.

Shapes: ``B`` requests of a block, ``S`` sub-clusters, ``...`` any pairs of request and item.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prerank.world.config import DAY_MS, WorldConfig
from prerank.world.draws import Draws, Floats, Ints
from prerank.world.population import Items, Topics, Users
from prerank.world.schedule import Schedule

__all__ = ["Moment", "Utility", "response_table"]

_WEEK_MS = 7 * DAY_MS
_PARTS_OF_DAY = 4
_HIGHEST_PEAK = 3
_SAMPLE_USERS = 1000


def response_table(num_types: int) -> Floats:
    """Return the response to ``n`` same-sub-cluster clicks, ``[num_types, n]``.

    Type ``t`` follows ``sign * sin(pi n / (2 peak))`` with peak 1, 2 or 3 and stops changing at
    ``n = 3 * peak``: curious types like what they clicked until they had too much of it, contrary
    types the other way round.

    Examples
    --------
    >>> (response_table(4)[[0, 3], :4].round(2) + 0.0).tolist()
    [[0.0, 1.0, 0.0, -1.0], [0.0, -1.0, 0.0, 1.0]]
    """
    kind = np.arange(num_types)[:, None]
    peak = 1 + kind % _HIGHEST_PEAK
    sign = np.where(kind // _HIGHEST_PEAK % 2 == 0, 1.0, -1.0)
    count = np.minimum(np.arange(3 * _HIGHEST_PEAK + 1), 3 * peak)
    table: Floats = sign * np.sin(np.pi * count / (2 * peak))
    return table


@dataclass(frozen=True, slots=True)
class Moment:
    """What decides the utilities of a block of requests.

    Parameters
    ----------
    kind, time : ndarray ``[B]`` int64
        User type and request time.
    fit : ndarray ``[B, S]`` float64
        Standardised topic fit of each sub-cluster.
    count : ndarray ``[B, S]`` int64
        Same-sub-cluster items among the last clicks.
    mood : ndarray ``[B]`` int64
        Row of the mood table: device and part of the day.
    """

    kind: Ints
    time: Ints
    fit: Floats
    count: Ints
    mood: Ints


class Utility:
    """The true utility of a world.

    Parameters
    ----------
    config : WorldConfig
        Weights of the parts.
    topics, items, users : Topics, Items, Users
        The population.
    """

    def __init__(self, config: WorldConfig, topics: Topics, items: Items, users: Users) -> None:
        self._config, self._topics, self._items, self._users = config, topics, items, users
        draws = Draws(config.seed)
        cells = np.arange(config.num_super_topics * config.num_styles)
        kinds, style = np.arange(config.num_types), np.arange(config.num_styles)
        moods = np.arange(config.num_devices * _PARTS_OF_DAY)
        self._taste = draws.normal("taste", kinds[:, None], cells)
        self._mood = draws.normal("mood", moods[:, None], style)
        self._response = response_table(config.num_types)
        self._cell = topics.super_topic[items.cluster] * config.num_styles + items.style
        sample = np.arange(min(config.num_users, _SAMPLE_USERS))
        fit = self._raw_fit(sample, np.zeros_like(sample))[:, items.sub[: 8 * _SAMPLE_USERS]]
        self._mean, self._sd = float(fit.mean()), max(float(fit.std()), 1e-9)

    def fit(self, user: Ints, day: Ints) -> Floats:
        """Return the standardised topic fit ``[B, S]`` of users ``[B]`` on days ``[B]``."""
        return (self._raw_fit(user, day) - self._mean) / self._sd

    def _raw_fit(self, user: Ints, day: Ints) -> Floats:
        interests = self._users.interests(user, day)
        best: Floats = (interests @ self._topics.vectors.T).max(axis=1)
        return best

    def moment(self, schedule: Schedule, rows: Ints, clicked: Ints) -> Moment:
        """Return the state of requests ``rows [B]`` whose last clicks are ``clicked [B, L]``.

        Missing clicks are -1; the most recent are at the right.
        """
        user = schedule.user[rows]
        num_cells, window = self._config.num_cells, self._config.match_window
        recent = clicked[:, clicked.shape[1] - window :]
        request, column = np.nonzero(recent >= 0)
        place = request * num_cells + self._items.sub[recent[request, column]]
        count = np.bincount(place, minlength=rows.size * num_cells)
        part = schedule.hour[rows] * _PARTS_OF_DAY // 24
        return Moment(
            kind=self._users.kind[user],
            time=schedule.time[rows],
            fit=self.fit(user, schedule.day[rows]),
            count=count.reshape(rows.size, num_cells),
            mood=schedule.device[rows] * _PARTS_OF_DAY + part,
        )

    def parts(self, moment: Moment, request: Ints, item: Ints) -> dict[str, Floats]:
        """Return the weighted parts of the utility; they add up to it.

        Parameters
        ----------
        moment : Moment
            State of the block.
        request, item : ndarray ``[...]`` int64
            Row in the block and item index; they broadcast together.
        """
        config, items = self._config, self._items
        sub, style = items.sub[item], items.style[item]
        kind = moment.kind[request]
        count = np.minimum(moment.count[request, sub], self._response.shape[1] - 1)
        # Items not yet published count as brand new: their utility is defined but never used.
        age = np.maximum(moment.time[request] - items.published[item], 0)
        values = {
            "topic": moment.fit[request, sub],
            "match": self._response[kind, count],
            "style": self._taste[kind, self._cell[item]],
            "quality": items.quality[item],
            "context": self._mood[moment.mood[request], style],
            "freshness": 2.0 * np.exp(-age / _WEEK_MS) - 1.0,
        }
        return {name: getattr(config, name) * value for name, value in values.items()}
