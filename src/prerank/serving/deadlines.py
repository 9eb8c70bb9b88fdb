"""What a tier costs, learned while serving, and how many candidates fit into the time left.

The time of a tier is taken as ``a + b * candidates``: a line through what was measured lately
(exponentially weighted sums). A fixed part exists for any model; without it, requests that differ
in size would mislead a mean per candidate.
"""

from __future__ import annotations

import math
import threading

__all__ = ["TierCost"]

_DECAY = 0.97


class TierCost:
    """Cost of one tier; safe for several threads.

    Examples
    --------
    >>> cost = TierCost()
    >>> for num in (100, 200, 400, 800):
    ...     cost.add(num, 1e-3 + num * 1e-5)
    >>> round(cost.seconds(300), 6), cost.num_within(2.005e-3)
    (0.004, 100)
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._weight = self._n = self._t = self._nn = self._nt = 0.0

    def add(self, num: int, seconds: float) -> None:
        """Take in one measurement."""
        if num <= 0 or not seconds >= 0:
            return
        with self._lock:
            self._weight = _DECAY * self._weight + 1.0
            self._n = _DECAY * self._n + num
            self._t = _DECAY * self._t + seconds
            self._nn = _DECAY * self._nn + num * num
            self._nt = _DECAY * self._nt + num * seconds

    @property
    def line(self) -> tuple[float, float]:
        """``(a, b)`` in seconds, neither below 0; zeros before anything was measured."""
        with self._lock:
            w, n, t, nn, nt = self._weight, self._n, self._t, self._nn, self._nt
        if not w:
            return 0.0, 0.0
        spread = w * nn - n * n
        if spread > 1e-3 * n * n:
            b = (w * nt - n * t) / spread
            a = (t - b * n) / w
            if a >= 0 and b >= 0:
                return a, b
        return 0.0, t / n

    @property
    def us_per_candidate(self) -> float:
        """Microseconds per candidate, at the sizes seen lately."""
        with self._lock:
            return 1e6 * self._t / self._n if self._n else 0.0

    def seconds(self, num: float) -> float:
        """Return what so many candidates are expected to take."""
        a, b = self.line
        return a + b * num if num > 0 else 0.0

    def num_within(self, seconds: float) -> int:
        """Return how many candidates are expected to fit; a lot before anything was measured."""
        a, b = self.line
        if seconds <= a:
            return 0 if a or seconds < 0 else 1 << 40
        return 1 << 40 if b <= 0 else math.floor((seconds - a) / b)
