"""Evaluate models, cascades and baselines side by side on one part of a log."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from prerank.cascade import Cascade
from prerank.errors import InputError
from prerank.evaluation.baselines import (
    DEFAULT_BASELINES,
    make_baselines,
    why_no_baseline,
)
from prerank.evaluation.cascades import CascadeScorer
from prerank.evaluation.collect import (
    Collected,
    ModelScorer,
    Ranker,
    Scorer,
    collect,
)
from prerank.evaluation.cost import Cost, measure_cost
from prerank.evaluation.estimators import Measure, ask
from prerank.evaluation.measures import measure
from prerank.evaluation.statistics import Difference, Estimate
from prerank.evaluation.studies.leaks import refuse_evidence_readers
from prerank.evaluation.truth.ranker import logged_ranker
from prerank.evaluation.truth.truths import TruthOptions, Truths
from prerank.log import Log, Part
from prerank.models.base import Model
from prerank.world import World

__all__ = ["DEFAULT_KS", "Evaluation", "RunResult", "as_scorer", "evaluate"]

DEFAULT_KS = (10, 50, 100)


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """One scorer's row: metrics by key, cost where it is a model, what was skipped and why."""

    metrics: dict[str, Estimate]
    cost: Cost | None
    skipped: dict[str, str]


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Results of several scorers on the same part.

    Parameters
    ----------
    runs : dict of str to RunResult
        Models and cascades first, then baselines.
    differences : dict of str to dict of key to Difference
        ``"a - b"``: paired, same users resampled together; every run minus every other row.
    counts : dict of str to int
        ``requests``, ``candidates``, ``users``, ``positives`` (engaged exposures),
        ``requests_without_positive`` (they count in no metric of an order),
        ``users_of_one_class`` (exposures all engaged or none; they do not count in ``gauc/T1``),
        ``negatives:SOURCE``.
    log, part, seed
        What was evaluated.
    quota, top_m : int, optional
        What pre-ranking kept of a request, and ``m`` of the ranker's list.
    ranker : str, optional
        Which ranker: ``score:NAME`` or ``rank:STAGE`` of the log, or ``given``.
    """

    runs: dict[str, RunResult]
    differences: dict[str, dict[str, Difference]]
    counts: dict[str, int]
    log: str
    part: str
    seed: int
    quota: int | None = None
    top_m: int | None = None
    ranker: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values; a number that does not exist is null."""
        values: dict[str, Any] = _without_nan(msgspec.to_builtins(self))
        return values

    def value(self, run: str, key: str) -> float:
        """Return one number, NaN where it was skipped."""
        found = self.runs[run].metrics.get(key)
        return found.value if found else float("nan")

    def __str__(self) -> str:
        from prerank.evaluation.show import as_text

        return as_text(self)


def evaluate(
    scorers: Model | Cascade | Mapping[str, Model | Cascade | Scorer],
    part: Part,
    *,
    baselines: Sequence[str] = DEFAULT_BASELINES,
    ks: Sequence[int] = DEFAULT_KS,
    truths: TruthOptions = TruthOptions(),  # noqa: B008 (frozen)
    ranker: str | Model | Cascade | Scorer | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
    batch_size: int = 256,
    cost: bool = True,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Score a part once with every scorer and compare them.

    Parameters
    ----------
    scorers : Model, Cascade, or mapping of name to Model, Cascade or Scorer
        What to evaluate. Models go to ``device`` and to eval mode, and stay so.
    part : Part
        The requests; a part the scorers were not trained on (``load_runs`` refuses others).
    baselines : sequence of str
        Rows to put beside them, counted on the log's ``train`` part.
    ks : sequence of int
        Cut-offs of recall and NDCG; those that keep all candidates of half of the requests are
        skipped with the reason. Half of what pre-ranking kept, that, and twice that are added.
    truths : TruthOptions
        Which truths beside T1, and their numbers.
    ranker : str, Model, Cascade or Scorer, optional
        The frozen ranker behind: a logged score or rank by name, or a model. Default: the log's.
    num_resamples, seed : int
        Of the user bootstrap (95 % intervals); the seed also draws the order among equal scores.
    batch_size : int
        Requests scored at once.
    cost : bool
        Whether to time the models.
    device : str
        Where models compute.
    progress : callable, optional
        Called with the number of requests just scored.

    Returns
    -------
    Evaluation
        ``print`` shows a table. The keys are explained in :mod:`prerank.evaluation.measures`.

    Raises
    ------
    InputError
        An untrained model or one of other tasks than the log's, an empty part, a score that is
        not finite, a baseline that cannot be had.

    Examples
    --------
    >>> import tempfile
    >>> from prerank.log import open_log
    >>> from prerank.world import WorldConfig, write_world
    >>> config = WorldConfig(num_users=20, num_items=300, num_requests=60, num_days=3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = write_world(f"{folder}/log", config)
    ...     result = evaluate({}, open_log(f"{folder}/log")["test"], num_resamples=100)
    >>> sorted(result.runs), 0 < result.value("popularity", "recall@50/T1") < 1
    (['item_mean', 'item_mean+user_mean', 'popularity', 'random', 'retrieval'], True)
    """
    if any(k < 1 for k in ks) or num_resamples < 1:
        raise InputError("evaluate: ks and num_resamples start at 1")
    log = part.log
    if isinstance(scorers, Model | Cascade):
        scorers = {type(scorers).__name__: scorers}
    named = {name: as_scorer(name, s, log, device, seed) for name, s in scorers.items()}
    behind: Ranker | None
    if ranker is None or isinstance(ranker, str):
        behind = logged_ranker(log.schema, ranker)
    else:
        behind = as_scorer("ranker", ranker, log, device, seed)
    train = log["train"] if "train" in log.parts else None
    absent = {name: why for name in baselines if (why := why_no_baseline(name, log))}
    wanted = [name for name in baselines if name not in absent]
    for name, baseline in make_baselines(wanted, train, log, seed).items():
        if name in named:
            raise InputError(f"evaluate: a run is named '{name}' like a baseline; rename the run")
        named[name] = baseline
    models = {name: s for name, s in named.items() if isinstance(s, ModelScorer)}
    refuse_evidence_readers(models, part)
    data = collect(
        part,
        named,
        batch_size=batch_size,
        ranker=behind,
        world=_world_of(log) if "U" in truths.groups else None,
        progress=progress,
    )
    found_truths = Truths.of(data, log, truths, seed)
    measures: dict[str, dict[str, Measure]] = {}
    runs: dict[str, RunResult] = {}
    skipped: dict[str, dict[str, str]] = {}
    for name in named:
        measures[name], skipped[name] = measure(data, name, ks, seed, found_truths)
    own = list(scorers)
    pairs = [*itertools.combinations(own, 2), *itertools.product(own, list(named)[len(own) :])]
    estimates, differences = ask(measures, pairs, num_resamples, seed)
    for name, scorer in named.items():
        timed = _cost(scorer, part, device) if cost else None
        runs[name] = RunResult(metrics=estimates[name], cost=timed, skipped=skipped[name])
    every = {key for run in runs.values() for key in (*run.metrics, *run.skipped)}
    for name, why in absent.items():
        reasons = dict.fromkeys(sorted(every), why)
        runs[name] = RunResult(metrics={}, cost=None, skipped=reasons)
    runs = {name: runs[name] for name in (*scorers, *dict.fromkeys(baselines))}
    return Evaluation(
        runs=runs,
        differences=differences,
        counts=_counts(data),
        log=str(log.path),
        part=part.name,
        seed=seed,
        quota=found_truths.quota,
        top_m=found_truths.top_m,
        ranker=None if behind is None else getattr(behind, "name", "given"),
    )


def as_scorer(
    name: str, scorer: Model | Cascade | Scorer, log: Log, device: str, seed: int
) -> Scorer:
    """Return what scores: a model and a cascade wrapped, anything else as it is.

    Raises
    ------
    InputError
        A model that was not trained or predicts other tasks than the log's.
    """
    match scorer:
        case Model():
            _check_tasks(name, scorer, log)
            return ModelScorer(scorer, device)
        case Cascade():
            return CascadeScorer(scorer, device, seed=seed)
    return scorer


def _world_of(log: Log) -> World | None:
    """Return the world that made the log, unless the log was changed since."""
    lineage = log.schema.lineage
    if lineage.made_by != "world" or lineage.revision or not (log.path / "world.json").is_file():
        return None
    return World.open(log.path)


def _cost(scorer: Scorer, part: Part, device: str) -> Cost | None:
    if not isinstance(scorer, ModelScorer) or scorer.model.transforms is None:
        return None
    columns = next(part.columns(64))
    lengths = np.diff(columns.candidates.offsets)
    if not lengths.any():
        return None
    # One request of the usual size is what a server scores at once.
    usual = np.argsort(lengths, kind="stable")[lengths.size // 2 :]
    columns = columns.take(usual[lengths[usual] > 0][:1])
    batch = scorer.model.transforms.batch(columns, part.log)
    return measure_cost(scorer.model, batch.inputs.to(device))


def _check_tasks(name: str, model: Model, log: Log) -> None:
    ours, theirs = model.schema.task_names, log.schema.task_names
    if ours != theirs:
        raise InputError(
            f"evaluate: '{name}' predicts {', '.join(ours)}, but {log.path} declares "
            f"{', '.join(theirs)}; evaluate on a log of the same tasks"
        )


def _counts(data: Collected) -> dict[str, int]:
    user = np.repeat(data.user, data.lengths)
    negative = data.shown & (data.engaged == 0)
    users = np.unique(user[data.positive | negative])
    both = np.intersect1d(user[data.positive], user[negative])
    counts = {
        "requests": len(data.row),
        "candidates": len(data.source),
        "users": len(np.unique(data.user)),
        "positives": int(data.positive.sum()),
        "requests_without_positive": int((~data.has_positive).sum()),
        "users_of_one_class": len(users) - len(both),
    }
    for code, source in enumerate(data.schema.source_names):
        counts[f"negatives:{source}"] = int((data.source == code).sum())
    return counts


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
