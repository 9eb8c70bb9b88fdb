"""Evaluate models, cascades and baselines side by side on one part of a log."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prerank.cascade import Cascade
from prerank.errors import InputError
from prerank.evaluation.baselines import DEFAULT_BASELINES
from prerank.evaluation.collect import Scorer
from prerank.evaluation.prepared import DEFAULT_KS, Given, as_scorer, named_scorers, prepare
from prerank.evaluation.result import Evaluation, RunResult
from prerank.evaluation.truth.truths import TruthOptions
from prerank.log import Part
from prerank.models.base import Model

__all__ = ["DEFAULT_KS", "Evaluation", "RunResult", "as_scorer", "evaluate"]


def evaluate(
    scorers: Given,
    part: Part,
    *,
    baselines: Sequence[str] = DEFAULT_BASELINES,
    ks: Sequence[int] = DEFAULT_KS,
    truths: TruthOptions = TruthOptions(),  # noqa: B008 (frozen)
    ranker: str | Model | Cascade | Scorer | None = None,
    metrics: Sequence[str] | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
    batch_size: int = 256,
    cost: bool = True,
    per_request: bool = False,
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
    metrics : sequence of str, optional
        Keys or beginnings of keys, like ``recall@``; default: all metrics.
    num_resamples, seed : int
        Of the user bootstrap (95 % intervals); 0 resamples: values only, their bounds are NaN
        (null in JSON). The seed also draws the order among equal scores.
    batch_size : int
        Requests scored at once.
    cost : bool
        Whether to time the models.
    per_request : bool
        Keep what means are made of, for ``result.runs[name].per_request(key)``.
    device : str
        Where models compute.
    progress : callable, optional
        Called with the number of requests just scored.

    Returns
    -------
    Evaluation
        ``print`` shows a table. The keys are explained in :mod:`prerank.evaluation.measures`.
        To judge many models one after the other, see :func:`prerank.evaluation.prepare`.

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
    if any(k < 1 for k in ks) or num_resamples < 0:
        raise InputError("evaluate: ks start at 1, num_resamples at 0 (no intervals)")
    named = named_scorers(scorers, part.log, device, seed)
    prepared = prepare(
        part,
        scorers=named,
        baselines=baselines,
        truths=truths,
        ranker=ranker,
        metrics=metrics,
        seed=seed,
        batch_size=batch_size,
        device=device,
        progress=progress,
    )
    return prepared.judge(
        prepared.data,
        named,
        ks=ks,
        num_resamples=num_resamples,
        cost=cost,
        per_request=per_request,
    )
