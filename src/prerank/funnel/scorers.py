"""The two models of a fitted funnel: a deliberately weak pre-ranker and a strong ranker."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from prerank.funnel.config import FunnelConfig
from prerank.funnel.sampled import SampledPart
from prerank.log import Columns, Log, Part, Transforms
from prerank.models.base import Model
from prerank.objectives import BCE
from prerank.training import FitConfig, fit

__all__ = ["Scorers", "fit_model", "score_columns"]

Floats = npt.NDArray[np.float32]
_PAIRS_PER_BATCH = 400_000
"""Candidates times events scored at once; more does not fit the processor's caches."""


@dataclass(frozen=True, slots=True, eq=False)
class Scorers:
    """Both models of one stint, in eval mode."""

    prerank: Model
    rank: Model

    @classmethod
    def fit(
        cls,
        log: Log,
        part: SampledPart,
        config: FunnelConfig,
        folder: Path,
        *,
        progress: bool = False,
    ) -> Scorers:
        """Train both on a part, or load them where that is done; resumes by itself."""
        exposed = Part(log, part.rows, part.name)
        transforms = Transforms.fit(exposed, max_history=config.max_history)
        models = []
        for k, (made, how) in enumerate(
            ((config.prerank, config.prerank_fit), (config.rank, config.rank_fit))
        ):
            name = ("prerank", "rank")[k]
            seed = config.seed * 1000 + 17 + k
            model = fit_model(
                made,
                part,
                transforms,
                how,
                seed=seed,
                out=folder / f"{part.name}-{name}",
                progress=progress,
            )
            models.append(model)
        return cls(*models)

    def score(self, columns: Columns, log: Log) -> tuple[Floats, Floats]:
        """Return the pre-ranker's and the ranker's score of every candidate ``[I]``."""
        prerank, rank = score_columns((self.prerank, self.rank), columns, log)
        return prerank, rank


def fit_model(
    made: object,
    part: Part,
    transforms: Transforms,
    how: FitConfig,
    *,
    seed: int,
    out: Path | None,
    progress: bool = False,
) -> Model:
    """Build a model from its configuration and train it with BCE on a part.

    The first task of the schema is what its scores mean.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Model = made.build(part.log.schema)  # type: ignore[attr-defined]
    model.transforms = transforms
    objective = BCE.Config().build(part.log.schema)
    fit(model, part, objective, config=how, out=out, progress=progress)
    return model


def score_columns(models: tuple[Model, ...], columns: Columns, log: Log) -> list[Floats]:
    """Score all candidates of some requests by models that share their transforms.

    Parameters
    ----------
    models : tuple of Model
        In eval mode, fitted with equal transforms.
    columns : Columns
        Requests and candidates.
    log : Log
        Where the columns come from.

    Returns
    -------
    list of ndarray ``[I]`` float32
        One per model: logits of the first task.
    """
    scores: list[list[Floats]] = [[] for _ in models]
    transforms = models[0].transforms
    assert transforms is not None
    sizes = np.diff(columns.candidates.offsets) * max(transforms.max_history, 1)
    piece = np.cumsum(sizes) // _PAIRS_PER_BATCH
    edges = np.flatnonzero(np.diff(piece, prepend=-1, append=-1))
    with torch.inference_mode():
        for start, stop in itertools.pairwise(edges):
            batch = transforms.batch(columns.slice(int(start), int(stop)), log)
            for model, found in zip(models, scores, strict=True):
                found.append(model(batch.inputs).logits[:, 0].numpy())
    return [np.concatenate(found) if found else np.zeros(0, np.float32) for found in scores]
