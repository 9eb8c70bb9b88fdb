"""Online weights that hold each source's share of the gradient at a target.

Ours, beyond HAP: grouping gives each source a denominator of its own, but shares of the gradient
still follow how hard its negatives are. Here they are set.

With ``m`` the smoothed size of a source's gradient and ``w`` its weight, its share is
``w m / sum(w m)``. Each measurement multiplies ``w`` by ``(target / share)**rate``, lifts the
smallest weights to the largest over ``limit``, and scales all to average 1, so that the weights
alone do not change the size of the step. A rate of 1 jumps to where the shares are the targets (if
``limit`` allows); less follows slowly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec
import torch
from torch import Tensor, nn

from prerank.config import Config as BaseConfig
from prerank.errors import InputError, did_you_mean
from prerank.training.combine.by_source import (
    Measure,
    Meter,
    backward,
    by_source,
    plain_sum,
    unit_mean,
)

__all__ = ["Harmonised"]

_WEIGHT = "weight/"


class Harmonised:
    """Multiplicative weights by source; the reported loss is the plain sum of the parts.

    Parameters
    ----------
    config : Harmonised.Config
        Targets, what is measured, how fast weights move.

    Examples
    --------
    >>> w = nn.Parameter(torch.ones(2))
    >>> rule = Harmonised.Config(measure="dense", targets={"rank": 3.0}, rate=1.0).build()
    >>> total = rule({"nce/rank": 2 * w[0], "nce/random": w[1]}, [w])
    >>> {name: round(weight, 3) for name, weight in rule.weights.items()}
    {'rank': 1.2, 'random': 0.8}
    >>> w.grad
    tensor([2.4000, 0.8000])
    """

    class Config(BaseConfig, frozen=True):
        """Options.

        Parameters
        ----------
        targets : dict of str to float
            Relative shares of sources, > 0; default 1, so equal shares.
        measure : {"logit", "dense"}
            Shares of what: of how much scores are pushed down (nearly free), or of gradient norms
            on dense parameters (a backward pass per source at each measurement).
        every : int
            Updates from one measurement to the next.
        momentum : float
            How much of the smoothed size a measurement keeps, in [0, 1).
        rate : float
            How much of the way to the target a measurement goes, in (0, 1], in logs.
        limit : float
            Largest weight over smallest, at most.
        fixed : tuple of str
            Names after the slash of parts that keep weight 1.
        """

        targets: dict[str, float] = msgspec.field(default_factory=dict)
        measure: Measure = "logit"
        every: int = 1
        momentum: float = 0.9
        rate: float = 0.1
        limit: float = 100.0
        fixed: tuple[str, ...] = ("positive",)

        def build(self) -> Harmonised:
            """Build the rule."""
            return Harmonised(self)

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or Harmonised.Config()
        c = self.config
        for name, target in c.targets.items():
            if not 0.0 < target < math.inf:
                raise InputError(f"combine: target of '{name}' is {target}; expected above 0")
        if not 0.0 < c.rate <= 1.0:
            raise InputError(f"combine: rate is {c.rate}; expected above 0, at most 1")
        if not c.limit >= 1.0:
            raise InputError(f"combine: limit is {c.limit}; expected 1 or more")
        self._meter = Meter(c.measure, every=c.every, momentum=c.momentum, fixed=c.fixed)
        self._logits: Tensor | None = None
        self.weights: dict[str, float] = {}

    @property
    def shares(self) -> dict[str, float]:
        """Share of the gradient by source, as smoothed and weighted now."""
        sizes = {
            name: self.weights.get(name, 1.0) * size for name, size in self._meter.sizes.items()
        }
        whole = math.fsum(sizes.values())
        return {name: size / whole for name, size in sizes.items()}

    def total(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Return the sum of the parts."""
        return plain_sum(parts)

    def watch(self, logits: Tensor) -> None:
        """Take the logits ``[I, T]`` that the next parts come from."""
        self._logits = logits

    def __call__(self, parts: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]) -> Tensor:
        """Measure if it is time to, back-propagate the weighted sum; return the plain one.

        Raises
        ------
        InputError
            A target names a source that the objective has no part of.
        """
        sources = by_source(parts)
        for name in self.config.targets:
            if name not in sources or name in self.config.fixed:
                known = [source for source in sources if source not in self.config.fixed]
                raise InputError(
                    f"combine: target of source '{name}', which the objective has no part of; "
                    f"{did_you_mean(name, known)}"
                )
        if self._meter.update(sources, parameters, self._logits):
            self._follow()
        self._logits = None
        backward(sources, self.weights)
        return self.total(parts).detach()

    def _follow(self) -> None:
        """Move the weights towards the targets."""
        config, shares = self.config, self.shares
        if not shares:
            return
        goals = {name: config.targets.get(name, 1.0) for name in shares}
        whole = math.fsum(goals.values())
        moved = {
            name: self.weights.get(name, 1.0) * (goals[name] / whole / share) ** config.rate
            for name, share in shares.items()
        }
        least = max(moved.values()) / config.limit
        self.weights = unit_mean({name: max(weight, least) for name, weight in moved.items()})

    def report(self) -> dict[str, float]:
        """Return ``weight/SOURCE`` and ``share/SOURCE``."""
        shares = {f"share/{name}": share for name, share in self.shares.items()}
        return {**{_WEIGHT + name: weight for name, weight in self.weights.items()}, **shares}

    def state_tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold."""
        weights = {
            _WEIGHT + name: torch.tensor(weight, dtype=torch.float64)
            for name, weight in self.weights.items()
        }
        return {**self._meter.state_tensors(), **weights}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to what :meth:`state_tensors` returned."""
        self._meter.load_state(tensors)
        self.weights = {
            name.removeprefix(_WEIGHT): float(tensor)
            for name, tensor in tensors.items()
            if name.startswith(_WEIGHT)
        }
