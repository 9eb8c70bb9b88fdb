from __future__ import annotations

import numpy as np
import pytest

from prerank.metrics.segments import column, ratio, segment_auc, segment_ids


def test_segment_ids_of_empty_requests() -> None:
    assert segment_ids([0, 0, 2, 2, 3, 3], 3).tolist() == [1, 1, 3]
    assert segment_ids([0], 0).tolist() == []


@pytest.mark.parametrize("offsets", [[], [1, 3], [0, 2], [0, 4], [0, 2, 1, 3]])
def test_offsets_that_do_not_fit_are_refused(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match=r"offsets: expected non-decreasing integers from 0 to 3"):
        segment_ids(offsets, 3)


def test_column_refuses_nan_shape_and_length() -> None:
    with pytest.raises(ValueError, match=r"label: 2 of 3 values are NaN, the first at position 1"):
        column([0.0, np.nan, np.nan], "label")
    with pytest.raises(ValueError, match=r"score: has shape \(1, 2\); expected one dimension"):
        column([[0.0, 1.0]], "score")
    with pytest.raises(ValueError, match=r"score: has 2 values; expected 3"):
        column([0.0, 1.0], "score", 3)


def test_ratio_is_nan_where_undefined() -> None:
    np.testing.assert_array_equal(ratio([1.0, 0.0, 3.0], [4, 0, 0]), [0.25, np.nan, np.nan])


def test_segment_auc_of_interleaved_segments_equals_each_alone() -> None:
    draw = np.random.default_rng(0)
    score = draw.integers(0, 6, 400).astype(np.float64)
    label = (draw.random(400) < 0.3).astype(np.float64)
    weight = draw.integers(0, 4, 400).astype(np.float64)
    segment = draw.integers(0, 30, 400)
    whole = segment_auc(score, label, segment, 31, weight)
    for r in range(31):
        own = segment == r
        zeros = np.zeros(int(own.sum()), dtype=np.int64)
        alone = segment_auc(score[own], label[own], zeros, 1, weight[own])
        np.testing.assert_allclose(whole[r], alone[0], atol=1e-12)
    assert np.isnan(whole[30])
