"""Named streams of counter-based draws: each is a pure function of the seed, its name, its keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from prerank import rng

__all__ = ["Bools", "Draws", "Floats", "Ints", "unit"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Draws:
    """Draws of one seed.

    Examples
    --------
    >>> draws = Draws(3)
    >>> bool((draws.index("color", 4, np.arange(9))[5] == draws.index("color", 4, 5)).all())
    True
    """

    seed: int

    def uniform(self, name: str, *keys: Any) -> Floats:
        """Draw from [0, 1); shape: the keys broadcast together."""
        return rng.uniform(self.seed, rng.stream(name), *keys)

    def normal(self, name: str, *keys: Any) -> Floats:
        """Draw standard normal numbers; shape: the keys broadcast together."""
        return rng.normal(self.seed, rng.stream(name), *keys)

    def index(self, name: str, num: int, *keys: Any) -> Ints:
        """Draw integers from 0 to ``num - 1``, all equally likely."""
        return (self.uniform(name, *keys) * num).astype(np.int64)

    def weighted(self, name: str, weights: Floats, *keys: Any) -> Ints:
        """Draw indices of ``weights [N]`` in proportion to them."""
        edges = np.cumsum(weights)
        at = self.uniform(name, *keys) * edges[-1]
        index: Ints = np.searchsorted(edges[:-1], at, side="right")
        return index


def unit(vectors: Floats) -> Floats:
    """Scale vectors ``[..., D]`` to length 1."""
    scaled: Floats = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return scaled
