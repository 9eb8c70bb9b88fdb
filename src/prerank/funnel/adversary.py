"""Ask whether being real leaks into what a model can see.

A classifier is trained to tell exposed-not-engaged candidates from ``rank`` ones by model-visible
features alone. It may succeed for legitimate reasons: real people choose among items in ways that
the fitted funnel does not share (popularity, taste), and a real item is kept even where its own
ranks were poor. What would be a leak is anything the *making* of the log adds to real items. Four
numbers separate the two:

* ``auc``: the classifier on all candidates of both kinds;
* ``survivors``: another one, on real items that would have survived by themselves against items
  that the ranker kept and nobody saw: both passed every stage by the same scores. Above chance by
  people's choices alone, or a leak;
* ``matched``: the first one, on pairs from about the same places of both stages' lists;
* ``placebo``: the same training where "real" is a coin thrown for ``rank`` candidates. Must be one
  half: no realness exists, so what it finds would be an error of the test itself.

Shapes: ``I`` candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from prerank import expression, rng
from prerank.batch import RequestBatch, Scores
from prerank.config import Config
from prerank.errors import InputError
from prerank.funnel.sampled import with_candidates
from prerank.funnel.scorers import score_columns
from prerank.log import Columns, Part, Transforms
from prerank.log.format.columns import Group
from prerank.log.inputs.evidence import label_columns, source_codes
from prerank.metrics import auc
from prerank.models.base import Model
from prerank.models.mlp import MLPPreranker
from prerank.objectives.base import Normaliser, local_weight, scores_of, weighted_mean
from prerank.schema import Schema
from prerank.training import FitConfig, fit

__all__ = ["AdversaryConfig", "AdversaryReport", "realness_report", "sources_of"]

Kind = Literal["all", "survivors", "placebo"]
_REAL, _OTHER = "exposed", "rank"
_EXPLANATION = (
    "auc above one half is no leak by itself: people choose differently from the funnel, and real "
    "items are kept whatever their ranks (auc_popularity, auc_prerank and auc_ranker show how far "
    "each of these tells them apart by itself)",
    "survivors passed every stage by their own scores, as did the items that the ranker kept and "
    "nobody saw: what tells these apart is people's choice among them, or a leak",
    "matched compares candidates from about the same places of both stages' lists only",
    "placebo must be near one half; a feature added by the making of the log would push auc and "
    "survivors towards one",
)


class AdversaryConfig(Config, frozen=True):
    """The classifier.

    Parameters
    ----------
    model : MLPPreranker.Config
        A family that the funnel itself does not use.
    fit : FitConfig
        How it is trained.
    seed : int, default 1
        Of weights and of the placebo's coin.
    places : int, default 5
        Candidates are ``matched`` when they share a run of so many places in the ranker's list,
        and one of twice as many in the pre-ranker's.
    """

    model: MLPPreranker.Config = MLPPreranker.Config()
    fit: FitConfig = FitConfig(batch_size=64, epochs=2)
    seed: int = 1
    places: int = 5


class AdversaryReport(msgspec.Struct, frozen=True):
    """AUCs of telling real exposed-not-engaged candidates from ``rank`` ones; see the module.

    ``num_real`` and ``num_other`` count the candidates that were judged; ``explanation`` says
    how to read the numbers.
    """

    auc: float
    survivors: float
    matched: float
    placebo: float
    auc_popularity: float
    auc_prerank: float
    auc_ranker: float
    num_real: int
    num_survivors: int
    num_other: int
    explanation: tuple[str, ...] = _EXPLANATION


class _Kept(Part):
    """Requests with the candidates of the two kinds only."""

    def __init__(self, part: Part, kind: Kind, seed: int) -> None:
        super().__init__(part.log, part.rows, part.name)
        self.kind = kind
        self.seed = seed

    def columns(self, batch_size: int, **options: Any) -> Iterator[Columns]:
        """Yield batches as :meth:`Part.columns` does; ``weight`` holds what to tell apart."""
        options["logged"] = None  # what survives is told by a score, whatever the objective reads
        for columns in super().columns(batch_size, **options):
            group = columns.candidates
            source = sources_of(columns, self.log.schema)
            names = self.log.schema.source_names
            real, other = source == names.index(_REAL), source == names.index(_OTHER)
            if self.kind == "survivors":
                real &= group.values["score.would_survive"] > 0
                other &= group.values["stage"] == self.log.schema.stages.index("rank")
            if self.kind == "placebo":
                rows = np.repeat(columns.scalars["row"], np.diff(group.offsets))
                key = rng.stream("funnel/placebo")
                coin = rng.uniform(self.seed, key, rows, group.values["item"]) < 0.5
                real, other = other & coin, other & ~coin
            keep = real | other
            before = np.concatenate([[0], np.cumsum(keep)])
            values = {name: column[keep] for name, column in group.values.items()}
            # The weight column is free (a funnel log has none) and reaches the evidence.
            values["weight"] = np.where(real, 2.0, 1.0)[keep].astype(np.float32)
            yield with_candidates(columns, Group(before[group.offsets], values))


class _Realness:
    """Binary cross-entropy of being real."""

    per_impression = True

    def __init__(self) -> None:
        self.normaliser: Normaliser = local_weight

    def __call__(self, scores: Mapping[str, Scores], batch: RequestBatch) -> dict[str, Tensor]:
        logit_I = scores_of(scores, None).logits[:, 0]
        target_I = (batch.evidence.weight > 1.5).to(logit_I.dtype)
        loss_I = F.binary_cross_entropy_with_logits(logit_I, target_I, reduction="none")
        count = torch.tensor(float(loss_I.numel()))
        return {"realness": weighted_mean(loss_I.sum(), count, self.normaliser)}


def realness_report(
    train: Part, test: Part, config: AdversaryConfig | None = None
) -> AdversaryReport:
    """Train the classifiers on one part of a funnel's log and judge them on another.

    Parameters
    ----------
    train, test : Part
        Of a log that ``build_funnel`` wrote.
    config : AdversaryConfig, optional
        The classifier.

    Raises
    ------
    InputError
        The log is no fitted funnel, or lacks one of the two kinds.
    """
    config = config or AdversaryConfig()
    schema = train.log.schema
    if schema.lineage.made_by != "fitted funnel":
        raise InputError(
            f"{train.log.path}: made by '{schema.lineage.made_by}', expected a fitted funnel; "
            "make one: prerank data funnel LOG OUT"
        )
    transforms = Transforms.fit(train)
    popularity = _popularity(train)
    found = {}
    kinds: tuple[Kind, ...] = ("all", "survivors", "placebo")
    for kind in kinds:
        model = _train(_Kept(train, kind, config.seed), transforms, config)
        found[kind] = _judge(model, _Kept(test, kind, config.seed), popularity)
    whole, few = found["all"], found["survivors"]
    if not whole["real"].any() or whole["real"].all():
        raise InputError(
            f"{test.log.path}: part '{test.name}' has no '{_REAL}' or no '{_OTHER}' candidate to "
            "tell apart"
        )
    return AdversaryReport(
        auc=auc(whole["score"], whole["real"]),
        survivors=auc(few["score"], few["real"]),
        matched=_matched(whole, config.places),
        placebo=auc(found["placebo"]["score"], found["placebo"]["real"]),
        auc_popularity=auc(whole["popularity"], whole["real"]),
        auc_prerank=auc(whole["prerank"], whole["real"]),
        auc_ranker=auc(whole["ranker"], whole["real"]),
        num_real=int(whole["real"].sum()),
        num_survivors=int(few["real"].sum()),
        num_other=int((~whole["real"]).sum()),
    )


def sources_of(columns: Columns, schema: Schema) -> npt.NDArray[np.int64]:
    """Return the source code of every candidate ``[I]``, as in ``evidence.source``."""
    engaged = expression.evaluate(schema.engaged, label_columns(columns, schema))
    stage = columns.candidates.values["stage"].astype(np.int64)
    return source_codes(stage, np.broadcast_to(engaged, stage.shape), schema)


def _popularity(part: Part) -> npt.NDArray[np.float64]:
    """Return the real exposures of each item in a part."""
    counts = np.zeros(part.log.schema.size("item"))
    for columns in part.columns(1024):
        group = columns.candidates
        shown = group.values["stage"] == len(part.log.schema.stages) - 1
        counts += np.bincount(group.values["item"][shown], minlength=len(counts))
    return counts


def _train(part: _Kept, transforms: Transforms, config: AdversaryConfig) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = config.model.build(part.log.schema)
    model.transforms = transforms
    fit(model, part, _Realness(), config=config.fit, progress=False)
    return model


def _judge(
    model: Model, part: _Kept, popularity: npt.NDArray[np.float64]
) -> dict[str, npt.NDArray[Any]]:
    """Return score, realness, popularity and logged scores of every kept candidate ``[I]``."""
    parts: dict[str, list[npt.NDArray[Any]]] = {}
    for columns in part.columns(256):
        values = columns.candidates.values
        (score,) = score_columns((model,), columns, part.log)
        row = {
            "score": score,
            "real": values["weight"] > 1.5,
            "popularity": popularity[values["item"]],
            "prerank": values["score.prerank"],
            "ranker": values["score.ranker"],
            "place_prerank": values["rank.prerank"],
            "place_rank": values["rank.rank"],
        }
        for name, value in row.items():
            parts.setdefault(name, []).append(value)
    return {name: np.concatenate(pieces) for name, pieces in parts.items()}


def _matched(found: dict[str, npt.NDArray[Any]], places: int) -> float:
    """Return the AUC over pairs of one cell, cells weighted by their pairs; NaN without any."""
    first = found["place_prerank"].astype(np.int64) // (2 * places)
    second = found["place_rank"].astype(np.int64) // places
    cells, cell = np.unique(np.stack([first, second]), axis=1, return_inverse=True)
    total = pairs = 0.0
    for k in range(cells.shape[1]):
        inside = cell == k
        num_real = float(found["real"][inside].sum())
        number = num_real * (float(inside.sum()) - num_real)
        if number:
            total += number * auc(found["score"][inside], found["real"][inside])
            pairs += number
    return total / pairs if pairs else float("nan")
