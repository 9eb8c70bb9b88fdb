"""A part read once for many evaluations: what happened, truths, baselines, requests kept.

Reading the requests, simulating the truth of a world, looking for later engagement, counting and
scoring baselines do not depend on the models that are judged.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from prerank.cascade import Cascade
from prerank.errors import InputError
from prerank.evaluation.baselines import (
    DEFAULT_BASELINES,
    make_baselines,
    why_no_baseline,
)
from prerank.evaluation.cascades import CascadeScorer
from prerank.evaluation.chosen import Chosen
from prerank.evaluation.collect import (
    Batch,
    Collected,
    ModelScorer,
    Ranker,
    Scorer,
    collect,
    score_batches,
)
from prerank.evaluation.cost import Cost, measure_cost
from prerank.evaluation.estimators import Measure, ask
from prerank.evaluation.measures import measure
from prerank.evaluation.result import Evaluation, RunResult
from prerank.evaluation.studies.leaks import refuse_evidence_readers
from prerank.evaluation.truth.ranker import logged_ranker
from prerank.evaluation.truth.truths import TruthOptions, Truths
from prerank.evaluation.units import units_of
from prerank.log import Log, Part
from prerank.models.base import Model
from prerank.world import World

__all__ = ["DEFAULT_KS", "Given", "Prepared", "as_scorer", "prepare"]

DEFAULT_KS = (10, 50, 100)
Given = Model | Cascade | Mapping[str, Model | Cascade | Scorer]
Measured = tuple[dict[str, Measure], dict[str, str]]


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A part ready to judge models on, from :func:`prepare`.

    Parameters
    ----------
    part : Part
        The requests.
    data : Collected
        What happened, with the scores of the baselines.
    truths : Truths
        What orders are judged against.
    batches : tuple of Batch
        The requests, as read; none where all scores are in ``data``.
    baselines : tuple of str
        Rows of every result, in this order.
    absent : dict of str to str
        Baselines that the log cannot have, with the reason.
    ranker : str, optional
        Name of the ranker behind.
    chosen : Chosen
        Metrics that were asked for.
    seed : int
        Of ties and resamples.
    device : str
        Where models compute.
    """

    part: Part
    data: Collected
    truths: Truths
    batches: tuple[Batch, ...]
    baselines: tuple[str, ...]
    absent: dict[str, str]
    ranker: str | None
    chosen: Chosen
    seed: int
    device: str
    _measured: dict[tuple[str, tuple[int, ...]], Measured] = field(default_factory=dict)

    def evaluate(
        self,
        scorers: Given,
        *,
        ks: Sequence[int] = DEFAULT_KS,
        num_resamples: int = 1000,
        cost: bool = True,
        per_request: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> Evaluation:
        """Score the requests with models and compare them, as :func:`prerank.evaluate` does.

        Parameters
        ----------
        scorers, ks, num_resamples, cost, per_request, progress
            As in :func:`prerank.evaluate`.

        Raises
        ------
        InputError
            As :func:`prerank.evaluate`.
        """
        named = named_scorers(scorers, self.part.log, self.device, self.seed)
        refuse_names(named, self.baselines)
        refuse_evidence_readers(only_models(named), self.part)
        scores = score_batches(self.batches, named, self.part.log, progress)
        data = dataclasses.replace(
            self.data,
            scores={**scores, **self.data.scores},
            kinds={**{name: s.kind for name, s in named.items()}, **self.data.kinds},
        )
        return self.judge(
            data, named, ks=ks, num_resamples=num_resamples, cost=cost, per_request=per_request
        )

    def judge(
        self,
        data: Collected,
        scorers: Mapping[str, Scorer],
        *,
        ks: Sequence[int],
        num_resamples: int,
        cost: bool,
        per_request: bool,
    ) -> Evaluation:
        """Measure and compare what was scored; arguments as in :meth:`evaluate`."""
        if any(k < 1 for k in ks) or num_resamples < 0:
            raise InputError("evaluate: ks start at 1, num_resamples at 0 (no intervals)")
        ks = tuple(sorted({*ks, *self.chosen.cut_offs()}))
        measures: dict[str, dict[str, Measure]] = {}
        skipped: dict[str, dict[str, str]] = {}
        floors = [name for name in self.baselines if name not in self.absent]
        for name in (*scorers, *floors):
            measures[name], skipped[name] = self._measure(data, name, ks, keep=name in floors)
        pairs = [*itertools.combinations(scorers, 2), *itertools.product(scorers, floors)]
        estimates, differences = ask(measures, pairs, num_resamples, self.seed)
        every = sorted({key for name in measures for key in (*measures[name], *skipped[name])})
        runs = {}
        for name in (*scorers, *self.baselines):
            if name in self.absent:
                reasons = dict.fromkeys(every, self.absent[name])
                runs[name] = RunResult(metrics={}, cost=None, skipped=reasons)
                continue
            timed = (
                _cost(scorers[name], self.part, self.device) if cost and name in scorers else None
            )
            scorer = scorers.get(name)
            runs[name] = RunResult(
                metrics=estimates[name],
                cost=timed,
                skipped=skipped[name],
                tiers=scorer.report() if isinstance(scorer, CascadeScorer) else None,
                units=units_of(measures[name], data.user, data.row) if per_request else {},
            )
        return Evaluation(
            runs=runs,
            differences=differences,
            counts=_counts(data),
            log=str(self.part.log.path),
            part=self.part.name,
            seed=self.seed,
            quota=self.truths.quota,
            top_m=self.truths.top_m,
            ranker=self.ranker,
        )

    def _measure(self, data: Collected, name: str, ks: tuple[int, ...], *, keep: bool) -> Measured:
        if (name, ks) in self._measured:
            return self._measured[name, ks]
        found, skipped = measure(data, name, ks, self.seed, self.truths)
        measured = (
            {key: m for key, m in found.items() if self.chosen.wants(key)},
            {key: why for key, why in skipped.items() if self.chosen.wants(key)},
        )
        if keep:
            self._measured[name, ks] = measured
        return measured


def prepare(
    part: Part,
    *,
    scorers: Mapping[str, Scorer] | None = None,
    baselines: Sequence[str] = DEFAULT_BASELINES,
    truths: TruthOptions = TruthOptions(),  # noqa: B008 (frozen)
    ranker: str | Model | Cascade | Scorer | None = None,
    metrics: Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int = 256,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> Prepared:
    """Read a part once, to judge many models on it one after the other.

    Parameters
    ----------
    part : Part
        The requests; those of it stay in memory.
    scorers : mapping of str to Scorer, optional
        Scored while reading; then the requests are not kept.
    baselines, truths, ranker, metrics, seed, batch_size, device, progress
        As in :func:`prerank.evaluate`.

    Raises
    ------
    InputError
        As :func:`prerank.evaluate`.

    Examples
    --------
    >>> import tempfile
    >>> from prerank.log import open_log
    >>> from prerank.world import WorldConfig, write_world
    >>> config = WorldConfig(num_users=20, num_items=300, num_requests=60, num_days=3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = write_world(f"{folder}/log", config)
    ...     prepared = prepare(open_log(f"{folder}/log")["test"], metrics=["recall@50/T1"])
    ...     results = [prepared.evaluate({}, num_resamples=0, cost=False) for _ in range(2)]
    >>> list(results[0].runs["random"].metrics), results[0] == results[1]
    (['recall@50/T1'], True)
    """
    log, chosen = part.log, Chosen.of(metrics)
    truths = TruthOptions(
        groups=chosen.groups(truths.groups),
        quota=truths.quota,
        top_m=truths.top_m,
        min_count=truths.min_count,
    )
    behind: Ranker | None
    if ranker is None or isinstance(ranker, str):
        behind = logged_ranker(log.schema, ranker)
    else:
        behind = as_scorer("ranker", ranker, log, device, seed)
    train = log["train"] if "train" in log.parts else None
    absent = {name: why for name in baselines if (why := why_no_baseline(name, log))}
    wanted = [name for name in baselines if name not in absent]
    named = dict(scorers or {})
    floors = make_baselines(wanted, train, log, seed)
    refuse_names(named, baselines)
    refuse_evidence_readers(only_models(named), part)
    kept: list[Batch] | None = [] if scorers is None else None
    data = collect(
        part,
        {**named, **floors},
        batch_size=batch_size,
        ranker=behind,
        world=_world_of(log) if "U" in truths.groups else None,
        keep=kept,
        progress=progress,
    )
    return Prepared(
        part=part,
        data=data,
        truths=Truths.of(data, log, truths, seed),
        batches=tuple(kept or ()),
        baselines=tuple(dict.fromkeys(baselines)),
        absent=absent,
        ranker=None if behind is None else getattr(behind, "name", "given"),
        chosen=chosen,
        seed=seed,
        device=device,
    )


def named_scorers(scorers: Given, log: Log, device: str, seed: int) -> dict[str, Scorer]:
    """Return what scores, by name; a single model is named by its class."""
    if isinstance(scorers, Model | Cascade):
        scorers = {type(scorers).__name__: scorers}
    return {name: as_scorer(name, s, log, device, seed) for name, s in scorers.items()}


def refuse_names(scorers: Mapping[str, Scorer], baselines: Sequence[str]) -> None:
    """Raise where a run is named like a baseline."""
    for name in baselines:
        if name in scorers:
            raise InputError(f"evaluate: a run is named '{name}' like a baseline; rename the run")


def only_models(scorers: Mapping[str, Scorer]) -> dict[str, ModelScorer]:
    """Return the models among the scorers."""
    return {name: s for name, s in scorers.items() if isinstance(s, ModelScorer)}


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


def _check_tasks(name: str, model: Model, log: Log) -> None:
    ours, theirs = model.schema.task_names, log.schema.task_names
    if ours != theirs:
        raise InputError(
            f"evaluate: '{name}' predicts {', '.join(ours)}, but {log.path} declares "
            f"{', '.join(theirs)}; evaluate on a log of the same tasks"
        )


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
