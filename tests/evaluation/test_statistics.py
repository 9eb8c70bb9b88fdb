from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from prerank.evaluation.statistics import (
    Difference,
    Estimate,
    bootstrap_auc,
    bootstrap_mean,
    paired_auc,
    paired_mean,
)

Array = np.ndarray


def repeated(statistic: Callable[[Array], float], cluster: Array, num: int, seed: int) -> Array:
    """Draw users one by one and repeat their rows: the bootstrap by its definition."""
    members = [np.flatnonzero(cluster == c) for c in np.unique(cluster)]
    draws = []
    for b in range(num):
        drawn = np.random.default_rng([seed, b]).integers(len(members), size=len(members))
        draws.append(statistic(np.concatenate([members[c] for c in drawn])))
    return np.array(draws)


def clustered(seed: int, num_users: int = 30) -> dict[str, Array]:
    draw = np.random.default_rng(seed)
    user = np.repeat(np.arange(num_users) * 10, draw.integers(1, 9, num_users))
    user = draw.permutation(user)
    taste = draw.normal(size=num_users)[user // 10]
    score = np.round(draw.normal(size=user.size) + taste, 1)  # with ties
    label = (draw.random(user.size) < 1 / (1 + np.exp(-score))).astype(np.float64)
    return {
        "user": user,
        "value": taste + draw.normal(size=user.size),
        "weight": draw.integers(0, 4, user.size).astype(np.float64),
        "score": score,
        "other": np.round(score + draw.normal(size=user.size), 1),
        "label": label,
    }


def check(estimate: Estimate, value: float, draws: Array) -> None:
    low, high = np.quantile(draws, [0.05, 0.95])
    np.testing.assert_allclose(
        [estimate.value, estimate.low, estimate.high], [value, low, high], atol=1e-12
    )


def test_mean_equals_users_repeated_row_by_row() -> None:
    d = clustered(0)
    estimate = bootstrap_mean(
        d["value"], d["weight"], d["user"], num_resamples=60, seed=4, level=0.9
    )

    def mean(rows: Array) -> float:
        return float(np.average(d["value"][rows], weights=d["weight"][rows]))

    check(estimate, mean(np.arange(d["user"].size)), repeated(mean, d["user"], 60, 4))
    assert estimate.num_clusters == 30


def test_auc_equals_users_repeated_row_by_row() -> None:
    d = clustered(1)
    for weights in (None, d["weight"]):
        estimate = bootstrap_auc(
            d["score"], d["label"], d["user"], weights=weights, num_resamples=40, level=0.9
        )

        def area(rows: Array, weights: Array | None = weights) -> float:
            weight = None if weights is None else weights[rows]
            return float(roc_auc_score(d["label"][rows], d["score"][rows], sample_weight=weight))

        check(estimate, area(np.arange(d["user"].size)), repeated(area, d["user"], 40, 0))


def test_paired_differences_equal_users_repeated_row_by_row() -> None:
    d = clustered(2)
    a, b, y, user = d["score"], d["other"], d["label"], d["user"]

    def mean(rows: Array) -> float:
        return float(np.average((a - b)[rows], weights=d["weight"][rows]))

    def area(rows: Array) -> float:
        return float(roc_auc_score(y[rows], a[rows]) - roc_auc_score(y[rows], b[rows]))

    rows = np.arange(user.size)
    means = paired_mean(a, b, d["weight"], user, num_resamples=40, level=0.9)
    areas = paired_auc(a, b, y, user, num_resamples=40, level=0.9)
    for result, statistic in ((means, mean), (areas, area)):
        draws = repeated(statistic, user, 40, 0)
        check(result, statistic(rows), draws)
        side = min((draws <= 0).sum(), (draws >= 0).sum())
        assert result.p_value == pytest.approx(min(1.0, 2 * (side + 1) / 41))


def test_interval_of_independent_units_is_that_of_the_textbook() -> None:
    value = np.random.default_rng(0).normal(size=2000)
    estimate = bootstrap_mean(value, None, np.arange(2000), num_resamples=2000)
    half = 1.96 * value.std() / math.sqrt(2000)
    assert (estimate.high - estimate.low) / 2 == pytest.approx(half, rel=0.06)
    assert (estimate.high + estimate.low) / 2 == pytest.approx(value.mean(), abs=0.1 * half)


def test_rows_of_one_user_add_no_certainty() -> None:
    value, user = np.random.default_rng(1).normal(size=200), np.arange(200)
    once = bootstrap_mean(value, None, user)
    copied = bootstrap_mean(np.repeat(value, 9), None, np.repeat(user, 9))
    assert copied.low == pytest.approx(once.low, abs=1e-12)
    assert copied.high == pytest.approx(once.high, abs=1e-12)
    # Negative control: rows taken for independent claim three times the precision.
    naive = bootstrap_mean(np.repeat(value, 9), None, np.arange(1800))
    assert (once.high - once.low) / (naive.high - naive.low) == pytest.approx(3, rel=0.15)


def test_pairing_sees_what_two_intervals_hide() -> None:
    draw = np.random.default_rng(2)
    user = np.repeat(np.arange(100), 3)
    base = np.repeat(draw.normal(size=100), 3) + draw.normal(size=300)
    better = base + 0.05 + 0.1 * draw.normal(size=300)
    a, b = bootstrap_mean(better, None, user), bootstrap_mean(base, None, user)
    assert a.low < b.high
    difference = paired_mean(better, base, None, user)
    assert difference.low > 0
    assert difference.p_value < 0.01
    assert difference.value == pytest.approx(a.value - b.value, abs=1e-12)


def test_equal_systems_do_not_differ() -> None:
    d = clustered(3)
    areas = paired_auc(d["score"], d["score"] * 2 + 1, d["label"], d["user"], num_resamples=50)
    means = paired_mean(d["value"], d["value"], None, d["user"], num_resamples=50)
    for result in (areas, means):
        assert (result.value, result.low, result.high, result.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_swapping_the_systems_mirrors_the_result() -> None:
    d = clustered(4)
    ab = paired_auc(d["score"], d["other"], d["label"], d["user"], num_resamples=99)
    ba = paired_auc(d["other"], d["score"], d["label"], d["user"], num_resamples=99)
    expected = [-ab.value, -ab.high, -ab.low, ab.p_value]
    np.testing.assert_allclose([ba.value, ba.low, ba.high, ba.p_value], expected, atol=1e-12)


@given(st.randoms())
def test_order_of_rows_and_names_of_users_do_not_matter(random) -> None:  # type: ignore[no-untyped-def]
    d = clustered(5, num_users=8)
    rows = list(range(d["user"].size))
    random.shuffle(rows)
    names = np.array([f"user {u:03d}" for u in d["user"]])
    for first, second in (
        (
            bootstrap_mean(d["value"], d["weight"], d["user"], num_resamples=20),
            bootstrap_mean(d["value"][rows], d["weight"][rows], names[rows], num_resamples=20),
        ),
        (
            bootstrap_auc(d["score"], d["label"], d["user"], num_resamples=20),
            bootstrap_auc(d["score"][rows], d["label"][rows], names[rows], num_resamples=20),
        ),
    ):
        np.testing.assert_allclose(
            [first.value, first.low, first.high], [second.value, second.low, second.high]
        )


def test_resamples_are_repeatable_and_follow_the_seed() -> None:
    d = clustered(6)
    first = bootstrap_mean(d["value"], None, d["user"], seed=1)
    assert first == bootstrap_mean(d["value"], None, d["user"], seed=1)
    assert first.low != bootstrap_mean(d["value"], None, d["user"], seed=2).low


def test_nan_units_are_as_if_absent() -> None:
    d = clustered(7)
    gone = np.random.default_rng(0).random(d["user"].size) < 0.3
    gone |= d["user"] == 0  # a user without any unit left
    value, score = np.where(gone, np.nan, d["value"]), np.where(gone, np.nan, d["score"])
    user, label = d["user"], d["label"]
    left = {name: column[~gone] for name, column in d.items()}
    assert bootstrap_mean(value, None, user) == bootstrap_mean(left["value"], None, left["user"])
    assert bootstrap_auc(score, label, user, num_resamples=50) == bootstrap_auc(
        left["score"], left["label"], left["user"], num_resamples=50
    )
    assert paired_mean(value, d["value"] + 1, None, user).value == pytest.approx(-1)
    assert bootstrap_mean(value, None, user).num_clusters == np.unique(left["user"]).size


def test_nothing_at_all_is_nan_without_a_warning() -> None:
    nan = [math.nan, math.nan]
    for estimate in (
        bootstrap_mean([], None, []),
        bootstrap_mean(nan, None, [1, 2]),
        bootstrap_auc([], [], []),
        bootstrap_auc(nan, [0, 1], [1, 2]),
        paired_mean([], [], None, []),
        paired_auc([], [], [], []),
    ):
        assert math.isnan(estimate.value)
        assert math.isnan(estimate.low)
        assert math.isnan(estimate.high)
        assert estimate.num_clusters == 0
        assert not isinstance(estimate, Difference) or math.isnan(estimate.p_value)


def test_one_user_has_a_value_but_no_interval() -> None:
    for estimate in (
        bootstrap_mean([1.0, 3.0], None, [7, 7]),
        paired_mean([1.0, 3.0], [0.0, 0.0], None, [7, 7]),
    ):
        assert estimate.value == 2.0
        assert math.isnan(estimate.low)
        assert estimate.num_clusters == 1


def test_resamples_without_both_classes_are_left_out() -> None:
    # One user holds all positives: the draws that miss that user have no AUC.
    estimate = bootstrap_auc([3.0, 1.0, 2.0], [1, 0, 0], [0, 1, 2])
    assert (estimate.value, estimate.low, estimate.high) == (1.0, 1.0, 1.0)
    assert math.isnan(bootstrap_auc([1.0, 2.0], [1, 1], [0, 1]).low)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a column has shape \(1,\); expected \(2,\)"):
        bootstrap_mean([1.0, 2.0], None, [1])
    with pytest.raises(ValueError, match=r"weights: some are negative or NaN"):
        bootstrap_mean([1.0, 2.0], [1.0, -1.0], [1, 2])
    with pytest.raises(ValueError, match=r"level: is 95; expected a number between 0 and 1"):
        bootstrap_mean([1.0, 2.0], None, [1, 2], level=95)
    with pytest.raises(ValueError, match=r"num_resamples: is 0; expected at least 1"):
        bootstrap_mean([1.0, 2.0], None, [1, 2], num_resamples=0)


@pytest.mark.slow
def test_intervals_cover_the_truth() -> None:
    """95 % of 200 simulated repeats, within the binomial error of 200 draws."""
    shift, num_repeats, missed = 1.0, 200, {"mean": 0, "auc": 0, "difference": 0}
    # Scores of a positive and a negative of two users differ by a normal(shift, 2 * 1.25).
    truth = 0.5 * (1 + math.erf(shift / math.sqrt(2 * 2.5)))
    for repeat in range(num_repeats):
        draw = np.random.default_rng([9, repeat])
        user = np.repeat(np.arange(150), draw.integers(1, 9, 150))
        own = 0.5 * draw.normal(size=150)[user]
        label = draw.random(user.size) < 0.4
        score = own + draw.normal(size=user.size) + shift * label
        mean = bootstrap_mean(own + draw.normal(size=user.size), None, user, num_resamples=500)
        area = bootstrap_auc(score, label, user, num_resamples=500)
        twin = own + draw.normal(size=user.size) + shift * label
        difference = paired_auc(score, twin, label, user, num_resamples=500)
        missed["mean"] += not mean.low <= 0 <= mean.high
        missed["auc"] += not area.low <= truth <= area.high
        missed["difference"] += not difference.low <= 0 <= difference.high
    error = math.sqrt(0.05 * 0.95 * num_repeats)
    for name, count in missed.items():
        assert abs(count - 0.05 * num_repeats) < 3 * error, name


@pytest.mark.slow
def test_p_values_are_uniform_when_nothing_differs() -> None:
    p_values = []
    for repeat in range(300):
        draw = np.random.default_rng([10, repeat])
        user = np.repeat(np.arange(80), 3)
        gap = np.repeat(draw.normal(size=80), 3) + draw.normal(size=240)
        p_values.append(paired_mean(gap, 0 * gap, None, user, num_resamples=400).p_value)
    for level in (0.05, 0.2, 0.5, 0.8):
        error = math.sqrt(level * (1 - level) / 300)
        assert abs(np.mean(np.array(p_values) < level) - level) < 3.5 * error


def test_blocks_of_resamples_are_those_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    d = clustered(3)
    mean = [d["value"], d["weight"], d["user"]]
    area = [d["score"], d["label"], d["user"]]
    at_once = bootstrap_mean(*mean, seed=4), bootstrap_auc(*area, seed=4)
    monkeypatch.setattr("prerank.evaluation.resampling._BLOCK", 70)
    in_blocks = bootstrap_mean(*mean, seed=4), bootstrap_auc(*area, seed=4)
    for a, b in zip(at_once, in_blocks, strict=True):
        np.testing.assert_allclose([a.value, a.low, a.high], [b.value, b.low, b.high], rtol=1e-13)
