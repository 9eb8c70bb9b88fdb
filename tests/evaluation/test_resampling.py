"""Resampling by matrix products against counting every resample by itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prerank.evaluation.resampling import AUCStatistic, MeanStatistic, cluster_codes, draw

Array = np.ndarray


def counted_mean(value: Array, weight: Array, user: Array, count: Array) -> float:
    mass = weight * count[user]
    return float(mass @ value / mass.sum()) if mass.sum() > 0 else math.nan


def counted_auc(score: Array, label: Array, weight: Array, user: Array, count: Array) -> float:
    """Every pair of a positive and a negative, one by one."""
    mass, positive = weight * count[user], label > 0
    gap = score[positive][:, None] - score[~positive][None, :]
    won = (gap > 0) + 0.5 * (gap == 0)
    pairs = mass[positive].sum() * mass[~positive].sum()
    return float(mass[positive] @ won @ mass[~positive] / pairs) if pairs > 0 else math.nan


def counts_of(num_clusters: int, num: int, seed: int) -> list[Array]:
    draws = [np.random.default_rng([seed, b]) for b in range(num)]
    return [
        np.bincount(d.integers(num_clusters, size=num_clusters), minlength=num_clusters)
        for d in draws
    ]


@given(st.integers(0, 10_000), st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_products_equal_resamples_counted_one_by_one(
    seed: int, ties: bool, weighted: bool, sort: bool
) -> None:
    draw_of = np.random.default_rng(seed)
    size, num_users = int(draw_of.integers(2, 80)), int(draw_of.integers(2, 12))
    score = np.round(draw_of.normal(size=size), 0 if ties else 9)
    score = np.sort(score) if sort else score
    label = (draw_of.random(size) < 0.3).astype(np.float64)
    user = draw_of.integers(0, num_users, size)
    weight = draw_of.random(size) if weighted else np.ones(size)
    weight[draw_of.random(size) < 0.1] *= 0
    area = AUCStatistic(score, label, weight, user, num_users)
    mean = MeanStatistic(score, weight, user, num_users)
    ones = np.ones(num_users)
    np.testing.assert_allclose(area.point(), counted_auc(score, label, weight, user, ones))
    np.testing.assert_allclose(
        mean.point(), counted_mean(score, weight, user, ones), rtol=1e-12, atol=1e-12
    )
    counts = counts_of(num_users, 20, seed)
    expected = [counted_auc(score, label, weight, user, count) for count in counts]
    found, means, again = draw([area, mean, area], [20, 20, 7], seed)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(again, expected[:7], rtol=1e-12)
    expected = [counted_mean(score, weight, user, count) for count in counts]
    np.testing.assert_allclose(means, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("whole", [True, False])
def test_both_ways_of_resampling_an_auc_agree(
    monkeypatch: pytest.MonkeyPatch, *, whole: bool
) -> None:
    draw_of = np.random.default_rng(5)
    size, num_users = 4000, 60
    score, user = np.round(draw_of.normal(size=size), 1), draw_of.integers(0, num_users, size)
    label = (draw_of.random(size) < 0.05).astype(np.float64)
    weight = draw_of.integers(1, 5, size) * (1.0 if whole else 0.3)
    area = AUCStatistic(score, label, weight, user, num_users)
    form = draw([area], [50], 3)[0]
    assert area.work < size
    monkeypatch.setattr(AUCStatistic, "_work", lambda self: (size, False))
    np.testing.assert_allclose(form, draw([area], [50], 3)[0], rtol=1e-13)
    # Sums in float32 are taken only where they are exact.
    monkeypatch.undo()
    monkeypatch.setattr("prerank.evaluation.resampling._EXACT", 0.0)
    wide = draw([area], [50], 3)[0]
    if whole:
        np.testing.assert_array_equal(form, wide)
    else:
        np.testing.assert_allclose(form, wide, rtol=1e-13)


def test_clusters_are_numbered_as_their_ids_ascend() -> None:
    for ids in ([7, 3, 7, 10**12], ["b", "a", "b", "c"], [-5, -9, -5, 0], [2, 1, 2, 9]):
        codes, num = cluster_codes(ids)
        assert codes.tolist() == [1, 0, 1, 2]
        assert num == 3
    assert cluster_codes(np.zeros(0, np.int64))[1] == 0


def test_one_cluster_has_no_resamples() -> None:
    mean = MeanStatistic(np.ones(2), np.ones(2), np.zeros(2, np.int64), 1)
    assert np.isnan(draw([mean], [5], 0)[0]).all()
    assert draw([mean], [0], 0)[0].size == 0
