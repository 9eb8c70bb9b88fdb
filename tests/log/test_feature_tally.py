"""Features without values, with one value, and those that give the label away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prerank.log import CheckReport, Log, check_log
from prerank.log.feature_tally import auc
from prerank.schema import Feature, Label, Schema

Row = dict[str, Any]


def _warnings(report: CheckReport) -> list[str]:
    return [f.message for f in report.findings if f.level == "warning"]


def _leaky(row: int, k: int) -> float:
    """A 1 for engaged candidates, two times out of three hidden among tied values."""
    return 1.0 if k == 0 else 0.0


CLICK = "feature 'candidate.x' alone predicts engaged (AUC 1.000): possible leak"


@pytest.mark.parametrize(
    ("x", "leaks"),
    [
        (_leaky, True),
        (lambda row, k: 3.0 - _leaky(row, k), True),  # the wrong way round
        (lambda row, k: float(row) if k == 0 else None, True),  # by being there
        (lambda row, k: None if k == 0 else float(row), True),  # by being absent
        (lambda row, k: float(13 * row % 7 + k), False),
        (lambda row, k: float((row + k) % 2 == 0 or row % 10 == 0), False),
    ],
)
def test_a_feature_that_gives_the_label_away(
    plain_log: Callable[..., Log], x: Callable[[int, int], float | None], leaks: bool
) -> None:
    log = plain_log(range(60), [0] * 60, x=x, splits={"train": np.arange(60)})
    found = [m for m in _warnings(check_log(log)) if "possible leak" in m]
    assert [m.startswith(CLICK) for m in found] == ([True] if leaks else [])


def test_few_examples_do_not_make_a_leak(plain_log: Callable[..., Log]) -> None:
    log = plain_log(range(10), [0] * 10, x=_leaky, splits={"train": np.arange(10)})
    assert _warnings(check_log(log)) == []


def test_a_category_that_gives_the_label_away(make_log: Callable[..., Log]) -> None:
    schema = Schema(
        features=(Feature(name="kind", owner="candidate", kind="categorical"),),
        labels=(Label(name="click"),),
    )

    def rows(kind: Callable[[int, int], str]) -> list[Row]:
        return [
            {
                "request_id": row,
                "user": 0,
                "time": row,
                "candidates.item": [1, 2],
                "candidates.stage": ["exposed"] * 2,
                "candidates.kind": [kind(row, 0), kind(row, 1)],
                "labels.click": [1.0, 0.0],
            }
            for row in range(100)
        ]

    def leaks(kind: Callable[[int, int], str]) -> bool:
        log = make_log(rows(kind), schema=schema, group=16)
        return any("'candidate.kind' alone predicts" in m for m in _warnings(check_log(log)))

    assert leaks(lambda row, k: "ab"[row % 2] if k == 0 else "cd"[row % 2])
    assert not leaks(lambda row, k: "abcd"[(row + k) % 4])
    assert not leaks(lambda row, k: f"{row}/{k}")  # every value once says nothing


def test_constant_and_absent_features_are_odd(
    make_log: Callable[..., Log], rich_rows: list[Row], rich_items: list[Row]
) -> None:
    def change(row: Row) -> Row:
        return row | {
            "age": 4.0,
            "device": 7,
            "battery": None,
            "profile": [1.0, 2.0],
            "interests": [],
            "candidates.affinity": [None for _ in row["candidates.item"]],
            "history.clicks.act": ["view" for _ in row["history.clicks.act"]],
        }

    items = [item | {"price": None} for item in rich_items]
    log = make_log([change(r) for r in rich_rows], items, splits={"train": np.arange(30)})
    report = check_log(log)
    candidates, events = report.counts["candidates"], report.counts["history:clicks:events"]
    assert set(_warnings(report)) == {
        "feature 'user.age' is constant in all 30 rows",
        "feature 'user.profile' is constant in all 30 rows",
        "feature 'user.interests' is missing in all 30 rows",
        "feature 'context.device' is constant in all 30 rows",
        "feature 'context.battery' is missing in all 30 rows",
        "feature 'item.price' is missing in all 12 rows",
        f"feature 'candidate.affinity' is missing in all {candidates} rows",
        f"feature 'history.clicks.act' is constant in all {events} rows",
    }
    assert report.counts["null_rate:candidate.affinity"] == 1.0


@given(
    st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2).filter(
        lambda pairs: len({p for _, p in pairs}) == 2
    )
)
def test_auc_counts_pairs(pairs: list[tuple[int, bool]]) -> None:
    positives = [s for s, p in pairs if p]
    negatives = [s for s, p in pairs if not p]
    wins = sum((a > b) + (a == b) / 2 for a in positives for b in negatives)
    scores, labels = (np.array(column) for column in zip(*pairs, strict=True))
    expected = wins / (len(positives) * len(negatives))
    assert auc(scores.astype(np.float64), labels) == pytest.approx(expected)
