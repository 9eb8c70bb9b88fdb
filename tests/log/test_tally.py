"""Counts of a whole log by brute force, and what stands out in labels and parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prerank.log import CheckReport, Log, check_log, split_log
from prerank.log.tally import latest_before

Row = dict[str, Any]


def _warnings(report: CheckReport) -> list[str]:
    return [f.message for f in report.findings if f.level == "warning"]


def test_counts_by_brute_force(rich_log: Log, rich_rows: list[Row], rich_items: list[Row]) -> None:
    report = check_log(rich_log)
    assert report.ok
    assert report.findings == []
    flat = [
        (row, {k: row[k][i] for k in row if k.startswith(("candidates.", "labels."))})
        for row in rich_rows
        for i in range(len(row["candidates.item"]))
    ]

    def engaged(c: Row) -> bool | None:
        click, watch = c["labels.click"], c["labels.watch"]
        known = [x for x in (click, None if watch is None else watch >= 10) if x is not None]
        return True if any(known) else (False if len(known) == 2 else None)

    positive = [engaged(c) is True for _, c in flat]
    stages = Counter(c["candidates.stage"] for _, c in flat)
    shown = [engaged(c) for _, c in flat if c["candidates.stage"] == "exposed"]
    counts = report.counts
    assert counts["requests"] == 30
    assert counts["candidates"] == len(flat)
    assert counts["users"] == len({row["user"] for row in rich_rows})
    assert counts["items"] == len({c["candidates.item"] for _, c in flat})
    assert counts["requests_without_candidates"] == sum(
        not row["candidates.item"] for row in rich_rows
    )
    with_positive = {row["request_id"] for (row, _), p in zip(flat, positive, strict=True) if p}
    assert counts["requests_without_positive"] == 30 - len(with_positive)
    assert counts["positives"] == sum(positive)
    assert counts["exposed"] == stages["exposed"]
    assert {s: counts[f"stage:{s}"] for s in rich_log.schema.stages} == {
        s: stages[s] for s in rich_log.schema.stages
    }
    assert counts["source:rank"] == stages["prerank"] + stages["rank"]
    assert counts["source:exposed"] == shown.count(False)
    assert counts["source:unknown"] == shown.count(None)
    known = [e for e in shown if e is not None]
    assert counts["engaged_rate_exposed"] == pytest.approx(sum(known) / len(known))
    assert counts["label:click:positive"] == sum(c["labels.click"] == 1 for _, c in flat)
    assert counts["label:watch:observed"] == sum(c["labels.watch"] is not None for _, c in flat)
    assert counts["history:likes:events"] == sum(
        len(row["history.likes.item"]) for row in rich_rows
    )
    assert counts["labelled_not_shown"] == counts["requests_in_no_part"] == 0
    parts = {"train": rich_rows[:20], "valid": rich_rows[20:25], "test": rich_rows[25:]}
    for name, rows in parts.items():
        assert counts[f"part:{name}:requests"] == len(rows)
        inside = {row["request_id"] for row in rows}
        expected = sum(
            p for (r, _), p in zip(flat, positive, strict=True) if r["request_id"] in inside
        )
        assert counts[f"part:{name}:positives"] == expected
        if name == "train":
            continue
        for what, of in (
            ("users", lambda rows: {row["user"] for row in rows}),
            ("items", lambda rows: {i for row in rows for i in row["candidates.item"]}),
        ):
            mine, known = of(rows), of(parts["train"])
            assert counts[f"part:{name}:cold_{what}"] == pytest.approx(
                len(mine - known) / len(mine)
            )
    assert counts["null_rate:user.age"] == sum(r["age"] is None for r in rich_rows) / 30
    assert counts["null_rate:user.interests"] == sum(not r["interests"] for r in rich_rows) / 30
    dwell = [d for row in rich_rows for d in row["history.clicks.dwell"]]
    assert counts["null_rate:history.clicks.dwell"] == dwell.count(None) / len(dwell)
    slots = [c["candidates.slot"] for _, c in flat]
    assert counts["null_rate:candidate.slot"] == slots.count(None) / len(slots)
    genres = [item["genre"] for item in rich_items] + [None, None]  # two items met in requests
    assert counts["null_rate:item.genre"] == genres.count(None) / 12
    assert counts["row_groups"] == rich_log.num_groups
    assert counts["row_groups_unreadable"] == 0


def test_labels_outside_exposure_are_odd(
    make_log: Callable[..., Log], rich_rows: list[Row]
) -> None:
    rows = [row | {"labels.click": [1.0 for _ in row["candidates.item"]]} for row in rich_rows]
    report = check_log(make_log(rows, splits={"train": np.arange(30)}))
    assert report.ok
    hidden = sum(s != "exposed" for row in rows for s in row["candidates.stage"])
    (message,) = [m for m in _warnings(report) if "not shown" in m]
    assert message.startswith(f"{hidden} candidates have labels but were not shown")


def test_a_log_without_positives_or_parts(plain_log: Callable[..., Log]) -> None:
    messages = _warnings(check_log(plain_log(range(9), [0] * 9, clicks=lambda row, k: 0.0)))
    assert messages == [
        "no candidate is engaged ('click'); there is nothing to learn from",
        "the log has no parts; run: prerank data split LOG",
    ]


ALL = np.arange(12)


@pytest.mark.parametrize(
    ("users", "splits", "says"),
    [
        ([0] * 12, {"train": ALL[6:], "test": ALL[:6]}, "6 requests come after one of the same"),
        ([0] * 12, {"train": ALL[6:], "test": ALL[:6]}, "part 'train' reaches time 11 but part"),
        (range(12), {"train": ALL[6:], "test": ALL[:6]}, "part 'train' reaches time 11 but part"),
        ([0] * 12, {"train": ALL[:6], "test": ALL[7:]}, "1 requests are in no part"),
        ([0] * 12, {"train": ALL, "test": ALL[:0]}, "part 'test' has no requests"),
    ],
)
def test_parts_that_are_odd(
    plain_log: Callable[..., Log], users: Any, splits: dict[str, Any], says: str
) -> None:
    report = check_log(plain_log(range(12), users, splits=splits))
    assert report.ok
    assert any(m.startswith(says) for m in _warnings(report))
    assert all("(rule 'given by the writer')" in m for m in _warnings(report))


@pytest.mark.parametrize("by", ["time", "user-order"])
def test_parts_made_by_a_rule_are_not_odd(
    plain_log: Callable[..., Log], tmp_path: Path, by: Any
) -> None:
    rng = np.random.default_rng(3)
    times, users = np.sort(rng.integers(0, 40, 60)), rng.integers(0, 5, 60)
    log = plain_log(times.tolist(), users.tolist(), out=tmp_path / "log")
    split_log(log, by=by, fractions=(0.5, 0.25, 0.25))
    report = check_log(log)
    assert report.findings == []
    assert report.counts["requests_before_own_past"] == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 2)), max_size=20), st.integers(1, 5))
def test_latest_part_before_by_brute_force(rows: list[tuple[int, int]], cut: int) -> None:
    latest = np.full(4, -1, dtype=np.int64)
    found: list[int] = []
    for start in range(0, len(rows), cut):
        user, part = np.array(rows[start : start + cut], dtype=np.int64).reshape(-1, 2).T
        found += latest_before(user, part, latest).tolist()
        np.maximum.at(latest, user, part)
    expected = [
        max([p for v, p in rows[:k] if v == u], default=-1) for k, (u, _) in enumerate(rows)
    ]
    assert found == expected
