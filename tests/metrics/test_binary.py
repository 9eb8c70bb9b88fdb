from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from prerank.metrics import (
    auc,
    calibration_error,
    calibration_ratio,
    log_loss,
    normalized_entropy,
    sigmoid,
)

ROWS = st.lists(
    st.tuples(st.integers(-3, 3), st.booleans(), st.integers(0, 3)), min_size=0, max_size=25
)


def auc_loop(score: list[float], label: list[bool], weight: list[float]) -> float:
    """Every pair of a positive and a negative, one by one."""
    won = pairs = 0.0
    for s, y, w in zip(score, label, weight, strict=True):
        for t, z, v in zip(score, label, weight, strict=True):
            if y and not z:
                won += w * v * (1.0 if s > t else 0.5 if s == t else 0.0)
                pairs += w * v
    return won / pairs if pairs else math.nan


@given(ROWS)
def test_auc_equals_the_count_of_pairs(rows: list[tuple[int, bool, int]]) -> None:
    score, label, weight = ([row[i] for row in rows] for i in range(3))
    ones = [1.0] * len(rows)
    np.testing.assert_allclose(auc(score, label), auc_loop(score, label, ones), atol=1e-12)
    np.testing.assert_allclose(
        auc(score, label, weight), auc_loop(score, label, weight), atol=1e-12
    )


@pytest.mark.parametrize("num_values", [2, 7, 10**6])
def test_auc_equals_scikit_learn(num_values: int) -> None:
    draw = np.random.default_rng(num_values)
    score = draw.integers(0, num_values, 5000).astype(np.float64)
    label = draw.random(5000) < 0.1
    weight = draw.random(5000)
    assert auc(score, label) == pytest.approx(sk.roc_auc_score(label, score), abs=1e-12)
    expected = sk.roc_auc_score(label, score, sample_weight=weight)
    assert auc(score, label, weight) == pytest.approx(expected, abs=1e-12)


def test_auc_of_a_weight_of_two_is_that_of_the_row_twice() -> None:
    score, label, weight = [1.0, 2.0, 2.0, 3.0], [0, 1, 0, 1], [1, 2, 3, 1]
    assert auc(score, label, weight) == auc(np.repeat(score, weight), np.repeat(label, weight))


def test_auc_at_the_ends() -> None:
    label = np.array([0, 1, 0, 1, 1])
    assert auc(label, label) == 1.0
    assert auc(-label, label) == 0.0
    assert auc(np.zeros(5), label) == 0.5
    assert auc([-np.inf, np.inf, -np.inf, np.inf, np.inf], label) == 1.0
    for single in ([0, 0], [1, 1]):
        assert math.isnan(auc([0.1, 0.2], single))
    assert math.isnan(auc([], []))
    assert math.isnan(auc([1.0, 2.0], [0, 1], [0.0, 1.0]))


def test_auc_of_a_random_scorer_is_one_half() -> None:
    draw = np.random.default_rng(3)
    label = np.arange(20_000) % 4 == 0
    error = math.sqrt((20_000 + 1) / (12 * 5_000 * 15_000))  # of the Mann-Whitney statistic
    assert abs(auc(draw.random(20_000), label) - 0.5) < 4 * error


@given(ROWS, st.randoms())
def test_auc_sees_only_the_order(rows: list[tuple[int, bool, int]], random) -> None:  # type: ignore[no-untyped-def]
    shuffled = list(rows)
    random.shuffle(shuffled)
    score, label = np.array([r[0] for r in rows], float), [r[1] for r in rows]
    other, other_label = np.array([r[0] for r in shuffled], float), [r[1] for r in shuffled]
    np.testing.assert_equal(auc(np.exp(3 * other) - 7, other_label), auc(score, label))


def test_auc_refuses_a_nan_score_instead_of_ranking_it_first() -> None:
    with pytest.raises(ValueError, match=r"score: 1 of 2 values are NaN"):
        auc([0.1, math.nan], [0, 1])
    with pytest.raises(ValueError, match=r"weight: the smallest is -1.0; expected none below 0"):
        auc([0.1, 0.2], [0, 1], [1.0, -1.0])


def test_log_loss_equals_scikit_learn() -> None:
    draw = np.random.default_rng(0)
    logit, label, weight = draw.normal(size=500), draw.random(500) < 0.3, draw.random(500)
    probability = 1 / (1 + np.exp(-logit))
    assert log_loss(logit, label) == pytest.approx(sk.log_loss(label, probability), abs=1e-12)
    expected = sk.log_loss(label, probability, sample_weight=weight)
    assert log_loss(logit, label, weight) == pytest.approx(expected, abs=1e-12)


def test_log_loss_of_soft_targets_is_the_mixture() -> None:
    for q in (0.0, 0.3, 1.0):
        mixed = q * log_loss([1.7], [1]) + (1 - q) * log_loss([1.7], [0])
        assert log_loss([1.7], [q]) == pytest.approx(mixed, abs=1e-15)


def test_log_loss_far_out_is_exact() -> None:
    assert log_loss([1e4], [0]) == 1e4
    assert log_loss([-1e4], [1]) == 1e4
    assert log_loss([40.0], [1]) == pytest.approx(math.exp(-40), rel=1e-12)
    assert log_loss([math.inf, -math.inf], [1, 0]) == 0.0
    assert log_loss([math.inf], [0]) == math.inf
    assert log_loss([math.inf, 0.0], [0, 1], [0.0, 1.0]) == pytest.approx(math.log(2))
    assert math.isnan(log_loss([], []))


def test_sigmoid_keeps_its_tails() -> None:
    np.testing.assert_allclose(sigmoid([-700.0, 700.0]), [math.exp(-700), 1.0], rtol=1e-12)
    np.testing.assert_allclose(sigmoid([2.0]) + sigmoid([-2.0]), 1.0, rtol=1e-15)


def test_normalized_entropy_of_constants() -> None:
    label = np.array([1, 0, 0, 0])
    base = math.log(0.25 / 0.75)
    assert normalized_entropy(np.full(4, base), label) == pytest.approx(1.0, abs=1e-12)
    for other in (base - 1, base + 1, 0.0):
        assert normalized_entropy(np.full(4, other), label) > 1
    assert normalized_entropy(np.where(label, 50.0, -50.0), label) < 1e-12
    assert math.isnan(normalized_entropy([0.0, 1.0], [1, 1]))
    assert math.isnan(normalized_entropy([], []))


def test_normalized_entropy_with_the_rate_of_other_rows() -> None:
    label, logit = [1, 0, 0, 0], [0.3, -0.2, 0.1, -2.0]
    background = log_loss(np.full(4, math.log(0.1 / 0.9)), label)
    expected = log_loss(logit, label) / background
    assert normalized_entropy(logit, label, base_rate=0.1) == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match=r"base_rate: is 1.0; expected a number between 0 and 1"):
        normalized_entropy(logit, label, base_rate=1.0)


def test_calibration_error_by_hand() -> None:
    p, y = [0.1, 0.2, 0.6, 0.9], [0, 1, 1, 1]
    halves = (abs(0.15 - 0.5) + abs(0.75 - 1.0)) / 2
    assert calibration_error(p, y, num_bins=2) == pytest.approx(halves, abs=1e-12)
    assert calibration_error(p, y, num_bins=2, bins="width") == pytest.approx(halves, abs=1e-12)
    assert calibration_error(p, y, num_bins=1) == pytest.approx(abs(0.45 - 0.75), abs=1e-12)
    weighted = (3 * abs(0.1 - 0.0) + 3 * abs((0.2 + 0.6 + 0.9) / 3 - 1.0)) / 6
    result = calibration_error(p, y, [3, 1, 1, 1], num_bins=2)
    assert result == pytest.approx(weighted, abs=1e-12)


def test_calibration_error_of_rare_events_needs_bins_of_equal_mass() -> None:
    draw = np.random.default_rng(0)
    p = draw.uniform(0.0, 0.04, 200_000)
    y = draw.random(200_000) < p
    shifted = 0.02 + (p - 0.02) * -1.0  # right on average, upside down
    assert calibration_error(p, y) < 0.002
    assert calibration_error(shifted, y) == pytest.approx(0.02, abs=0.002)
    assert calibration_error(shifted, y, bins="width") < 0.002


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.booleans()), min_size=1),
    st.randoms(),
    st.sampled_from(["mass", "width"]),
    st.integers(1, 5),
)
def test_calibration_error_keeps_ties_together(rows, random, bins, num_bins) -> None:  # type: ignore[no-untyped-def]
    shuffled = list(rows)
    random.shuffle(shuffled)
    values = [
        calibration_error([p for p, _ in r], [y for _, y in r], bins=bins, num_bins=num_bins)
        for r in (rows, shuffled)
    ]
    assert values[0] == pytest.approx(values[1], abs=1e-12)
    assert 0 <= values[0] <= 1


def test_calibration_ratio() -> None:
    assert calibration_ratio([0.2, 0.4], [0, 1]) == pytest.approx(0.6, abs=1e-12)
    assert calibration_ratio([0.2, 0.4], [0, 1], [5, 1]) == pytest.approx(1.4, abs=1e-12)
    assert math.isnan(calibration_ratio([0.2], [0]))
    assert math.isnan(calibration_error([], []))


def test_what_is_no_probability_is_refused() -> None:
    with pytest.raises(ValueError, match=r"probability: values run from -1.0 to 2.0"):
        calibration_error([-1.0, 2.0], [0, 1])
    with pytest.raises(ValueError, match=r"label: values run from 0.0 to 5.0; expected 0 to 1"):
        log_loss([0.0, 0.0], [0, 5])
    with pytest.raises(ValueError, match=r"num_bins: is 0; expected at least 1"):
        calibration_error([0.5], [1], num_bins=0)
