from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prerank.rng import hash64, normal, stream, uniform

KEYS = st.integers(-(2**63), 2**63 - 1)


def test_frozen_values() -> None:
    """Changing any of these changes every shuffle and sample of every stored run."""
    assert stream("order") == 4113142680
    assert int(hash64(0)) == 258863698125685209
    assert hash64(7, 3, np.array([0, 1, -1])).tolist() == [
        11354123414509658144,
        14333557711760511726,
        8343751682132996957,
    ]
    assert uniform(7, 3, np.arange(3)).tolist() == [
        0.6155082636339952,
        0.7770237205268551,
        0.19821772417608274,
    ]
    np.testing.assert_allclose(
        normal(7, 3, np.arange(3)),
        [0.20031725123751087, -0.3844778589005098, -0.47134909725785923],
        rtol=1e-14,
    )


def test_values_are_those_of_plain_integer_arithmetic() -> None:
    mask = 2**64 - 1

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    golden = 0x9E3779B97F4A7C15
    for keys in ((0,), (1, 2), (-5, 2**62, 7)):
        state = 0
        for key in keys:
            state = mix(((state + golden) & mask) ^ mix((key + golden) & mask))
        assert int(hash64(*keys)) == state


@given(KEYS, st.integers(0, 40), st.integers(1, 40))
def test_a_draw_does_not_depend_on_its_chunk(seed: int, start: int, size: int) -> None:
    whole = hash64(seed, 5, np.arange(100))
    np.testing.assert_array_equal(
        hash64(seed, 5, np.arange(start, start + size)), whole[start : start + size]
    )
    assert int(hash64(seed, 5, start)) == int(whole[start])
    np.testing.assert_array_equal(
        normal(seed, np.arange(start, start + size)),
        normal(seed, np.arange(100))[start : start + size],
    )


def test_keys_broadcast() -> None:
    rows, columns = np.arange(4)[:, None], np.arange(3)[None, :]
    grid = hash64(9, rows, columns)
    assert grid.shape == (4, 3)
    assert grid[2, 1] == hash64(9, 2, 1)
    assert hash64(9, np.arange(0)).shape == (0,)


def test_width_of_the_integer_type_does_not_matter() -> None:
    rows = np.arange(50)
    for kind in (np.int32, np.int8, np.uint16, np.uint64):
        np.testing.assert_array_equal(hash64(1, rows.astype(kind)), hash64(1, rows))


def test_order_and_number_of_keys_matter() -> None:
    assert len({int(hash64(*keys)) for keys in ((1, 2), (2, 1), (1,), (1, 2, 0), (0, 1, 2))}) == 5


def test_no_two_nearby_rows_collide() -> None:
    draws = hash64(np.arange(4)[:, None], np.arange(250_000)[None, :])
    assert np.unique(draws).size == 1_000_000


@pytest.mark.parametrize("keys", [(0,), (1,), (2**40, -3)])
def test_uniform_fills_its_bins_evenly(keys: tuple[int, ...]) -> None:
    draws = uniform(*keys, np.arange(256_000))
    assert draws.min() >= 0
    assert draws.max() < 1
    count = np.bincount((draws * 256).astype(int), minlength=256)
    chi_square = ((count - 1000) ** 2 / 1000).sum()
    assert abs(chi_square - 255) < 4 * math.sqrt(2 * 255)


def test_every_bit_is_fair() -> None:
    draws = hash64(3, np.arange(100_000))
    bits = (draws[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 4.5 * 0.5 / math.sqrt(100_000)


def test_one_flipped_key_bit_flips_half_of_the_draw() -> None:
    rows = np.arange(2000)
    base = hash64(5, rows)
    for bit in range(62):
        flipped = base ^ hash64(5, rows ^ (1 << bit))
        share = ((flipped[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)).mean()
        assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(2000 * 64), bit


def test_seeds_epochs_and_neighbours_are_uncorrelated() -> None:
    rows = np.arange(100_000)
    first = uniform(0, 0, rows)
    for other in (uniform(1, 0, rows), uniform(0, 1, rows), uniform(0, 0, rows + 1)):
        assert abs(np.corrcoef(first, other)[0, 1]) < 4.5 / math.sqrt(rows.size)


def test_normal_has_the_moments_and_tails_of_its_name() -> None:
    z = normal(11, np.arange(400_000))
    assert np.isfinite(z).all()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - moment) < 4.5 * math.sqrt(variance / z.size)
    for bound in (0.5, 1.0, 2.0, 3.0):
        share = math.erfc(bound / math.sqrt(2))
        error = math.sqrt(share * (1 - share) / z.size)
        assert abs((np.abs(z) > bound).mean() - share) < 4.5 * error


def test_streams_differ_by_name() -> None:
    names = ["order", "sampling", "world/users", "world/items", ""]
    assert len({stream(name) for name in names}) == len(names)
