"""The difficulty ladder: how hard an independent judge finds the negatives of each source.

The judge is of another model family and seed than the funnel's models; for every user it is fitted
on other users' real exposures and random items, never on the funnel's stages.

Shapes: ``R`` requests, ``P`` positives.
"""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from prerank.batch import POSITIVE, UNKNOWN
from prerank.config import Config
from prerank.errors import InputError
from prerank.funnel.adversary import sources_of
from prerank.funnel.exposures import Exposures, view_of
from prerank.funnel.plan import user_fold
from prerank.funnel.sampled import SampledPart
from prerank.funnel.scorers import fit_model, score_columns
from prerank.log import Columns, Log, Part, RowRanges, Transforms
from prerank.models.base import Model
from prerank.models.mlp import MLPPreranker
from prerank.training import FitConfig

__all__ = ["Ladder", "LadderConfig", "Rung", "difficulty_ladder"]

_ORDER = ("exposed", "rank", "prerank", "random")


class LadderConfig(Config, frozen=True):
    """The judge and its intervals.

    Parameters
    ----------
    model : MLPPreranker.Config
        The judge's family.
    fit : FitConfig
        How it is trained.
    seed : int, default 1000
        Of the judge; far from the funnel's.
    folds : int, default 2
        Groups of users; each is judged by a model of the others.
    num_negatives : int, default 10
        Random items per training request.
    num_bootstrap : int, default 1000
        Resamples of users.
    """

    model: MLPPreranker.Config = MLPPreranker.Config()
    fit: FitConfig = FitConfig(batch_size=64, epochs=2)
    seed: int = 1000
    folds: int = 2
    num_negatives: int = 10
    num_bootstrap: int = 1000


class Rung(msgspec.Struct, frozen=True):
    """AUC of positives against one source: mean over requests, 95 % interval over users."""

    source: str
    auc: float
    low: float
    high: float
    num_requests: int


class Ladder(msgspec.Struct, frozen=True):
    """The rungs from hard to easy as the sources promise, and whether the judge agrees.

    Parameters
    ----------
    rungs : tuple of Rung
        From hard to easy as the sources promise.
    steps : dict of str to (difference, low, high)
        For each pair of neighbours, the difference of their AUCs over the requests that have both.
    as_expected : bool
        Whether the AUCs ascend.
    """

    rungs: tuple[Rung, ...]
    steps: dict[str, tuple[float, float, float]]
    as_expected: bool


def difficulty_ladder(
    source: Log, funnel: Log, *, part: str = "test", config: LadderConfig | None = None
) -> dict[str, Ladder]:
    """Judge the sources of a funnel's log.

    Parameters
    ----------
    source : Log
        The log that the funnel was fitted on; the judge learns from its first part.
    funnel : Log
        What ``build_funnel`` wrote.
    part : str
        Part of the funnel's log to judge.
    config : LadderConfig, optional
        The judge.

    Returns
    -------
    dict of str to Ladder
        ``all``: every candidate. ``survivors``: of the real candidates, positives and exposed
        negatives, only those that would have survived by themselves. A deployed system shows
        nothing else; a fitted one is given real items that it would have dropped, and against
        those the items it ranks best look like better candidates.

    Raises
    ------
    InputError
        The funnel's log was not made from ``source``.
    """
    config = config or LadderConfig()
    if funnel.schema.lineage.parent != source.schema.lineage.log_id:
        raise InputError(f"{funnel.path}: was not made from {source.path}; give its own source log")
    view = view_of(source)
    exposures = Exposures.read(view, max_history=1)
    fold_of_user = user_fold(np.arange(view.schema.size("user")), config.seed, config.folds)
    learned = view[view.parts[0]].rows.within(0, view.num_requests)
    raw = funnel.vocabulary("user").values
    fold_of_raw = fold_of_user[view.vocabulary("user").encode(raw)]
    tables = []
    for k in range(config.folds):
        rows = learned[fold_of_user[exposures.user[learned]] != k]
        model = _judge(view, exposures, rows, config, k)
        users = np.flatnonzero(fold_of_raw == k)
        tables.append(_per_request(model, funnel, part, users))
    user = np.concatenate([t[0] for t in tables])
    values = np.concatenate([t[1] for t in tables])
    names = funnel.schema.source_names
    kinds = ("all", "survivors")
    return {kind: _ladder(user, values[:, k], names, config) for k, kind in enumerate(kinds)}


def _judge(
    log: Log, exposures: Exposures, rows: npt.NDArray[np.int64], config: LadderConfig, k: int
) -> Model:
    chosen = np.zeros(exposures.num_requests, dtype=np.bool_)
    chosen[rows] = True
    shown = exposures.item[np.repeat(chosen, np.diff(exposures.offsets))]
    part = SampledPart(
        log,
        rows,
        f"judge-{k}",
        popularity=np.bincount(shown, minlength=log.schema.size("item")).astype(np.float32),
        num_negatives=config.num_negatives,
        seed=config.seed + k,
    )
    transforms = Transforms.fit(Part(log, part.rows, part.name))
    return fit_model(config.model, part, transforms, config.fit, seed=config.seed + k, out=None)


def _per_request(
    model: Model, log: Log, part: str, users: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return user ``[R]`` and AUCs per source ``[R, 2, S]``: of all, of survivors; NaN: none."""
    mine = np.zeros(log.schema.size("user"), dtype=np.bool_)
    mine[users] = True
    num_sources = len(log.schema.source_names)
    found_users, found = [], []
    rows = log[part].rows
    for columns in Part(log, RowRanges(rows.pairs), part).columns(256):
        some = columns.take(np.flatnonzero(mine[columns.scalars["user"]]))
        if not some.num_requests:
            continue
        (score,) = score_columns((model,), some, log)
        found_users.append(some.scalars["user"].astype(np.int64))
        source = sources_of(some, log.schema)
        values = some.candidates.values
        shown = values["stage"] == len(log.schema.stages) - 1
        fallen = shown & ~(values["score.would_survive"] > 0)
        both = (source, np.where(fallen, UNKNOWN, source))
        tables = [_source_aucs(some, score, kinds, num_sources) for kinds in both]
        found.append(np.stack(tables, axis=1))
    if not found:
        return np.zeros(0, np.int64), np.zeros((0, 2, num_sources))
    return np.concatenate(found_users), np.concatenate(found)


def _source_aucs(
    columns: Columns, score: npt.NDArray[np.float32], source: npt.NDArray[Any], num_sources: int
) -> npt.NDArray[np.float64]:
    offsets = columns.candidates.offsets
    out = np.full((columns.num_requests, num_sources), np.nan)
    for r in range(columns.num_requests):
        inside = slice(int(offsets[r]), int(offsets[r + 1]))
        scores, kinds = score[inside], source[inside]
        positive = np.sort(scores[kinds == POSITIVE])
        if not len(positive):
            continue
        for s in range(num_sources):
            negative = scores[kinds == s]
            if len(negative):
                below = np.searchsorted(positive, negative, side="right")
                tied = below - np.searchsorted(positive, negative, side="left")
                wins = len(positive) - below + tied / 2
                out[r, s] = wins.mean() / len(positive)
    return out


def _ladder(
    user: npt.NDArray[np.int64],
    values: npt.NDArray[np.float64],
    names: tuple[str, ...],
    config: LadderConfig,
) -> Ladder:
    draws = np.random.default_rng(config.seed)
    rungs = []
    ordered = [name for name in _ORDER if name in names]
    columns = {name: values[:, names.index(name)] for name in ordered}
    for name, column in columns.items():
        if np.isfinite(column).any():
            mean, low, high = _interval(user, column, draws, config.num_bootstrap)
            rungs.append(Rung(name, mean, low, high, int(np.isfinite(column).sum())))
    steps = {}
    for hard, easy in itertools.pairwise(rungs):
        difference = columns[easy.source] - columns[hard.source]
        if np.isfinite(difference).any():
            interval = _interval(user, difference, draws, config.num_bootstrap)
            steps[f"{easy.source}-{hard.source}"] = interval
    means = [rung.auc for rung in rungs]
    return Ladder(tuple(rungs), steps, means == sorted(means))


def _interval(
    user: npt.NDArray[np.int64], column: npt.NDArray[np.float64], draws: Any, number: int
) -> tuple[float, float, float]:
    """Return the mean over requests and its 95 % percentile interval, users resampled."""
    keep = np.isfinite(column)
    codes = np.unique(user[keep], return_inverse=True)[1]
    total = np.bincount(codes, weights=column[keep])
    count = np.bincount(codes)
    num_users = len(count)
    means = np.empty(number)
    for b in range(number):
        weight = np.bincount(draws.integers(0, num_users, num_users), minlength=num_users)
        means[b] = (weight @ total) / (weight @ count)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(column[keep].mean()), float(low), float(high)
