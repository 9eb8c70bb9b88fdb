"""Projection of conflicting gradients, between sources.

Source: PCGrad (Yu et al., NeurIPS 2020, arXiv 2001.06782): each task's gradient is projected onto
the plane normal to every other one that it conflicts with, in random order; the results are added
up. Sources of negatives as tasks, on mixed or grouped losses, is our reading of HAP's ablation.

A projected gradient is a combination of the original ones, so only their inner products are
needed: the whole rule is one weight per source and step.

Shapes: ``G`` sources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from prerank.config import Config as BaseConfig
from prerank.rng import hash64, stream
from prerank.training.combine.by_source import by_source, plain_sum
from prerank.training.combine.gradients import gradients, stack

__all__ = ["PCGrad", "projected_weights"]

_ORDER = stream("combine/pcgrad")


def projected_weights(products: Tensor, orders: Sequence[Sequence[int]]) -> tuple[list[float], int]:
    """Return what each gradient weighs in the sum of the projected ones, and how many conflict.

    Parameters
    ----------
    products : Tensor ``[G, G]``
        Inner products of the gradients.
    orders : sequence of ``G`` sequences of int
        For each gradient, the others in the order in which it is projected.

    Examples
    --------
    >>> products = torch.tensor([[1.0, -1.0], [-1.0, 4.0]])
    >>> projected_weights(products, [[1], [0]])
    ([2.0, 1.25], 1)
    """
    inner = products.tolist()
    num_sources = len(inner)
    totals = [0.0] * num_sources
    for g, order in enumerate(orders):
        mix = [float(k == g) for k in range(num_sources)]
        for h in order:
            dot = sum(mix[k] * inner[k][h] for k in range(num_sources))
            if dot < 0.0 < inner[h][h]:
                mix[h] -= dot / inner[h][h]
        totals = [total + part for total, part in zip(totals, mix, strict=True)]
    conflicts = sum(inner[g][h] < 0.0 for g in range(num_sources) for h in range(g))
    return totals, conflicts


class PCGrad:
    """Sum of the sources' gradients after each was freed of its conflicts with others.

    A backward pass per source, and all their gradients in memory at once: with four sources 2.3 to
    2.7 times the time of a step with the plain sum (measured on one CPU core, three models). Of
    several processes each projects the gradients of its own share. The positives' half of a mixed
    cross-entropy (``bce/positive``) belongs to no source and is projected as one more.

    Parameters
    ----------
    config : PCGrad.Config
        Seed, and what happens to tables.

    Examples
    --------
    >>> w = nn.Parameter(torch.zeros(2))
    >>> parts = {"nce/rank": w[0], "nce/random": 2 * w[1] - w[0]}
    >>> rule = PCGrad()
    >>> total = rule(parts, [w])
    >>> w.grad, rule.report()
    (tensor([0.8000, 2.4000]), {'conflicts': 1.0})
    """

    class Config(BaseConfig, frozen=True):
        """Options.

        Parameters
        ----------
        tables : {"project", "sum"}
            Whether sparse gradients (of tables) are projected with the dense ones, as one vector,
            or left out of it and added up.
        seed : int
            Of the order of projections; the order of a step is a function of both.
        """

        tables: Literal["project", "sum"] = "project"
        seed: int = 0

        def build(self) -> PCGrad:
            """Build the rule."""
            return PCGrad(self)

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or PCGrad.Config()
        self._calls = 0
        self._conflict_share = 0.0

    def total(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Return the sum of the parts."""
        return plain_sum(parts)

    def __call__(self, parts: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]) -> Tensor:
        """Fill ``.grad`` with the sum of projected gradients; return the sum of the parts."""
        sources = by_source(parts)
        per_source = [gradients(part, parameters) for part in sources.values()]
        stacked = [stack(grads) for grads in zip(*per_source, strict=True)]
        num_sources = len(sources)
        products = torch.zeros(num_sources, num_sources, dtype=torch.float64)
        for each in stacked:
            if each is not None and (each.rows is None or self.config.tables == "project"):
                products += each.products().cpu()
        orders = [self._order(g, num_sources) for g in range(num_sources)]
        self._calls += 1
        weights, conflicts = projected_weights(products, orders)
        pairs = num_sources * (num_sources - 1) // 2
        self._conflict_share = conflicts / pairs if pairs else 0.0
        weight_G = torch.tensor(weights, dtype=torch.float64)
        for parameter, each in zip(parameters, stacked, strict=True):
            if each is None:
                continue
            is_summed = each.rows is not None and self.config.tables == "sum"
            parameter.grad = each.mixed(
                torch.ones_like(weight_G) if is_summed else weight_G, parameter
            )
        return self.total(parts).detach()

    def _order(self, g: int, num_sources: int) -> list[int]:
        """Return the other sources in the order of this call."""
        drawn = hash64(_ORDER, self.config.seed, self._calls, g, np.arange(num_sources))
        return [h for h in np.argsort(drawn).tolist() if h != g]

    def report(self) -> dict[str, float]:
        """Return ``conflicts``, the share of pairs of sources whose gradients conflict."""
        return {"conflicts": self._conflict_share}

    def state_tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold: the number of calls."""
        return {"calls": torch.tensor(self._calls)}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to what :meth:`state_tensors` returned."""
        self._calls = int(tensors["calls"])
