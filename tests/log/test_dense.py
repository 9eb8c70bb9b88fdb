"""Statistics of dense features: the same however the rows are cut, fair samples of long columns."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prerank.log.inputs.dense import DenseFit, DenseStatistics, apply_dense
from prerank.schema import Feature

PRICE = Feature(name="x", owner="candidate", kind="dense", transforms=("standard",))
RANKED = Feature(name="x", owner="candidate", kind="dense", transforms=("quantile",))


@given(st.lists(st.lists(st.floats(-1e3, 1e3) | st.just(math.nan), max_size=9), max_size=6))
def test_statistics_do_not_depend_on_the_cut_into_batches(batches: list[list[float]]) -> None:
    whole = [x for values in batches for x in values]
    for feature in (PRICE, RANKED):
        cut, once = DenseStatistics(feature), DenseStatistics(feature)
        for values in batches:
            cut.add(np.array(values))
        once.add(np.array(whole))
        assert cut.result().mean == pytest.approx(once.result().mean, abs=1e-9)
        assert cut.result().std == pytest.approx(once.result().std, abs=1e-9)
        assert cut.result().quantiles == once.result().quantiles
    known = [x for x in whole if not math.isnan(x)]
    if known:
        assert once.result().mean == pytest.approx(statistics.fmean(known), abs=1e-9)


def test_the_sample_of_a_long_column_is_fair() -> None:
    values = np.random.default_rng(0).permutation(300_000).astype(np.float64)
    once, cut = DenseStatistics(RANKED), DenseStatistics(RANKED)
    once.add(values)
    for piece in np.split(values, 30):
        cut.add(piece)
    assert once.result().quantiles == cut.result().quantiles
    expected = np.linspace(0, 300_000, 255)
    assert np.abs(np.array(once.result().quantiles) - expected).max() < 3000  # 1 % of the range


def test_a_constant_or_absent_feature_is_left_as_it_is() -> None:
    constant, absent = DenseStatistics(PRICE), DenseStatistics(PRICE)
    constant.add(np.array([4.0, 4.0]))
    absent.add(np.array([math.nan]))
    assert apply_dense(PRICE, constant.result(), np.array([4.0, 5.0])).tolist() == [0.0, 1.0]
    assert absent.result() == DenseFit()
