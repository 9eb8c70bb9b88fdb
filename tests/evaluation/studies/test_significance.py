"""p values against SciPy; Holm against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from prerank.evaluation.studies.seeds import over_seeds
from prerank.evaluation.studies.significance import holm, paired_t, student_two_sided


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 30, 101])
def test_student_equals_scipy(degrees: int) -> None:
    for t in (0.0, 0.1, 1.0, 2.5, 7.0, 40.0):
        expected = 2 * stats.t.sf(t, degrees)
        assert student_two_sided(t, degrees) == pytest.approx(expected, abs=1e-13)
        assert student_two_sided(-t, degrees) == student_two_sided(t, degrees)


def test_paired_t_equals_scipy_and_knows_its_limits() -> None:
    draw = np.random.default_rng(0)
    for size in (2, 5, 6):
        a, b = draw.normal(size=(2, size))
        assert paired_t(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=1e-12)
    assert math.isnan(paired_t([1.0], [0.0]))
    assert paired_t([1.0, 2.0], [1.0, 2.0]) == 1
    assert paired_t([1.0, 2.0], [0.0, 1.0]) == 0
    with pytest.raises(ValueError, match="b: has shape"):
        paired_t([1.0], [1.0, 2.0])


def test_no_difference_is_found_by_chance_five_times_in_a_hundred() -> None:
    draw = np.random.default_rng(1)
    p = [paired_t(*draw.normal(size=(2, 5))) for _ in range(2000)]
    assert abs(np.mean(np.array(p) < 0.05) - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 2000)


def test_holm_steps_down() -> None:
    p = {"a": 0.01, "b": 0.04, "c": 0.03, "d": float("nan")}
    adjusted = holm(p)
    assert adjusted["a"] == pytest.approx(0.03)
    assert adjusted["c"] == adjusted["b"] == pytest.approx(0.06)
    assert math.isnan(adjusted["d"])
    assert holm({}) == {}


def test_seeds_are_paired_by_their_number() -> None:
    a = {3: {"x": 0.9}, 1: {"x": 0.5}, 2: {"x": 0.6}}
    b = {1: {"x": 0.4}, 2: {"x": 0.4}, 3: {"x": 0.85}, 9: {"x": 0.0}}
    study = over_seeds({"a": a, "b": b})
    assert study.seeds == (1, 2, 3)
    claim = study.claims["a - b"]["x"]
    assert claim.mean == pytest.approx(0.35 / 3)
    assert claim.p == pytest.approx(stats.ttest_rel([0.5, 0.6, 0.9], [0.4, 0.4, 0.85]).pvalue)
    assert claim.p_holm == claim.p
    assert study.groups["b"]["x"].sd == pytest.approx(np.std([0.4, 0.4, 0.85], ddof=1))
