"""Facts of single columns."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pyarrow as pa
import pytest

from prerank.log.impressions.infer.keys import agreement, has_word
from prerank.log.impressions.infer.profile import Profile, profile_of


def _profile(values: list[object], kind: pa.DataType | None = None) -> Profile:
    return profile_of("c", pa.chunked_array([pa.array(values, kind)]))


@pytest.mark.parametrize(
    ("factor", "unit"), [(1, "s"), (1_000, "ms"), (1_000_000, "us"), (1_000_000_000, "ns")]
)
def test_units_of_times_show_in_their_size(factor: int, unit: str) -> None:
    p = _profile([1_600_000_000 * factor, 1_600_086_400 * factor, None])
    assert p.times is not None
    assert p.times.unit == unit
    assert p.times.ms.tolist() == [1_600_000_000_000, 1_600_086_400_000, -1]
    assert p.times.span() == "2020-09-13 to 2020-09-14"


@pytest.mark.parametrize(
    "values",
    [
        ["2024-03-01T10:00:00+01:00", None],
        ["2024-03-01 09:00:00", None],
        [dt.datetime(2024, 3, 1, 9), None],
    ],
)
def test_times_in_words(values: list[object]) -> None:
    p = _profile(values)
    assert p.times is not None
    assert p.times.ms[0] == 1_709_283_600_000


@pytest.mark.parametrize(
    "values", [[20_240_301, 20_240_302], ["1 March", "2 March"], [True, False]]
)
def test_what_is_no_time(values: list[object]) -> None:
    assert _profile(values).times is None


@pytest.mark.parametrize(
    ("values", "separator"),
    [
        (["a|b", "b", "c|a", "b|c"], "|"),
        (["1,2", "2,3", "3,1", "1"] * 9, ","),
        (["rock pop", "pop jazz", "jazz rock", "rock"] * 9, " "),
        ([f"w{k * k % 997} w{k * 31 % 991} w{k * 17 % 983}" for k in range(300)], None),
        ([f"a-{k}" for k in range(40)], None),
        ([f"2024-01-{1 + k // 24:02d} {k % 24:02d}:00" for k in range(99)], None),
    ],
)
def test_separators_are_those_of_shared_parts(values: list[object], separator: str | None) -> None:
    p = _profile(values)
    assert p.separator == separator


def test_lists_vectors_and_row_numbers() -> None:
    assert _profile([[1, 2], [3], None]).num_parts == 3
    assert _profile([[0.5, 1.0], [2.0, 3.0]]).width == 2
    assert _profile(list(range(100))).is_row_number
    assert not _profile([k // 2 for k in range(100)]).is_row_number
    p = _profile([3.0, None, 3.0, float("nan"), 4.0])
    assert (p.num_distinct, p.num_null, p.is_whole, p.values) == (2, 2, True, (3.0, 4.0))


def test_agreement_is_a_loop() -> None:
    draw = np.random.default_rng(0)
    values, key = draw.integers(-1, 3, size=300), draw.integers(-1, 60, size=300)
    groups = [set(values[(key == k) & (values >= 0)].tolist()) for k in range(60)]
    sizes = [int(((key == k) & (values >= 0)).sum()) for k in range(60)]
    several = [g for g, n in zip(groups, sizes, strict=True) if n > 1]
    share = sum(len(g) == 1 for g in several) / len(several)
    assert agreement(values, key) == (pytest.approx(share), len(several))


def test_words_of_names() -> None:
    assert has_word("itemId", ["item"])
    assert has_word("video-id", ["video"])
    assert not has_word("reviewer", ["view"])
