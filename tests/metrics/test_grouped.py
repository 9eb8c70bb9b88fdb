from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from prerank.metrics import gauc

ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(-2, 2), st.booleans()), max_size=40)


@pytest.mark.parametrize("weight", ["impressions", "uniform", "positives"])
@given(rows=ROWS)
def test_gauc_equals_a_loop_over_groups(rows: list[tuple[int, int, bool]], weight: str) -> None:
    total = share = 0.0
    dropped = dropped_rows = 0
    aucs, ids = [], []
    for group in sorted({g for g, _, _ in rows}):
        score = [s for g, s, _ in rows if g == group]
        label = [y for g, _, y in rows if g == group]
        if len(set(label)) < 2:
            dropped, dropped_rows = dropped + 1, dropped_rows + len(label)
            continue
        w = {"impressions": len(label), "uniform": 1, "positives": sum(label)}[weight]
        value = roc_auc_score(label, score)
        total, share = total + w * value, share + w
        aucs.append(value)
        ids.append(group)

    result = gauc([r[1] for r in rows], [r[2] for r in rows], [r[0] for r in rows], weight)  # type: ignore[arg-type]
    np.testing.assert_allclose(result.value, total / share if share else math.nan, atol=1e-12)
    np.testing.assert_allclose(result.auc, aucs, atol=1e-12)
    assert result.group.tolist() == ids
    assert result.weight.sum() == share
    assert (result.num_dropped, result.num_dropped_impressions) == (dropped, dropped_rows)


def test_gauc_cannot_be_won_by_knowing_the_user() -> None:
    """A score that only tells active users apart has a high pooled AUC and says nothing here."""
    user = np.repeat(np.arange(100), 20)
    label = np.random.default_rng(0).random(2000) < user / 200
    result = gauc(user.astype(np.float64), label, user)
    assert result.value == 0.5
    assert roc_auc_score(label, user) > 0.7


def test_oracle_and_constant() -> None:
    label = np.tile([0, 1, 1], 5)
    group = np.repeat(["e", "d", "c", "b", "a"], 3)
    assert gauc(label, label, group).value == 1.0
    assert gauc(np.zeros(15), label, group).value == 0.5
    assert gauc(label, label, group).group.tolist() == ["a", "b", "c", "d", "e"]


def test_random_scorer_is_one_half_within_its_error() -> None:
    draw = np.random.default_rng(5)
    group = np.repeat(np.arange(500), 20)
    label = np.tile(np.arange(20) < 5, 500)
    result = gauc(draw.random(group.size), label, group)
    error = math.sqrt((20 + 1) / (12 * 5 * 15) / 500)
    assert abs(result.value - 0.5) < 4 * error


def test_single_class_everywhere_and_nothing_at_all() -> None:
    result = gauc([1.0, 2.0, 3.0], [1, 0, 0], [1, 2, 2])
    assert math.isnan(result.value)
    assert (result.num_dropped, result.num_dropped_impressions) == (2, 3)
    assert math.isnan(gauc([], [], []).value)


def test_groups_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"group: has 1 values; expected 2"):
        gauc([1.0, 2.0], [0, 1], [1])
