"""Daily refresh beside a frozen model and beside training anew, in a world whose users drift.

Every day is evaluated before anyone trains on it: the day is appended to the log, all models score
it, and only then the refreshed model goes on with it and the retrained one starts again from the
first day.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import torch

from prerank.bench.machine import describe_machine
from prerank.config import from_values, to_values
from prerank.evaluation.collect import ModelScorer, collect
from prerank.evaluation.estimators import MeanMeasure
from prerank.evaluation.measures import measure
from prerank.log import Log, Part, RowRanges, open_log, write_log
from prerank.log.growth import append_log
from prerank.models import get as get_model
from prerank.models.base import Model
from prerank.objectives import get as get_objective
from prerank.training import FitConfig, WarmStart, fit, warm_start
from prerank.world import WorldConfig
from prerank.world.config import DAY_MS

__all__ = ["REFRESH_WORLD", "bench_refresh"]

REFRESH_WORLD = WorldConfig(
    num_users=300,
    num_items=3_000,
    num_requests=6_600,
    num_days=11,
    drift=0.25,
    new_items=0.4,
    num_retrieved=100,
    num_preranked=40,
    num_ranked=20,
)
"""Interests turn by 0.25 radians a day on average; two items in five come out during the log."""

_FIRST = FitConfig(
    epochs=2, batch_size=32, lr=0.01, table_lr=0.2, schedule="linear", clip_norm=10.0, min_count=2
)
_DAILY = msgspec.structs.replace(_FIRST, epochs=1, lr=0.003, schedule="constant")
_WAYS = ("frozen", "daily", "daily_reset", "retrained")
_METRICS = ("gauc/T1", "recall@10/T1")
Units = dict[tuple[str, str], list[MeanMeasure]]


def bench_refresh(
    *,
    world: WorldConfig = REFRESH_WORLD,
    first_days: int = 5,
    seeds: Sequence[int] = (0, 1, 2),
    model: Mapping[str, Any] | None = None,
    first: FitConfig = _FIRST,
    daily: FitConfig = _DAILY,
    num_resamples: int = 1000,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Compare ways of keeping up with a drifting world.

    ``frozen`` is trained on the first days. ``daily`` goes on from yesterday's run with
    yesterday's requests, its optimisers' state kept; ``daily_reset`` the same with fresh
    optimisers. ``retrained`` is trained anew on all requests up to yesterday's.

    Parameters
    ----------
    world : WorldConfig
        The world; its seed is replaced.
    first_days : int
        Days that all ways are trained on. On the next one the models part; the rest of the
        world's days are evaluated.
    seeds : sequence of int
        Of the world and of training; at least one.
    model : mapping, optional
        ``name`` and values of its configuration; default the MLP.
    first, daily : FitConfig
        How to train on the first days (and anew), and on one day more.
    num_resamples : int
        Of the user bootstrap.
    progress : callable, optional
        Called with a line about what was done.

    Returns
    -------
    dict
        ``machine``; ``rows``, one per seed, day and way; ``differences`` to the frozen model over
        all days and seeds, users resampled with all their days; ``ratios``
        ``refresh/METRIC/WAY/frozen`` and ``refresh/seconds/daily/retrained``; what was run.
    """
    rows: list[dict[str, Any]] = []
    units: Units = {}
    chosen = dict(model or {"name": "mlp"})
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            bench = _Seed(Path(folder), seed, world, first_days, chosen, first, daily)
            for row in bench.run(units):
                rows.append(row)
                progress(
                    f"seed {seed} day {row['day']} {row['way']}: "
                    f"gauc {row['gauc/T1']:.4f}, recall@10 {row['recall@10/T1']:.4f}"
                )
    pooled = {key: _pool(found) for key, found in units.items()}
    ratios, differences = {}, {}
    for metric in _METRICS:
        base = pooled[metric, "frozen"]
        for way in _WAYS[1:]:
            mine = pooled[metric, way]
            key = f"refresh/{metric.split('/')[0]}/{way}/frozen"
            ratios[key] = mine.estimate(1, 0).value / base.estimate(1, 0).value
            found = mine.minus(base, num_resamples, 0)
            differences[key] = {
                name: getattr(found, name) for name in ("value", "low", "high", "p_value")
            }
    spent = {way: sum(r["train_seconds"] for r in rows if r["way"] == way) for way in _WAYS}
    ratios["refresh/seconds/daily/retrained"] = spent["daily"] / max(spent["retrained"], 1e-9)
    return {
        "machine": describe_machine(),
        "rows": rows,
        "ratios": ratios,
        "differences": differences,
        "world": {k: v for k, v in to_values(world).items() if k != "seed"},
        "first_days": first_days,
        "seeds": list(seeds),
        "model": chosen,
        "first": to_values(first),
        "daily": to_values(daily),
    }


class _Seed:
    """One world and the models that try to keep up with it."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        world: WorldConfig,
        first_days: int,
        model: dict[str, Any],
        first: FitConfig,
        daily: FitConfig,
    ) -> None:
        self.folder, self.seed, self.first_days = folder, seed, first_days
        self.world = msgspec.structs.replace(world, seed=seed).build()
        self.model = model
        self.first = msgspec.structs.replace(first, seed=seed)
        self.daily = msgspec.structs.replace(daily, seed=seed)
        self.seconds = dict.fromkeys(_WAYS, 0.0)
        self.runs: dict[str, Path] = {}

    def run(self, units: Units) -> Iterator[dict[str, Any]]:
        """Yield a row per day and way; keep what they were computed from."""
        days = self._days()
        path = self.folder / "log"
        start = pa.concat_tables(days[: self.first_days])
        parts = {"first": np.arange(start.num_rows)}
        write_log(path, self.world.schema, [start], self.world.items(), splits=parts)
        frozen = self._train(open_log(path), "frozen", "first")
        models = dict.fromkeys(_WAYS, frozen)
        runs = self.runs = dict.fromkeys(_WAYS, self.folder / "frozen")
        self.seconds = dict.fromkeys(_WAYS, 0.0)
        for number, table in enumerate(days[self.first_days :]):
            name = f"day{number}"
            append_log(path, [table], part=name)
            log = open_log(path)
            if number:  # on the first one all ways are still one model
                yield from self._evaluate(log[name], models, units, number)
            if self.first_days + number + 1 == len(days):
                return
            for way in ("daily", "daily_reset"):
                out = self.folder / f"{way}{number}"
                models[way] = self._go_on(log[name], runs[way], out, way)
                runs[way] = out
            models["retrained"] = self._train(log, f"retrained{number}", None)
            runs["retrained"] = self.folder / f"retrained{number}"

    def _days(self) -> list[pa.Table]:
        whole = pa.concat_tables(list(self.world.requests()))
        config = self.world.config
        day = (whole["time"].to_numpy() - config.start_ms) // DAY_MS
        return [whole.filter(pa.array(day == d)) for d in range(config.num_days)]

    def _evaluate(
        self, part: Part, models: dict[str, Model], units: Units, number: int
    ) -> Iterator[dict[str, Any]]:
        data = collect(part, {way: ModelScorer(models[way]) for way in _WAYS})
        for way in _WAYS:
            found, _ = measure(data, way, [10], self.seed)
            row: dict[str, Any] = {"seed": self.seed, "day": number, "way": way}
            for metric in _METRICS:
                value = found[metric]
                assert isinstance(value, MeanMeasure)
                row[metric] = value.estimate(1, 0).value
                # A user of another world is another user.
                user = value.user + (self.seed << 32)
                units.setdefault((metric, way), []).append(
                    MeanMeasure(value.values, user, value.weights)
                )
            yield row | {"train_seconds": self.seconds[way]}
        self.seconds = dict.fromkeys(_WAYS, 0.0)

    def _train(self, log: Log, name: str, part: str | None) -> Model:
        """Train anew on a part, or on everything there is."""
        chosen = log[part] if part else Part(log, RowRanges([[0, log.num_requests]]), "all")
        began = time.perf_counter()
        model, objective = self._build(log.schema)
        fit(model, chosen, objective, config=self.first, out=self.folder / name, progress=False)
        self.seconds["retrained"] = time.perf_counter() - began
        return model

    def _go_on(self, part: Part, run: Path, out: Path, way: str) -> Model:
        """Warm start from a run and train on one day."""
        began = time.perf_counter()
        warm = WarmStart.of(run, part, min_count=self.daily.min_count)
        model, objective = self._build(warm.schema)
        start = warm_start(
            model, warm, part, objective, config=self.daily, keep_optimizer=way == "daily"
        )
        options: dict[str, Any] = {"config": self.daily, "start": start, "progress": False}
        fit(model, part, objective, out=out, **options)
        self.seconds[way] = time.perf_counter() - began
        return model

    def _build(self, schema: Any) -> tuple[Model, Any]:
        torch.manual_seed(self.seed)
        values = {key: value for key, value in self.model.items() if key != "name"}
        kind: Any = get_model(self.model["name"])
        objective: Any = get_objective("bce").Config().build(schema)
        return from_values(kind.Config, values, where="model").build(schema), objective


def _pool(found: list[MeanMeasure]) -> MeanMeasure:
    """Put the units of all days and seeds together."""
    weights = [np.ones(len(m.values)) if m.weights is None else m.weights for m in found]
    return MeanMeasure(
        np.concatenate([m.values for m in found]),
        np.concatenate([m.user for m in found]),
        np.concatenate(weights),
    )
