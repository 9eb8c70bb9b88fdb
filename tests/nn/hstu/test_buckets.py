from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from prerank.nn.hstu.buckets import distance_buckets, seconds, time_bucket


@given(st.integers(-(2**31), 2**31 - 1), st.integers(1, 40))
def test_time_doubles(elapsed: int, num_buckets: int) -> None:
    """The bucket is the number of binary digits; rounding to float32 may reach the next one."""
    bucket = int(time_bucket(torch.tensor([elapsed], dtype=torch.int32), num_buckets))
    nearest = int(torch.tensor(max(elapsed, 0), dtype=torch.int32).to(torch.float32).item())
    assert bucket == min(nearest.bit_length(), num_buckets - 1)
    assert nearest.bit_length() - max(elapsed, 0).bit_length() in (0, 1)


def test_time_of_a_block_is_that_of_its_elements() -> None:
    """Vector and scalar code agree at every power of two: no logarithm is involved."""
    edges = [2**k + d for k in range(24) for d in (-1, 0, 1)]
    block = torch.tensor(edges, dtype=torch.int32)
    alone = torch.cat([time_bucket(x, 32) for x in block.split(1)])
    assert torch.equal(time_bucket(block, 32), alone)
    assert alone.tolist() == [min(e.bit_length(), 31) for e in edges]


@given(st.integers(1, 60), st.integers(0, 500))
def test_distances_keep_their_order_and_start_exact(num_buckets: int, longest: int) -> None:
    buckets = distance_buckets(longest, num_buckets)
    assert buckets.numel() == longest + 1
    assert buckets[0] == 0
    assert bool(((buckets.diff() == 0) | (buckets.diff() == 1)).all())
    assert int(buckets.max()) <= num_buckets - 1
    exact = min(num_buckets // 2, longest + 1)
    assert buckets[:exact].tolist() == list(range(exact))


def test_all_buckets_are_used() -> None:
    assert distance_buckets(400, 32).unique().numel() == 32


def test_seconds_stay_in_range() -> None:
    ages = torch.tensor([-5, 0, 1999, 2**60])
    assert seconds(ages).tolist() == [0, 0, 1, 2**31 - 1]
