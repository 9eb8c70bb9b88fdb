"""Counter-based randomness: every draw is a pure function of its keys.

Order, sampling and shuffling are hashes of (seed, epoch, request row), so a run can be resumed at
any batch, and neither workers nor ranks can change what is drawn.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["hash64", "normal", "stream", "uniform"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MUL1 = np.uint64(0xBF58476D1CE4E5B9)
_MUL2 = np.uint64(0x94D049BB133111EB)


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Apply the splitmix64 finaliser (Steele, Lea and Flood, 2014)."""
    x = (x ^ (x >> np.uint64(30))) * _MUL1
    x = (x ^ (x >> np.uint64(27))) * _MUL2
    return x ^ (x >> np.uint64(31))


def stream(name: str) -> int:
    """Return the key of a named stream of draws, the same on every machine.

    Examples
    --------
    >>> stream("order") == stream("order"), stream("order") == stream("sampling")
    (True, False)
    """
    return zlib.crc32(name.encode())


def hash64(*keys: Any) -> npt.NDArray[np.uint64]:
    """Hash integer keys, scalars or arrays that broadcast together, to 64 random bits.

    Parameters
    ----------
    *keys : int or ndarray of integers
        For example seed, epoch and request rows ``[R]``; the order matters.

    Returns
    -------
    ndarray of uint64
        The broadcast shape of the keys.

    Examples
    --------
    >>> rows = np.arange(5)
    >>> bool((hash64(7, 0, rows)[3] == hash64(7, 0, 3)).all())
    True
    """
    state = np.zeros((), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for key in keys:
            value = np.asarray(key).astype(np.int64).view(np.uint64)
            state = _mix((state + _GOLDEN) ^ _mix(value + _GOLDEN))
    return state


def uniform(*keys: Any) -> npt.NDArray[np.float64]:
    """Draw from [0, 1) as a pure function of the keys, 53 bits each.

    Examples
    --------
    >>> u = uniform(1, 2, np.arange(100_000))
    >>> bool(abs(u.mean() - 0.5) < 0.005), bool((u < 1).all())
    (True, True)
    """
    draws: npt.NDArray[np.float64] = (hash64(*keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return draws


def normal(*keys: Any) -> npt.NDArray[np.float64]:
    """Draw standard normal numbers as a pure function of the keys (Box and Muller).

    Examples
    --------
    >>> z = normal(3, np.arange(100_000))
    >>> bool(abs(z.mean()) < 0.02), bool(abs(z.std() - 1) < 0.02)
    (True, True)
    """
    radius = np.sqrt(-2.0 * np.log1p(-uniform(*keys, 0)))
    angle: npt.NDArray[np.float64] = radius * np.cos(2.0 * np.pi * uniform(*keys, 1))
    return angle
