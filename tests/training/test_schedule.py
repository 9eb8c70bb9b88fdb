from __future__ import annotations

import itertools
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prerank.training.schedule import Plateau, ScheduleKind, multiplier


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_warm_up_is_a_line_that_ends_at_one(kind: ScheduleKind) -> None:
    values = [multiplier(s, kind=kind, warmup_steps=5, total_steps=20) for s in range(6)]
    assert values == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_cosine_values() -> None:
    at = [multiplier(s, kind="cosine", warmup_steps=2, total_steps=14) for s in (2, 5, 8, 11, 14)]
    half = math.sqrt(2) / 2
    expected = [1.0, (1 + half) / 2, 0.5, (1 - half) / 2, 0.0]
    assert at == pytest.approx(expected, abs=1e-12)


def test_linear_values() -> None:
    at = [multiplier(s, kind="linear", total_steps=4) for s in range(6)]
    assert at == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]


def test_constant_stays() -> None:
    assert {multiplier(s, total_steps=3) for s in range(10)} == {1.0}


def test_a_warm_up_as_long_as_the_run_never_divides_by_zero() -> None:
    assert multiplier(4, kind="cosine", warmup_steps=4, total_steps=4) == 1.0


@given(st.sampled_from(["linear", "cosine"]), st.integers(0, 20), st.integers(1, 50))
def test_decay_never_rises(kind: ScheduleKind, warmup: int, rest: int) -> None:
    steps = range(warmup, warmup + rest + 1)
    values = [
        multiplier(s, kind=kind, warmup_steps=warmup, total_steps=warmup + rest) for s in steps
    ]
    assert all(a >= b for a, b in itertools.pairwise(values))
    assert values[-1] == pytest.approx(0, abs=1e-12)


def _simulate(values: list[float], patience: int) -> float:
    """Count cuts the slow way: look back over the whole list."""
    cuts, since = 0, 0
    for k, value in enumerate(values):
        if all(value > earlier for earlier in values[:k]):
            since = 0
        else:
            since += 1
        if since == patience:
            cuts, since = cuts + 1, 0
    return 0.5**cuts


@given(st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5]), max_size=30), st.integers(1, 4))
def test_plateau_is_the_slow_count(values: list[float], patience: int) -> None:
    plateau = Plateau(patience=patience)
    for value in values:
        plateau = plateau.after(value)
        # A checkpoint at any time does not change what follows.
        plateau = msgspec.json.decode(msgspec.json.encode(plateau), type=Plateau)
    assert plateau.scale == _simulate(values, patience)
