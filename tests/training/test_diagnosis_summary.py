"""Diagnoses put together: spread, ratios, conflict rate."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prerank.training.diagnosis import summarise
from prerank.training.diagnosis.summary import _quantile


def _line(**values: float) -> dict[str, float]:
    counts = {"negatives/random": 2.0, "negatives/prerank": 0.0, "negatives/exposed": 3.0}
    return {**counts, **{key.replace("__", "/"): value for key, value in values.items()}}


def test_means_and_intervals() -> None:
    seen = [1.0, 2.0, 4.0, 9.0]
    found = summarise([_line(mass__exposed=x) for x in seen]).values["mass/exposed"]
    assert (found.mean, found.batches) == (4.0, 4)
    assert found.sd == pytest.approx(np.std(seen, ddof=1))
    assert found.high - 4.0 == pytest.approx(3.182446 * found.sd / 2, rel=0.01)
    assert found.low == pytest.approx(8.0 - found.high)


@pytest.mark.parametrize(
    ("degrees", "known"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (5, 2.5706), (10, 2.2281), (30, 2.0423)],
)
def test_quantiles_are_those_of_the_tables(degrees: int, known: float) -> None:
    assert _quantile(degrees) == pytest.approx(known, rel=0.01)


def test_lines_of_a_log_are_taken_as_they_are() -> None:
    lines = [{"step": 1, "kind": "diagnosis", "epoch": 0.1, **_line(mass__exposed=1.0)}]
    assert set(summarise(lines).values) == set(_line(mass__exposed=1.0))


def test_one_batch_has_no_interval() -> None:
    found = summarise([_line(mass__exposed=0.5)]).values["mass/exposed"]
    assert found.mean == 0.5
    assert math.isnan(found.low)
    assert math.isnan(found.sd)


def test_absent_sources_and_numbers_are_left_out() -> None:
    both = _line(per_sample__exposed=4.0, per_sample__random=1.0)
    found = summarise([both, _line(per_sample__exposed=8.0), {}])
    assert found.num_batches == 3
    assert found.sources == ("exposed", "random")
    assert found.values["per_sample/exposed"].mean == 6.0
    assert found.ratios["per_sample/exposed:random"].batches == 1
    assert summarise([]).sources == ()


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=8))
def test_conflict_is_a_negative_cosine(cosines: list[float]) -> None:
    key = "cos/table/exposed:random"
    found = summarise([{**_line(), key: x} for x in cosines])
    assert found.conflicts == {
        "table/exposed:random": pytest.approx(sum(x < 0 for x in cosines) / len(cosines))
    }


@given(
    st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3)), min_size=2, max_size=6),
    st.sampled_from(["norm/dense/contrast", "norm/table/negative", "per_sample"]),
)
def test_ratios_are_geometric_and_invert(pairs: list[tuple[float, float]], measure: str) -> None:
    def ratio(hard: int) -> float:
        lines = [
            {**_line(), f"{measure}/exposed": p[hard], f"{measure}/random": p[1 - hard]}
            for p in pairs
        ]
        return summarise(lines).ratios[f"{measure}/exposed:random"].mean

    by_hand = math.prod(a / b for a, b in pairs) ** (1 / len(pairs))
    assert ratio(0) == pytest.approx(by_hand, rel=1e-6)
    assert ratio(0) * ratio(1) == pytest.approx(1.0)
