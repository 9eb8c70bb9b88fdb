"""How imported logs are split."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["BY_TIME", "by_time"]

BY_TIME = "by time: first 80 % of the requests train, next 10 % valid, last 10 % test"
"""The rule in words."""


def by_time(time: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.int64]]:
    """Split requests 80/10/10 by time; requests of one moment stay together.

    Parameters
    ----------
    time : ndarray ``[R]`` int64
        Times of all requests, ascending.

    Examples
    --------
    >>> {name: len(rows) for name, rows in by_time(np.arange(20)).items()}
    {'train': 16, 'valid': 2, 'test': 2}
    """
    num = len(time)
    low, high = (int(np.searchsorted(time, time[num * tenths // 10])) for tenths in (8, 9))
    rows = np.arange(num)
    return {"train": rows[:low], "valid": rows[low:high], "test": rows[high:]}
