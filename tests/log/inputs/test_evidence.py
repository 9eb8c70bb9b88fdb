"""Evidence against a brute-force reading of the raw rows, one candidate at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prerank.batch import POSITIVE, UNKNOWN, Evidence
from prerank.log import Log, Transforms
from prerank.log.format.columns import Columns, Group
from prerank.log.inputs.evidence import build_evidence, label_columns, source_codes
from prerank.schema import Label, Schema, Task

Row = dict[str, Any]


def _evidence(log: Log) -> Evidence:
    (batch,) = log.all().batches(Transforms.fit(log.all()), 10**6, prefetch=0)
    return batch.evidence


def _delayed(value: float | None, row: Row, window: int) -> float | None:
    """A label whose window is over is negative; before, it is unknown."""
    over = row["observed_until"] is not None and row["observed_until"] >= row["time"] + window
    return 0.0 if value is None and over else value


def _engaged(click: float | None, watch: float | None) -> float | None:
    """``click or watch >= 10`` of three values."""
    sides = [None if click is None else click > 0, None if watch is None else watch >= 10]
    if True in sides:
        return 1.0
    return None if None in sides else 0.0


def _source(stage: str, engaged: float | None) -> str | int:
    if engaged == 1.0:
        return POSITIVE
    if stage == "exposed" and engaged is None:
        return UNKNOWN
    return {
        "pool": "random",
        "retrieval": "prerank",
        "prerank": "rank",
        "rank": "rank",
        "exposed": "exposed",
    }[stage]


def _same(found: list[float], expected: list[float | None]) -> None:
    assert [None if math.isnan(x) else x for x in found] == expected


def test_every_candidate_by_brute_force(rich_log: Log, rich_rows: list[Row]) -> None:
    evidence = _evidence(rich_log)
    flat = [
        (row, {k: row[k][i] for k in row if k.startswith(("candidates.", "labels."))})
        for row in rich_rows
        for i in range(len(row["candidates.item"]))
    ]
    buys = [_delayed(c["labels.buy"], row, 10_000) for row, c in flat]
    clicks = [c["labels.click"] for _, c in flat]
    engaged = [_engaged(c["labels.click"], c["labels.watch"]) for _, c in flat]
    _same(evidence.labels["buy"].tolist(), buys)
    _same(evidence.labels["click"].tolist(), clicks)
    _same(evidence.labels["watch"].tolist(), [c["labels.watch"] for _, c in flat])
    _same(evidence.engaged.tolist(), engaged)
    _same(evidence.targets[:, 0].tolist(), clicks)
    _same(evidence.targets[:, 1].tolist(), buys)
    names = rich_log.schema.source_names
    sources = [k if k < 0 else names[k] for k in evidence.source.tolist()]
    stages = [c["candidates.stage"] for _, c in flat]
    assert sources == [_source(s, e) for s, e in zip(stages, engaged, strict=True)]
    assert {POSITIVE, UNKNOWN, *names} == set(sources)  # every case was met
    assert None in buys
    assert buys.count(0.0) > [c["labels.buy"] for _, c in flat].count(0.0)
    assert evidence.time.tolist() == [row["time"] for row in rich_rows]


@given(
    observed=st.none() | st.integers(0, 30),
    time=st.integers(0, 10),
    window=st.none() | st.integers(0, 15),
    value=st.sampled_from([None, 0.0, 1.0]),
)
def test_delayed_labels(
    observed: int | None, time: int, window: int | None, value: float | None
) -> None:
    label = Label(name="buy", window_ms=window)
    schema = Schema(labels=(label,), engaged="buy")
    raw = np.array([np.nan if value is None else value], dtype=np.float32)
    columns = Columns(
        {
            "row": np.arange(1),
            "time": np.array([time]),
            "observed_until": np.array([-1 if observed is None else observed]),
        },
        {"candidates": Group(np.array([0, 1]), {"labels.buy": raw})},
    )
    row = {"time": time, "observed_until": observed}
    expected = value if window is None else _delayed(value, row, window)
    _same(label_columns(columns, schema)["buy"].tolist(), [expected])


STAGES = ("a", "b", "c", "shown")


@given(
    sources=st.permutations([("easy", ("a", "b")), ("hard", ("shown",))]),
    candidates=st.lists(st.tuples(st.sampled_from(STAGES), st.sampled_from([None, 0.0, 1.0]))),
)
def test_source_codes(
    sources: list[tuple[str, tuple[str, ...]]],
    candidates: list[tuple[str, float | None]],
) -> None:
    schema = Schema(stages=STAGES, sources=dict(sources), labels=(Label(name="x"),), engaged="x")
    stage = np.array([STAGES.index(s) for s, _ in candidates], dtype=np.int64)
    engaged = np.array([np.nan if e is None else e for _, e in candidates], dtype=np.float32)
    expected = []
    for name, value in candidates:
        member = [k for k, (_, stages) in enumerate(sources) if name in stages]
        if value == 1.0:
            expected.append(POSITIVE)
        elif not member or (name == "shown" and value is None):
            expected.append(UNKNOWN)  # stage c is in no source
        else:
            expected.append(member[0])
    assert source_codes(stage, engaged, schema).tolist() == expected


def test_tasks_are_those_of_the_training_schema(rich_log: Log) -> None:
    (columns,) = rich_log.all().columns(10**6)
    trained = msgspec.structs.replace(
        rich_log.schema, tasks=(Task(name="long", positive="watch >= 31 and not buy"),)
    )
    evidence = build_evidence(columns, rich_log.schema, trained)
    labels = {k: v.tolist() for k, v in evidence.labels.items()}
    assert evidence.targets.shape == (len(labels["watch"]), 1)
    for found, watch, buy in zip(
        evidence.targets[:, 0].tolist(), labels["watch"], labels["buy"], strict=True
    ):
        if watch < 31 or buy > 0:
            assert found == 0.0
        elif math.isnan(watch) or math.isnan(buy):
            assert math.isnan(found)
        else:
            assert found == 1.0
    engaged = build_evidence(columns, rich_log.schema, msgspec.structs.replace(trained, tasks=()))
    np.testing.assert_array_equal(engaged.targets[:, 0], engaged.engaged)


def test_what_the_log_does_not_say(plain_log: Callable[..., Log]) -> None:
    evidence = _evidence(plain_log(range(5), [0] * 5))
    assert evidence.weight.tolist() == evidence.propensity.tolist() == [1.0] * 10
    assert evidence.sample_prob.tolist() == [1.0] * 10
    assert evidence.scored_online.tolist() == [True] * 10
    assert evidence.channel.tolist() == [-1] * 10
    assert evidence.ranks == evidence.scores == {}


@pytest.mark.parametrize("click", [0.0, 1.0, None])
def test_an_exposure_without_feedback_is_no_negative(
    plain_log: Callable[..., Log], click: float | None
) -> None:
    evidence = _evidence(plain_log(range(3), [0] * 3, clicks=lambda row, k: click))
    expected = {0.0: 3, 1.0: POSITIVE, None: UNKNOWN}[click]
    assert evidence.source.tolist() == [expected] * 6
