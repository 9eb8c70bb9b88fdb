"""Sources weighted by the inverse of their gradient norms.

Source: in the manner of GradNorm (Chen et al., ICML 2018, arXiv 1711.02257), without its learned
weights and training rates. That HAP's ablation contains such a baseline is inferred.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from prerank.config import Config as BaseConfig
from prerank.training.combine.by_source import (
    Measure,
    Meter,
    backward,
    by_source,
    plain_sum,
    unit_mean,
)

__all__ = ["InverseNorm"]


class InverseNorm:
    """Weights proportional to one over the smoothed gradient norm of a source, averaging 1.

    Sources then pull equally hard, whatever direction they pull in. The reported loss is the plain
    sum of the parts.

    Parameters
    ----------
    config : InverseNorm.Config
        What is measured and how often.

    Examples
    --------
    >>> import torch
    >>> w = nn.Parameter(torch.ones(2))
    >>> rule = InverseNorm.Config(every=1).build()
    >>> total = rule({"nce/rank": 3 * w[0], "nce/random": w[1]}, [w])
    >>> rule.weights, w.grad
    ({'rank': 0.5, 'random': 1.5}, tensor([1.5000, 1.5000]))
    """

    class Config(BaseConfig, frozen=True):
        """Options.

        Parameters
        ----------
        measure : {"dense", "logit"}
            Whose norm: gradients of dense parameters (a backward pass per source at each
            measurement), or how much a source pushes scores down (nearly free).
        every : int
            Updates from one measurement to the next.
        momentum : float
            How much of the smoothed norm a measurement keeps, in [0, 1).
        fixed : tuple of str
            Names after the slash of parts that keep weight 1.
        """

        measure: Measure = "dense"
        every: int = 10
        momentum: float = 0.9
        fixed: tuple[str, ...] = ("positive",)

        def build(self) -> InverseNorm:
            """Build the rule."""
            return InverseNorm(self)

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or InverseNorm.Config()
        c = self.config
        self._meter = Meter(c.measure, every=c.every, momentum=c.momentum, fixed=c.fixed)
        self._logits: Tensor | None = None

    @property
    def weights(self) -> dict[str, float]:
        """Weight by source; empty before the first measurement."""
        return unit_mean({name: 1.0 / size for name, size in self._meter.sizes.items()})

    def total(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Return the sum of the parts."""
        return plain_sum(parts)

    def watch(self, logits: Tensor) -> None:
        """Take the logits ``[I, T]`` that the next parts come from."""
        self._logits = logits

    def __call__(self, parts: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]) -> Tensor:
        """Measure if it is time to, back-propagate the weighted sum; return the plain one."""
        sources = by_source(parts)
        self._meter.update(sources, parameters, self._logits)
        self._logits = None
        backward(sources, self.weights)
        return self.total(parts).detach()

    def report(self) -> dict[str, float]:
        """Return ``weight/SOURCE``."""
        return {f"weight/{name}": weight for name, weight in self.weights.items()}

    def state_tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold."""
        return self._meter.state_tensors()

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to what :meth:`state_tensors` returned."""
        self._meter.load_state(tensors)
