"""Item statistics against counting by hand, over the past only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prerank.errors import InputError
from prerank.log import Log, Transforms, check_log, open_log
from prerank.log.growth import append_log, compute_stats, join_labels, parse_window
from prerank.schema import Schema

Row = dict[str, Any]
DAY, HOUR = 86_400_000, 3_600_000
FILE = "item_stats/part-00000.parquet"


def _exposures(rows: list[Row], until: int = -1) -> Iterator[tuple[int, int, float]]:
    """``(time, item, engaged)`` of exposures whose engagement is known: click or watch >= 10."""
    for row in rows:
        columns = ("candidates.item", "candidates.stage", "labels.click", "labels.watch")
        for item, stage, click, watch in zip(*(row[c] for c in columns), strict=True):
            if stage != "exposed":
                continue
            if click == 1 or (watch is not None and watch >= 10):
                yield row["time"], item, 1.0
            elif click == 0 and watch is not None:
                yield row["time"], item, 0.0


def _as_of(
    rows: list[Row], item: int, time: int, window: int, step: int, prior: float, delay: int = 0
) -> tuple[float, float]:
    """Count and rate that a request may know: of the last whole step that began before it."""
    now = (time - 1) // step * step
    end = now - math.ceil(delay / step) * step
    inside = [(i, e) for t, i, e in _exposures(rows) if end - window <= t < end]
    shown = sum(i == item for i, _ in inside)
    engaged = sum(e for i, e in inside if i == item)
    mean = sum(e for _, e in inside) / max(len(inside), 1)
    return shown, (engaged + prior * mean) / (shown + prior)


@pytest.mark.parametrize(
    ("windows", "every", "prior", "delay"),
    [
        ({"1d": DAY}, "1d", 20.0, 0),
        ({"6h": 6 * HOUR, "2d": 2 * DAY}, "6h", 0.5, 0),
        ({"12h": 12 * HOUR}, "3h", 5.0, 10 * HOUR),
    ],
)
def test_every_candidate_sees_what_counting_by_hand_gives(
    make_log: Callable[..., Log],
    schema: Schema,
    many_rows: list[Row],
    tmp_path: Path,
    windows: dict[str, int],
    every: str,
    prior: float,
    delay: int,
) -> None:
    labels = tuple(
        msgspec.structs.replace(label, window_ms=delay or None) if label.name == "buy" else label
        for label in schema.labels
    )
    changed = msgspec.structs.replace(schema, labels=labels)
    log = make_log(many_rows, schema=changed, out=tmp_path / "log")
    report = compute_stats(log.path, list(windows), every=every, prior=prior)
    assert report.num_impressions == sum(1 for _ in _exposures(many_rows))
    assert report.features == tuple(
        f"{kind}_{w}" for w in windows for kind in ("impressions", "engaged_rate")
    )
    log = open_log(log.path)
    assert check_log(log).ok
    assert log.items.stats is not None
    step = parse_window(every)
    known = 0
    for row in many_rows:
        for raw in row["candidates.item"]:
            item = log.items.ids.encode(pa.array([raw]))
            for name, window in windows.items():
                shown, rate = _as_of(many_rows, raw, row["time"], window, step, prior, delay)
                at = np.array([row["time"]])
                found = log.items.stats.lookup(f"impressions_{name}", item, at)[0]
                if np.isnan(found):  # no impression of the item was ever counted
                    assert shown == 0
                    continue
                assert found == shown
                known += shown > 0
                if shown:
                    value = log.items.stats.lookup(f"engaged_rate_{name}", item, at)[0]
                    assert value == pytest.approx(rate, abs=1e-6)
    assert known > 20


def test_values_are_joined_strictly_before_the_request(
    plain_log: Callable[..., Log], tmp_path: Path
) -> None:
    start = 20_000 * DAY
    times = [start + 5, start + DAY, start + DAY + 1, start + 2 * DAY, start + 9 * DAY]
    log = plain_log(times, ["u"] * 5, clicks=lambda r, k: 1.0, out=tmp_path / "log")
    compute_stats(log.path, ["1d"], prior=0.0)
    log = open_log(log.path)
    assert log.items.stats is not None
    item = log.items.ids.encode(pa.array([0] * 6))  # shown by the first request only
    when = np.array([start + 5, start + DAY, start + DAY + 1, start + 2 * DAY, start + 3 * DAY, 0])
    counts = log.items.stats.lookup("impressions_1d", item, when)
    # A value valid from midnight is for requests after it, not for one at midnight itself.
    np.testing.assert_array_equal(counts, [np.nan, np.nan, 1.0, 1.0, 0.0, np.nan])
    rates = log.items.stats.lookup("engaged_rate_1d", item, when)
    np.testing.assert_array_equal(rates, [np.nan, np.nan, 1.0, 1.0, np.nan, np.nan])


def test_the_future_does_not_change_what_a_request_sees(
    base_log: Log, later: pa.Table, many_rows: list[Row]
) -> None:
    def seen() -> list[np.ndarray]:
        log = open_log(base_log.path)
        assert log.items.stats is not None
        columns = next(log.all().columns(30))
        time = np.repeat(columns.scalars["time"], np.diff(columns.candidates.offsets))
        item = columns.candidates.values["item"]
        return [log.items.stats.lookup(name, item, time) for name in report.features]

    report = compute_stats(base_log.path, ("1d", "2d"))
    before = seen()
    append_log(base_log.path, [later])
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(before, seen(), strict=True))
    again = compute_stats(base_log.path, ("1d", "2d"))  # again over the longer log
    assert again.num_impressions > report.num_impressions
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(before, seen(), strict=True))
    schema = open_log(base_log.path).schema
    assert [f.name for f in schema.features].count("impressions_1d") == 1


def test_late_labels_count_when_computed_again(base_log: Log, many_rows: list[Row]) -> None:
    first = compute_stats(base_log.path, ("1d",))
    pairs = [(r["request_id"], i) for r in many_rows[:30] for i in r["candidates.item"]]
    ids, items = (list(column) for column in zip(*pairs, strict=True))
    late = pa.table({"request_id": ids, "item": items, "click": [1.0] * len(ids)})
    join_labels(base_log.path, late)
    second = compute_stats(base_log.path, ("1d",))
    shown = sum(s == "exposed" for r in many_rows[:30] for s in r["candidates.stage"])
    assert first.num_impressions < second.num_impressions == shown


def test_statistics_are_inputs_with_a_tag(base_log: Log) -> None:
    compute_stats(base_log.path, ("1d",))
    log = open_log(base_log.path)
    features = [f for f in log.schema.features if "statistic" in f.tags]
    assert [(f.owner, f.kind) for f in features] == [("candidate", "dense")] * 2
    transforms = Transforms.fit(log["train"])
    batch = next(log.all().batches(transforms, 30, prefetch=0))
    assert batch.inputs.candidate.dense.shape[1] == 2 * 4  # with missing indicators
    assert batch.inputs.candidate.dense.isfinite().all()


@pytest.mark.parametrize(
    ("windows", "options", "says"),
    [
        (["1w"], {}, "window '1w': expected a number of hours or days"),
        (["0d"], {}, "window '0d'"),
        (["36h"], {"every": "1d"}, "36h is no multiple of 1d"),
        (["1d", "24h"], {}, "expected different ones"),
        ([], {}, r"windows \(none\)"),
        (["1d"], {"prior": -1.0}, "prior -1.0: expected"),
    ],
)
def test_bad_options(base_log: Log, windows: list[str], options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        compute_stats(base_log.path, windows, **options)
    assert open_log(base_log.path).schema.lineage.revision == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.slice(0, 3).take([1, 0, 2]), "not by item and time"),
        (lambda t: pa.concat_tables([t.slice(0, 1), t]), "not by item and time"),
        (lambda t: t.drop_columns(["impressions_1d"]), "no column 'impressions_1d'"),
        (lambda t: t.set_column(0, "item", pa.array([99] * len(t), pa.int32())), "outside the"),
        (lambda t: t.set_column(0, "item", pa.array([3] * len(t))), "'item' is int64"),
        (
            lambda t: t.set_column(1, "valid_from_ms", pa.nulls(len(t), pa.int64())),
            "nulls, expected int64 without",
        ),
        (
            lambda t: t.set_column(2, "impressions_1d", pa.array([np.inf] * len(t), pa.float32())),
            "not finite",
        ),
        (
            lambda t: t.set_column(2, "impressions_1d", pa.array(["a"] * len(t))),
            "'impressions_1d' is string",
        ),
    ],
)
def test_damaged_statistics_are_named(
    base_log: Log,
    tamper: Callable[..., None],
    change: Callable[[pa.Table], pa.Table],
    says: str,
) -> None:
    compute_stats(base_log.path, ("1d",))
    tamper(base_log.path, FILE, change)
    with pytest.raises(InputError, match=says) as caught:
        open_log(base_log.path).items  # noqa: B018
    assert "\n" not in str(caught.value)
    assert "part-00000.parquet" in str(caught.value)
    report = check_log(base_log.path)
    assert not report.ok
    assert any(f.level == "error" for f in report.findings)


def test_rows_are_few_and_ordered(base_log: Log) -> None:
    report = compute_stats(base_log.path, ("1d",))
    table = pq.read_table(base_log.path / FILE)
    keys = list(zip(table["item"].to_pylist(), table["valid_from_ms"].to_pylist(), strict=True))
    assert keys == sorted(set(keys))
    assert report.num_rows == len(keys)
    assert all(time % DAY == 0 for _, time in keys)
