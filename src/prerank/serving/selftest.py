"""What a bundle must say: raw requests, and what the models said when it was made.

Shapes: ``I`` candidates, ``T`` tasks.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from prerank.serving.messages import Id, RankRequest

__all__ = ["SelfTest", "Vector", "Vectors", "agreement", "difference"]

TOP_K = 50
"""First places whose agreement is counted."""


class Vector(msgspec.Struct, frozen=True):
    """One request and what is expected of it.

    Parameters
    ----------
    request : RankRequest
        Raw.
    logits : list of list of list of float
        Of each tier, every candidate ``[I]``, every task ``[T]``.
    order : list of id
        The cascade's final order.
    """

    request: RankRequest
    logits: list[list[list[float]]]
    order: list[Id]


class Vectors(msgspec.Struct, frozen=True):
    """All of a bundle, and what differences its stored states may make.

    Parameters
    ----------
    vectors : list of Vector
    bound : float
        Largest difference of a logit over ``1 + |logit|``.
    agreement : float
        Least mean share of the first places.
    """

    vectors: list[Vector]
    bound: float
    agreement: float


class SelfTest(msgspec.Struct, frozen=True):
    """What the self-test found.

    Parameters
    ----------
    ok : bool
        Whether every bound was kept.
    num_requests : int
        Requests compared.
    max_difference : float
        Largest difference of a logit from the stored one, over ``1 + |stored|``, all tiers.
    bound : float
        What it may be.
    agreement : float
        Share of the stored first places that the engine gives too.
    message : str
        One line; empty if ok.
    """

    ok: bool
    num_requests: int
    max_difference: float
    bound: float
    agreement: float
    message: str = ""


def difference(found: npt.ArrayLike, expected: npt.ArrayLike) -> float:
    """Return the largest ``|found - expected| / (1 + |expected|)``; inf where one is not finite.

    Examples
    --------
    >>> difference([1.0, 3.5], [1.0, 3.0])
    0.125
    """
    a, b = np.asarray(found, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if a.shape != b.shape or not np.isfinite(a).all():
        return float("inf")
    return float((np.abs(a - b) / (1 + np.abs(b))).max(initial=0.0))


def agreement(found: Sequence[Id], expected: Sequence[Id], k: int = TOP_K) -> float:
    """Return the share of the first ``k`` that two orders have in common; 1 for empty ones.

    Examples
    --------
    >>> agreement([1, 2, 3], [2, 1, 4], k=2), agreement([1, 2, 3], [2, 1, 4])
    (1.0, 0.6666666666666666)
    """
    first = set(expected[:k])
    return len(first & set(found[:k])) / len(first) if first else 1.0
