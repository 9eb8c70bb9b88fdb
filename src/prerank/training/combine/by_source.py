"""Parts by the source they are named after, and how large each source's gradient is.

Shapes: ``I`` candidates, ``T`` tasks, ``G`` sources.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from prerank.errors import InputError
from prerank.training import distributed

__all__ = ["Measure", "Meter", "backward", "by_source", "plain_sum", "unit_mean"]

Measure = Literal["logit", "dense"]


def by_source(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add up the parts of each source: what follows the slash of a part's name.

    Examples
    --------
    >>> one = torch.tensor(1.0)
    >>> by_source({"nce/rank": one, "bce/rank": one, "bce/positive": one})
    {'rank': tensor(2.), 'positive': tensor(1.)}
    """
    found: dict[str, Tensor] = {}
    for name, part in parts.items():
        source = name.partition("/")[2] or name
        found[source] = found[source] + part if source in found else part
    return found


def plain_sum(parts: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of all parts: the loss to report, comparable whatever the weights do."""
    return torch.stack(list(parts.values())).sum()


def backward(sources: Mapping[str, Tensor], weights: Mapping[str, float]) -> None:
    """Fill ``.grad`` from the weighted sum over sources; a source that is not named weighs 1."""
    weighted = [weights.get(name, 1.0) * part for name, part in sources.items()]
    total = torch.stack(weighted).sum()
    # A batch in which no candidate carries evidence has nothing to learn from.
    if total.requires_grad:
        total.backward()  # type: ignore[no-untyped-call]


def unit_mean(weights: Mapping[str, float]) -> dict[str, float]:
    """Scale positive weights so that they average 1.

    Examples
    --------
    >>> unit_mean({"rank": 1.0, "random": 3.0})
    {'rank': 0.5, 'random': 1.5}
    """
    factor = len(weights) / math.fsum(weights.values()) if weights else 1.0
    return {name: factor * weight for name, weight in weights.items()}


class Meter:
    """A smoothed size of each source's gradient, measured every few calls.

    Parameters
    ----------
    measure : {"logit", "dense"}
        ``logit``: how much a source pushes scores down, the sum of the positive ``dL/ds``. Of a
        softmax or cross-entropy that is its negatives' side. It stops at the scores, so for four
        sources it costs about 5 % of a light model's step. ``dense``: L2 norm of the gradient of
        its parts over all parameters but those with sparse gradients (tables); a backward pass per
        source: 2.7 to 3.1 times the step, so every tenth step 10 to 20 %.
    every : int
        Calls from one measurement to the next.
    momentum : float
        How much of the smoothed size a measurement keeps, in [0, 1).
    fixed : tuple of str
        Names that are no sources: they are not measured.

    Attributes
    ----------
    sizes : dict of str to float
        By source; those without a gradient so far are absent.

    Notes
    -----
    Of several processes the mean of their sizes counts, the same number in all of them. Under an
    objective that divides by the weight of the whole batch, the mean of ``logit`` sizes is that of
    the whole batch; the mean of norms is not the norm of the mean.

    Examples
    --------
    >>> logits = torch.tensor([[1.0], [0.0]], requires_grad=True)
    >>> meter = Meter("logit", every=1, momentum=0.0, fixed=())
    >>> meter.update({"rank": 3 * logits[1, 0] - logits[0, 0]}, [], logits)
    True
    >>> meter.sizes
    {'rank': 3.0}
    """

    def __init__(
        self, measure: Measure, *, every: int, momentum: float, fixed: tuple[str, ...]
    ) -> None:
        if every < 1:
            raise InputError(f"combine: every is {every}; expected 1 or more")
        if not 0.0 <= momentum < 1.0:
            raise InputError(f"combine: momentum is {momentum}; expected 0 or more, below 1")
        self.measure = measure
        self.every = every
        self.momentum = momentum
        self.fixed = fixed
        self.calls = 0
        self.sizes: dict[str, float] = {}
        self._is_sparse: set[int] = set()

    def update(
        self,
        sources: Mapping[str, Tensor],
        parameters: Sequence[nn.Parameter],
        logits: Tensor | None,
    ) -> bool:
        """Measure if it is time to; return whether it was.

        Parameters
        ----------
        sources : mapping of str to Tensor
            From :func:`by_source`; their graph is kept.
        parameters : sequence of Parameter
            For ``dense``.
        logits : Tensor ``[I, T]``, optional
            For ``logit``.
        """
        self.calls += 1
        if (self.calls - 1) % self.every:
            return False
        measured = {name: part for name, part in sources.items() if name not in self.fixed}
        if not measured:
            return False
        like = next(iter(measured.values()))
        sizes_G = torch.zeros(len(measured), dtype=torch.float64, device=like.device)
        for k, part in enumerate(measured.values()):
            if part.requires_grad:
                sizes_G[k] = self._size(part, parameters, logits)
        for name, size in zip(measured, distributed.average(sizes_G).tolist(), strict=True):
            if not (math.isfinite(size) and size > 0.0):
                continue  # nothing of this source in the batch
            before = self.sizes.get(name, size)
            self.sizes[name] = self.momentum * before + (1.0 - self.momentum) * size
        return True

    def _size(
        self, part: Tensor, parameters: Sequence[nn.Parameter], logits: Tensor | None
    ) -> Tensor:
        if self.measure == "logit":
            assert logits is not None, "the measure 'logit' needs the scores: call watch first"
            (pull,) = torch.autograd.grad(
                part, logits, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            return pull.clamp(min=0.0).sum(dtype=torch.float64)
        wanted = [k for k in range(len(parameters)) if k not in self._is_sparse]
        grads = torch.autograd.grad(
            part, [parameters[k] for k in wanted], retain_graph=True, allow_unused=True
        )
        found = [(k, grad) for k, grad in zip(wanted, grads, strict=True) if grad is not None]
        self._is_sparse |= {k for k, grad in found if grad.is_sparse}
        norms = torch._foreach_norm([grad for _, grad in found if not grad.is_sparse])
        return (
            torch.stack([norm.double() for norm in norms]).norm() if norms else part.new_zeros(())
        )

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the number of calls and the sizes."""
        sizes = {
            f"size/{name}": torch.tensor(size, dtype=torch.float64)
            for name, size in self.sizes.items()
        }
        return {"calls": torch.tensor(self.calls), **sizes}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to what :meth:`state_tensors` returned."""
        self.calls = int(tensors["calls"])
        prefix = "size/"
        self.sizes = {
            name.removeprefix(prefix): float(tensor)
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
