"""Buckets of distance and of time, in whole numbers.

A bucket is chosen by integer comparison and by the exponent bits of a float: never by a logarithm,
whose last bit may differ between the vector and the scalar code of one kernel and would then move a
pair of tokens to another bucket, depending on where in the batch it lies.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["distance_buckets", "seconds", "time_bucket"]

_MAX_SECONDS = 2**31 - 1


def distance_buckets(longest: int, num_buckets: int) -> Tensor:
    """Return the bucket of each distance 0, 1, ..., ``longest``, int64.

    The first half of the buckets hold one distance each, the others grow by about a fifth each; the
    last one holds all that is further.

    Examples
    --------
    >>> distance_buckets(12, 6).tolist()
    [0, 1, 2, 3, 4, 5, 5, 5, 5, 5, 5, 5, 5]
    """
    half = num_buckets // 2
    first = list(range(half))
    while len(first) < num_buckets:
        first.append(max(first[-1] + 1, first[-1] * 6 // 5) if first else 0)
    bounds = torch.tensor(first[1:], dtype=torch.int64)
    return torch.bucketize(torch.arange(longest + 1), bounds, right=True)


def seconds(age_ms: Tensor) -> Tensor:
    """Return whole seconds, int32, of an int64 age in milliseconds.

    Examples
    --------
    >>> seconds(torch.tensor([999, 2500]))
    tensor([0, 2], dtype=torch.int32)
    """
    whole = torch.div(age_ms, 1000, rounding_mode="floor")
    return whole.clamp(0, _MAX_SECONDS).to(torch.int32)


def time_bucket(elapsed: Tensor, num_buckets: int) -> Tensor:
    """Return the bucket of elapsed seconds (int32, any shape): one per doubling.

    Bucket 0 holds what is below a second (and anything negative), bucket ``b`` the seconds from
    ``2 ** (b - 1)`` on; the last one holds all that is longer. The open research code of HSTU
    doubles too.

    Examples
    --------
    >>> time_bucket(torch.tensor([-3, 0, 1, 2, 3, 4, 86400], dtype=torch.int32), 32).tolist()
    [0, 0, 1, 2, 2, 3, 17]
    """
    bits = elapsed.clamp(min=0).to(torch.float32).view(torch.int32)
    return bits.bitwise_right_shift_(23).sub_(126).clamp_(0, num_buckets - 1)
