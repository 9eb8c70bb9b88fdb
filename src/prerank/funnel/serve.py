"""From requests of the source log to their candidates, scored and staged.

Shapes: ``B`` requests, ``I`` candidates, ``N`` items.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prerank import rng
from prerank.funnel.channels import Channels
from prerank.funnel.config import CHANNELS, FunnelConfig, Quotas
from prerank.funnel.exposures import Exposures, exposed_only, history_items
from prerank.funnel.fusion import fused_scores
from prerank.funnel.retrieve import draw_pool, force_real, retrieve
from prerank.funnel.sampled import with_candidates
from prerank.funnel.scorers import Scorers
from prerank.funnel.stages import STAGES, Outcome, positions, run_stages
from prerank.log import Columns, Log
from prerank.log.format.columns import Group

__all__ = ["SCORES", "Candidates", "Server"]

SCORES = ("factors", "retrieval", "prerank", "ranker", "would_survive")
"""Logged scores; ``retrieval`` is the order of the list before anything was scored (see
``fusion``), ``would_survive`` is 1 where the item got through by its own ranks."""

Index = npt.NDArray[np.int64]


@dataclass(slots=True, eq=False)
class Candidates:
    """The candidates of some requests, all columns ``[I]``, and their real labels."""

    offsets: Index
    item: Index
    channel: npt.NDArray[np.int8]
    real: npt.NDArray[np.bool_]
    pool: npt.NDArray[np.bool_]
    sample_prob: npt.NDArray[np.float32]
    labels: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    @property
    def request_of(self) -> Index:
        """Request of each candidate ``[I]``."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def group(self) -> Group:
        """Return the candidates as the models' reader takes them; labels and stage say nothing."""
        blank = {name: np.full(len(self.item), np.nan, np.float32) for name in self.labels}
        stage = np.zeros(len(self.item), dtype=np.int8)
        return Group(self.offsets, {"item": self.item, "stage": stage, **blank})


class Server:
    """Serves requests by one set of models.

    Parameters
    ----------
    log : Log
        From ``view_of``.
    exposures : Exposures
        What really happened.
    channels, scorers : Channels, Scorers
        Fitted on something else than what is served.
    config : FunnelConfig
        Options.
    quotas : Quotas
        Already scaled.
    exclude_seen : bool
        Whether what the user met before is left out.
    """

    def __init__(
        self,
        log: Log,
        exposures: Exposures,
        channels: Channels,
        scorers: Scorers,
        *,
        config: FunnelConfig,
        quotas: Quotas,
        exclude_seen: bool,
    ) -> None:
        self.log = log
        self.exposures = exposures
        self.channels = channels
        self.scorers = scorers
        self.config = config
        self.quotas = quotas
        self.exclude_seen = exclude_seen

    def candidates(
        self, columns: Columns, alive: npt.NDArray[np.bool_], with_pool: npt.NDArray[np.bool_]
    ) -> Candidates:
        """Retrieve for some requests, put the real items among the others, draw pool rows.

        Parameters
        ----------
        columns : Columns
            ``B`` requests of the log.
        alive : ndarray ``[N]`` bool
            Items that can be retrieved.
        with_pool : ndarray ``[B]`` bool
            Requests that get pool rows.
        """
        seed = self.config.seed
        history = history_items(columns, self.log.schema, self.config.max_history)
        shown = exposed_only(columns, self.log.schema)
        rows = columns.scalars["row"]
        ends = history.offsets
        past = history.values["item"].astype(np.int64)
        excluded = [
            np.concatenate([past[ends[b] : ends[b + 1]], self.exposures.shown_before(int(row))])
            if self.exclude_seen
            else np.zeros(0, dtype=np.int64)
            for b, row in enumerate(rows)
        ]
        found = retrieve(
            self.channels, (ends, past), alive, excluded, self.quotas, self.config.shares
        )
        items, channels, reals, pools, probabilities = [], [], [], [], []
        for b, row in enumerate(rows):
            real = shown.values["item"][shown.offsets[b] : shown.offsets[b + 1]].astype(np.int64)

            def key(item: Index, row: int = int(row)) -> npt.NDArray[np.uint64]:
                return rng.hash64(seed, rng.stream("funnel/room"), row, item)

            item, channel, is_real = force_real(found[b], real, self.quotas.retrieval, key)
            pool, probability = np.zeros(0, dtype=np.int64), 1.0
            if with_pool[b] and self.config.num_pool:
                never = np.concatenate([item, found[b].item, excluded[b]])
                keys = (seed, rng.stream("funnel/pool"), int(row))
                pool, probability = draw_pool(alive, never, self.config.num_pool, *keys)
            items.append(np.concatenate([item, pool]))
            channels.append(np.concatenate([channel, np.full(len(pool), -1, np.int8)]))
            reals.append(np.concatenate([is_real, np.zeros(len(pool), np.bool_)]))
            pools.append(np.arange(len(items[-1])) >= len(item))
            probabilities.append(np.where(pools[-1], probability, 1.0).astype(np.float32))
        offsets = np.concatenate([[0], np.cumsum([len(i) for i in items])]).astype(np.int64)
        made = Candidates(
            offsets,
            np.concatenate(items),
            np.concatenate(channels),
            np.concatenate(reals),
            np.concatenate(pools),
            np.concatenate(probabilities),
        )
        made.labels = self._labels(made, shown)
        return made

    def _labels(self, made: Candidates, shown: Group) -> dict[str, npt.NDArray[np.float32]]:
        """Return the real labels at the places of the real items, missing elsewhere."""
        size = self.log.schema.size("item")
        of_shown = np.repeat(np.arange(len(shown.offsets) - 1), np.diff(shown.offsets))
        code = of_shown * size + shown.values["item"].astype(np.int64)
        order = np.argsort(code)
        # Items ascend within a request, so both sides are in the order of the code.
        labels = {}
        for label in self.log.schema.labels:
            column = f"labels.{label.name}"
            values = np.full(len(made.item), np.nan, dtype=np.float32)
            values[made.real] = shown.values[column][order]
            labels[column] = values
        return labels

    def serve(
        self, columns: Columns, alive: npt.NDArray[np.bool_], with_pool: npt.NDArray[np.bool_]
    ) -> tuple[pa.Table, Counter[str]]:
        """Return the raw candidate columns of some requests, and counts for the report."""
        made = self.candidates(columns, alive, with_pool)
        prerank, rank = self.scorers.score(with_candidates(columns, made.group()), self.log)
        request_of = made.request_of
        rows = columns.scalars["row"][request_of]
        tie = rng.hash64(self.config.seed, rng.stream("funnel/tie"), rows, made.item)
        outcome = run_stages(
            request_of,
            real=made.real,
            found=made.channel >= 0,
            pool=made.pool,
            prerank_score=prerank,
            rank_score=rank,
            quotas=self.quotas,
            tie=tie,
        )
        past = self._history(columns)
        queries = self.channels.queries(*past)
        factors = np.einsum("id,id->i", queries[request_of], self.channels.factors[made.item])
        fused = fused_scores(
            self.channels, past, alive, made.offsets, made.item, self.config.shares
        )
        # Pool items stand behind all of the list, so that its positions are consecutive.
        listed = np.where(made.pool, -np.inf, fused)
        ranks = {
            "retrieval": np.where(made.pool, -1, positions(listed, request_of, tie)),
            "prerank": outcome.prerank,
            "rank": outcome.rank,
        }
        values = (factors, fused, prerank, rank, outcome.survives)
        scores = dict(zip(SCORES, values, strict=True))
        return self._table(made, outcome, ranks, scores), _counts(made, outcome, self.quotas)

    def _history(self, columns: Columns) -> tuple[Index, Index]:
        history = history_items(columns, self.log.schema, self.config.max_history)
        return history.offsets, history.values["item"].astype(np.int64)

    def _table(
        self,
        made: Candidates,
        outcome: Outcome,
        ranks: dict[str, Index],
        scores: dict[str, npt.NDArray[Any]],
    ) -> pa.Table:
        offsets = pa.array(made.offsets.astype(np.int32))
        names = pa.array(STAGES, type=pa.string())
        channels = pa.array(CHANNELS, type=pa.string())
        missed = made.channel < 0
        columns = {
            "candidates.item": self.log.items.ids.values.take(pa.array(made.item)),
            "candidates.stage": pa.DictionaryArray.from_arrays(pa.array(outcome.stage), names),
            "candidates.channel": pa.DictionaryArray.from_arrays(
                pa.array(made.channel, mask=missed), channels
            ),
            "candidates.sample_prob": pa.array(made.sample_prob),
            "candidates.scored_online": pa.array(outcome.online),
        }
        for name, place in ranks.items():
            columns[f"candidates.rank.{name}"] = pa.array(place.astype(np.int32), mask=place < 0)
        for name, score in scores.items():
            columns[f"candidates.score.{name}"] = pa.array(score.astype(np.float32))
        for name, values in made.labels.items():
            columns[name] = pa.array(values, mask=np.isnan(values))
        lists = {n: pa.ListArray.from_arrays(offsets, array) for n, array in columns.items()}
        return pa.table(lists)


def _counts(made: Candidates, outcome: Outcome, quotas: Quotas) -> Counter[str]:
    real = made.real
    found = real & (made.channel >= 0)
    preranked = real & (outcome.prerank < quotas.prerank)
    ranked = real & (outcome.rank < quotas.rank)
    counts = Counter(
        {
            "real": int(real.sum()),
            "real_found": int(found.sum()),
            "real_within_prerank": int(preranked.sum()),
            "real_within_rank": int(ranked.sum()),
            "real_would_survive": int((outcome.survives & real).sum()),
            "requests": len(made.offsets) - 1,
            "candidates": len(made.item),
        }
    )
    for k, name in enumerate(STAGES):
        counts[f"stage:{name}"] = int((outcome.stage == k).sum())
    for k, name in enumerate(CHANNELS):
        counts[f"channel:{name}"] = int((made.channel == k).sum())
        counts[f"real_found:{name}"] = int((real & (made.channel == k)).sum())
    return counts
