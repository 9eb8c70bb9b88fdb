"""Learning-rate schedules: pure functions of the step, and the plateau cut."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from prerank.config import Config

__all__ = ["Plateau", "ScheduleKind", "multiplier"]

ScheduleKind = Literal["constant", "linear", "cosine"]


def multiplier(
    step: int, *, kind: ScheduleKind = "constant", warmup_steps: int = 0, total_steps: int
) -> float:
    """Return the factor of the learning rate at a step.

    The factor climbs linearly over the first ``warmup_steps`` steps (``1/warmup_steps`` at step 0,
    1 at the last), then stays (``constant``) or falls to 0 at ``total_steps``, on a line
    (``linear``) or on half a cosine (``cosine``: Loshchilov and Hutter, "SGDR", 2017, without
    restarts).

    Parameters
    ----------
    step : int
        0-based number of the update.
    kind : {"constant", "linear", "cosine"}
        The shape after the warm-up.
    warmup_steps, total_steps : int
        Lengths in updates.

    Examples
    --------
    >>> [multiplier(s, warmup_steps=4, total_steps=10) for s in (0, 3, 9)]
    [0.25, 1.0, 1.0]
    >>> [multiplier(s, kind="linear", warmup_steps=2, total_steps=10) for s in (2, 6, 10)]
    [1.0, 0.5, 0.0]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if kind == "constant":
        return 1.0
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return 1.0 - done if kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


class Plateau(Config, frozen=True):
    """Cuts the learning rate when the validation metric stops improving.

    A value, not an object that changes: :meth:`after` returns the next one, so it is stored in a
    checkpoint like any other value.

    Parameters
    ----------
    patience : int
        Evaluations in a row without a new best before a cut.
    factor : float, default 0.5
        What a cut multiplies the learning rate with.
    scale : float
        Product of the cuts so far: the factor to apply.
    best : float, optional
        Best value seen (larger is better), None before the first.
    waited : int
        Evaluations since the last new best or cut.

    Examples
    --------
    >>> plateau = Plateau(patience=2)
    >>> for value in (0.6, 0.6, 0.59):
    ...     plateau = plateau.after(value)
    >>> plateau.scale, plateau.waited, plateau.best
    (0.5, 0, 0.6)
    """

    patience: int
    factor: float = 0.5
    scale: float = 1.0
    best: float | None = None
    waited: int = 0

    def after(self, value: float) -> Plateau:
        """Return the state after an evaluation whose metric (larger is better) is ``value``."""
        if self.best is None or value > self.best:
            return msgspec.structs.replace(self, best=value, waited=0)
        if self.waited + 1 < self.patience:
            return msgspec.structs.replace(self, waited=self.waited + 1)
        return msgspec.structs.replace(self, scale=self.scale * self.factor, waited=0)
