"""Gradient-harmonised contrastive learning: per-source InfoNCE plus cross-entropy, and variants.

Source: HAP (arXiv 2603.03770). The authors' figure shows "InfoNCE Loss + BCE" for each source of
negatives, four for the light model, exposed and rank for the expressive one [stated]; one softmax
per source [third-party digest]. Temperature, weights, the share of BCE, which sources it covers and
all constants are not public: defaults here are inferred. The mixed losses are what the ablation
compares with; density and focal weights follow the papers named in :mod:`.density` and
:mod:`.focal`, their use here is inferred.

Shapes: ``R`` requests, ``I`` candidates, ``P`` positives, ``N`` negatives, ``G`` sources.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Literal

import msgspec
import torch
from torch import Tensor

from prerank.batch import RequestBatch, Scores
from prerank.config import Config as BaseConfig
from prerank.errors import InputError
from prerank.objectives.base import (
    Normaliser,
    check_names,
    check_weights,
    divided,
    local_weight,
    scores_of,
)
from prerank.objectives.contrast import Contrast
from prerank.objectives.cross_entropy import cross_entropy_sums
from prerank.objectives.density import Density, Weigh
from prerank.objectives.members import Roles
from prerank.schema import Schema

__all__ = ["GHCL"]

Grouping = Literal["grouped", "mixed"]
Scope = Literal["request", "batch"]


class GHCL:
    """InfoNCE and cross-entropy by source of the negatives: ``nce/SOURCE`` and ``bce/SOURCE``.

    **Grouped.** ``nce/g`` is a softmax of each positive against the request's negatives of source
    ``g`` alone: the mean over positives of a request, then over requests that have both. ``bce/g``
    is the mean over positives plus the mean over negatives of ``g``, in the batch.

    **Mixed.** One softmax against the negatives of all sources, one weighted mean of
    cross-entropies over all candidates. The parts divide this one loss: their values and gradients
    sum to its, and each has the gradient that its source causes (see :mod:`.contrast`); the
    positives' half of the cross-entropy is ``bce/positive``. So combine rules and diagnosis work
    alike on every variant.

    ``evidence.weight`` weighs positives and negatives, only ratios count: a request counts by the
    mean weight of its positives, a negative in a denominator by its weight over the mean of those
    of its source. A weight of 0 is as if the candidate were not there.

    Parameters
    ----------
    schema : Schema
        Sources and tasks.
    config : GHCL.Config
        Which variant.

    Examples
    --------
    >>> from prerank.schema import Label
    >>> schema = Schema(labels=(Label(name="click"),))
    >>> objective = GHCL.Config(sources=("exposed", "rank"), bce=0.3).build(schema)
    >>> objective.sources
    ('exposed', 'rank')
    """

    per_impression = False
    logged: frozenset[str] = frozenset()

    class Config(BaseConfig, frozen=True):
        """Options; every variant of the ablation is one of these.

        Parameters
        ----------
        model : str, optional
            Whose scores; needed when several models train together.
        task : str, optional
            Whose targets say what is positive, and whose logits are read. None: what the log calls
            engaged, and the first task's logits.
        sources : tuple of str, optional
            Sources of negatives; None: all of the schema.
        grouping : {"grouped", "mixed"}
            One softmax per source, or one for all.
        nce, bce : float
            Factors of both kinds; 0 leaves one out.
        bce_grouping : {"grouped", "mixed"}, optional
            None: as ``grouping``.
        bce_sources : tuple of str, optional
            Those of ``sources`` that the cross-entropy covers; None: all.
        temperature : float or dict of str to float
            Differences of logits are divided by it, > 0; by source, default 1.
        source_weights : dict of str to float
            Factor of the parts of a source, or of ``positive``; default 1.
        denominator_weights : dict of str to float
            Factor of a source's terms in the mixed denominator, > 0; default 1.
        scope : {"request", "batch"} or dict of str to that
            ``batch``: denominators hold the negatives of a source of all requests of the batch (of
            this process's share), as scored for their own requests: scores of unlike requests
            become comparable, and an item may be negative there and positive here.
        log_q : bool
            Subtract the log of ``evidence.sample_prob`` from each negative's logit (divided by the
            temperature): denominators then estimate sums over all that was sampled from.
        density : int, optional
            Bins of gradient-density weights, on the cross-entropy of each candidate and on the
            softmax gradient of each negative (not on its value); in training only.
        density_momentum : float
            How much of the histogram an update keeps, in [0, 1).
        focal : float
            Exponent of the focal factor of both kinds, 0 or more.
        """

        model: str | None = None
        task: str | None = None
        sources: tuple[str, ...] | None = None
        grouping: Grouping = "grouped"
        nce: float = 1.0
        bce: float = 1.0
        bce_grouping: Grouping | None = None
        bce_sources: tuple[str, ...] | None = None
        temperature: float | dict[str, float] = 1.0
        source_weights: dict[str, float] = msgspec.field(default_factory=dict)
        denominator_weights: dict[str, float] = msgspec.field(default_factory=dict)
        scope: Scope | dict[str, Scope] = "request"
        log_q: bool = False
        density: int | None = None
        density_momentum: float = 0.75
        focal: float = 0.0

        def build(self, schema: Schema) -> GHCL:
            """Make the objective for a schema."""
            return GHCL(schema, self)

    def __init__(self, schema: Schema, config: Config) -> None:
        _check(schema, config)
        self.config = config
        self.normaliser: Normaliser = local_weight
        self.sources = schema.source_names if config.sources is None else config.sources
        self._task = 0 if config.task is None else schema.task_names.index(config.task)
        self._roles = Roles(schema, self.sources, config.task)
        tau, scope = config.temperature, config.scope
        taus = tau if isinstance(tau, dict) else dict.fromkeys(self.sources, tau)
        scopes = scope if isinstance(scope, dict) else dict.fromkeys(self.sources, scope)
        self._contrast = Contrast(
            temperature=self._by_source(taus),
            weight=self._by_source(config.denominator_weights),
            is_shared=torch.tensor([scopes.get(s, "request") == "batch" for s in self.sources]),
            is_mixed=config.grouping == "mixed",
            has_log_q=config.log_q,
            focal=config.focal,
        )
        self._weight_G = self._by_source(config.source_weights)
        covered = self.sources if config.bce_sources is None else config.bce_sources
        self._is_bce_G = torch.tensor([s in covered for s in self.sources])
        self._is_bce_mixed = (config.bce_grouping or config.grouping) == "mixed"
        self._densities: dict[str, Density] = {}
        if config.density is not None:
            kinds = [k for k, factor in (("nce", config.nce), ("bce", config.bce)) if factor]
            self._densities = {k: Density(config.density, config.density_momentum) for k in kinds}
        self._is_paused = False

    def _by_source(self, values: Mapping[str, float]) -> Tensor:
        return torch.tensor([values.get(s, 1.0) for s in self.sources], dtype=torch.float64)

    def __call__(self, scores: Mapping[str, Scores], batch: RequestBatch) -> dict[str, Tensor]:
        """Return ``nce/SOURCE``, ``bce/SOURCE`` and, of a mixed cross-entropy, ``bce/positive``.

        Parameters
        ----------
        scores : mapping of str to Scores
            By model; one column of ``logits [I, T]`` of the chosen one is read.
        batch : RequestBatch
            Reads ``evidence.source``, ``weight`` and, for some options, ``targets``, ``stage`` and
            ``sample_prob``.
        """
        return self._parts(scores, batch, is_pulled=True)

    def negative_side(self, scores: Mapping[str, Scores], batch: RequestBatch) -> dict[str, Tensor]:
        """Return a scalar per source whose gradient is that of its negatives alone.

        Positives take no gradient, and densities keep no note of the batch.
        """
        with self.paused():
            parts = self._parts(scores, batch, is_pulled=False)
        totals: dict[str, Tensor] = {}
        for name, part in parts.items():
            source = name.partition("/")[2]
            totals[source] = totals[source] + part if source in totals else part
        return totals

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave :meth:`state_tensors` as they are: for calls that are no update."""
        before, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = before

    def state_tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold: the histograms of gradient norms, if any."""
        return {f"density/{kind}": d.share for kind, d in self._densities.items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to what :meth:`state_tensors` returned."""
        for kind, density in self._densities.items():
            density.share = tensors[f"density/{kind}"].clone()

    def _parts(
        self, scores: Mapping[str, Scores], batch: RequestBatch, *, is_pulled: bool
    ) -> dict[str, Tensor]:
        config = self.config
        logit_I = scores_of(scores, config.model).logits[:, self._task]
        if logit_I.dtype in (torch.bfloat16, torch.float16):
            logit_I = logit_I.float()
        members = self._roles.find(batch, logit_I.dtype)
        nothing = logit_I.new_zeros(0)
        nce_G, nce_weight_G = nothing, nothing
        bce_K, bce_weight_K = nothing, nothing  # the positives, then every source
        if config.nce:
            nce_G, nce_weight_G = self._contrast(
                logit_I, members, self._weigh("nce"), is_pulled=is_pulled
            )
        if config.bce:
            bce_K, bce_weight_K = cross_entropy_sums(
                logit_I, members, self._is_bce_G, self._weigh("bce"), config.focal
            )
        # One call for all weights: processes exchange them once.
        weights = self.normaliser(torch.cat([nce_weight_G, bce_weight_K]))
        nce_weight_G, bce_weight_K = weights.tensor_split([len(nce_weight_G)])
        parts = {}
        if config.nce:
            nce_G = config.nce * self._weight_G.to(nce_G) * divided(nce_G, nce_weight_G)
            parts = {f"nce/{s}": nce_G[k] for k, s in enumerate(self.sources)}
        if config.bce:
            parts |= self._bce_parts(bce_K, bce_weight_K, is_pulled=is_pulled)
        return parts

    def _bce_parts(self, sum_K: Tensor, weight_K: Tensor, *, is_pulled: bool) -> dict[str, Tensor]:
        factor = self.config.bce
        if self._is_bce_mixed:
            weight_K = weight_K.sum().expand_as(weight_K)
        mean_K = factor * divided(sum_K, weight_K)
        positive, mean_G = mean_K[0], mean_K[1:]
        if is_pulled and not self._is_bce_mixed:
            # Where a source has no negatives, there is nothing to tell positives from.
            mean_G = mean_G + positive * (weight_K[1:] > 0)
        mean_G = mean_G * self._weight_G.to(mean_G)
        parts = {f"bce/{s}": mean_G[k] for k, s in enumerate(self.sources) if self._is_bce_G[k]}
        if is_pulled and self._is_bce_mixed:
            parts["bce/positive"] = positive * self.config.source_weights.get("positive", 1.0)
        return parts

    def _weigh(self, kind: str) -> Weigh | None:
        """Return how samples are weighted by density: nowhere outside of training."""
        density = self._densities.get(kind)
        if density is None or not torch.is_grad_enabled():
            return None
        is_kept = not self._is_paused

        def weigh(norm_N: Tensor, weight_N: Tensor) -> Tensor:
            return density.weights(norm_N, weight_N, self.normaliser, is_kept=is_kept)

        return weigh


def _check(schema: Schema, config: GHCL.Config) -> None:
    """Refuse options that name nothing, or that are out of range."""
    names = schema.source_names
    check_names("ghcl: sources", config.sources or (), names)
    chosen = names if config.sources is None else config.sources
    check_names("ghcl: bce_sources", config.bce_sources or (), chosen)
    check_names("ghcl: task", [config.task] if config.task else [], schema.task_names)
    factors = {"nce": config.nce, "bce": config.bce, "focal": config.focal}
    check_weights("ghcl", factors, factors)
    check_weights("ghcl: source_weights", config.source_weights, (*chosen, "positive"))
    check_weights("ghcl: denominator_weights", config.denominator_weights, chosen, is_positive=True)
    tau = config.temperature
    taus, known = (tau, chosen) if isinstance(tau, dict) else ({"all": tau}, ("all",))
    check_weights("ghcl: temperature", taus, known, is_positive=True)
    if isinstance(config.scope, dict):
        check_names("ghcl: scope", config.scope, chosen)
    if not chosen or len(set(chosen)) != len(chosen):
        raise InputError(f"ghcl: sources are {chosen}; expected one or more, each once")
    if not config.nce and not config.bce:
        raise InputError("ghcl: nce and bce are both 0; nothing would be learned")
    if config.denominator_weights and config.grouping == "grouped":
        raise InputError(
            "ghcl: denominator_weights belong to one mixed denominator; set grouping to mixed, or "
            "use source_weights"
        )
    if config.density is not None and config.density < 2:
        raise InputError(f"ghcl: density is {config.density}; expected 2 bins or more")
    if not 0.0 <= config.density_momentum < 1.0:
        raise InputError(
            f"ghcl: density_momentum is {config.density_momentum}; expected 0 or more, below 1"
        )
