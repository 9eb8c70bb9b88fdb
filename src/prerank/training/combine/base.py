"""What training asks of a combine rule, and what a rule may ask of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

__all__ = ["Combine", "Reporting", "Watching"]


class Combine(Protocol):
    """What training asks of a combine rule.

    A rule that remembers something belongs to one training and is
    :class:`~prerank.training.checkpoint.Stateful`, so that a resumed training goes on bit for bit.
    """

    def total(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Return the scalar to report as the loss, differentiable where the parts are."""
        ...

    def __call__(self, parts: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]) -> Tensor:
        """Fill ``.grad`` of the parameters from the scalar parts; return the detached total.

        ``.grad`` is None on entry. A parameter that no part depends on keeps None.
        """
        ...


@runtime_checkable
class Watching(Protocol):
    """A rule that wants to see the scores before each call."""

    def watch(self, logits: Tensor) -> None:
        """Take the logits ``[I, T]`` that the next parts come from, with their graph."""
        ...


@runtime_checkable
class Reporting(Protocol):
    """A rule that has something to say after each call."""

    def report(self) -> dict[str, float]:
        """Return named numbers for the training log (``weight/SOURCE``)."""
        ...
