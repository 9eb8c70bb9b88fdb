"""The three layouts hold the same impressions; storage and end-to-end add up what they measure."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prerank.bench.end_to_end import PHASES, bench_end_to_end, impressions_to_loss
from prerank.bench.layouts import LAYOUTS, request_bytes, write_layout
from prerank.bench.storage import bench_storage, write_synthetic
from prerank.log import Columns, Log, open_log
from prerank.world import WorldConfig, write_world


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    path: Path = tmp_path_factory.mktemp("layouts") / "log"
    write_world(path, WorldConfig(num_users=30, num_items=300, num_requests=60, num_days=3))
    return open_log(path)


def impressions(log: Log) -> Counter[Any]:
    """Everything stored of each impression, its history as bytes."""
    found: Counter[Any] = Counter()
    for columns in log.all().columns(16):
        found.update(_rows(columns))
    return found


def _rows(columns: Columns) -> list[Any]:
    candidates = columns.candidates
    of = np.repeat(np.arange(columns.num_requests), np.diff(candidates.offsets))
    lists = {name: group for name, group in columns.groups.items() if name != "candidates"}
    sides = [
        (
            *(str(x[r]) for name, x in columns.scalars.items() if name != "row"),
            *(
                values.tobytes()
                for group in lists.values()
                for values in group.slice(r, r + 1).values.values()
            ),
        )
        for r in range(columns.num_requests)
    ]
    return [(*sides[r], *(str(x[i]) for x in candidates.values.values())) for i, r in enumerate(of)]


def test_layouts_hold_the_same_impressions(log: Log, tmp_path: Path) -> None:
    written = {
        layout: write_layout(log["train"], tmp_path / layout, layout, per_request=6, max_history=7)
        for layout in LAYOUTS
    }
    num = log["train"].num_requests
    assert written["requests"].num_requests == num
    assert {x.manifest.num_candidates for x in written.values()} == {6 * num}
    assert {written[name].num_requests for name in ("sorted", "shuffled")} == {6 * num}
    expected = impressions(written["requests"])
    assert impressions(written["sorted"]) == impressions(written["shuffled"]) == expected
    merged = [c.num_requests for c in written["shuffled"].all().deduplicated().columns(10**6)]
    assert merged == [num]
    assert sum(request_bytes(x) > 0 for x in written.values()) == 3


def test_a_layout_keeps_stored_candidates_and_the_end_of_histories(
    log: Log, tmp_path: Path
) -> None:
    kept = write_layout(log["train"], tmp_path / "log", "requests", per_request=6, max_history=7)
    stored = next(log["train"].columns(10**6))
    chosen = next(kept.all().columns(10**6))
    assert chosen.scalars["time"].tolist() == stored.scalars["time"].tolist()
    last = len(log.schema.stages) - 1
    for r in range(chosen.num_requests):
        a, b = (x.candidates.slice(r, r + 1).values for x in (chosen, stored))
        assert set(a["item"]) <= set(b["item"])
        assert (a["stage"] == last).sum() == min(3, (b["stage"] == last).sum())
        for name, group in stored.groups.items():
            if name.startswith("history."):
                events = group.slice(r, r + 1).values["item"][-7:]
                assert (
                    chosen.groups[name].slice(r, r + 1).values["item"].tolist() == events.tolist()
                )


def test_the_synthetic_log_is_as_declared(tmp_path: Path) -> None:
    made = write_synthetic(tmp_path / "log", num_requests=50, per_request=4, history=20)
    columns = next(made.all().columns(50))
    assert np.diff(columns.candidates.offsets).tolist() == [4] * 50
    lengths = np.diff(columns.groups["history.seen"].offsets)
    assert 10 <= lengths.min() <= lengths.max() <= 30
    assert len(made.schema.stored("user")) == 20
    assert len(made.schema.stored("candidate")) == 5
    first: dict[int, float] = {}
    for user, value in zip(columns.scalars["user"], columns.scalars["u3"], strict=True):
        assert first.setdefault(user, value) == value


def test_storage_measures_both_logs(log: Log) -> None:
    found = bench_storage(log, per_request=(1, 4), num_requests=15, max_history=50, repeats=1)
    assert len(found["rows"]) == 2 * 2 * 3
    assert {row["log"] for row in found["rows"]} == {"synthetic", "log"}
    for row in found["rows"]:
        assert row["impressions"] == 15 * row["k"]
        assert row["rows"] == (15 if row["layout"] == "requests" else row["impressions"])
        assert row["bytes_per_impression"] * row["impressions"] == pytest.approx(1e6 * row["mb"])
    sizes = {r["layout"]: r["mb"] for r in found["rows"] if (r["log"], r["k"]) == ("synthetic", 4)}
    ratio = found["ratios"]["storage/synthetic/k4/shuffled/bytes"]
    assert ratio == sizes["shuffled"] / sizes["requests"] > 1


def test_impressions_to_a_loss() -> None:
    course = [(0, 0.7), (100, 0.5), (200, 0.55), (300, 0.4)]
    assert impressions_to_loss(course, 0.7) == 0
    assert impressions_to_loss(course, 0.6) == pytest.approx(50)
    assert impressions_to_loss(course, 0.475) == pytest.approx(250)
    assert impressions_to_loss(course, 0.3) is None


@pytest.mark.parametrize("name", ["mlp", "din"])
def test_every_way_sees_the_same_impressions(log: Log, tmp_path: Path, name: str) -> None:
    found = bench_end_to_end(
        log,
        tmp_path / "layouts",
        model_names=(name,),
        per_request=(4,),
        impressions_per_update=32,
        epochs=1,
        evaluations=2,
        rates=(2e-3,),
    )
    rows = {row["way"]: row for row in found["rows"]}
    assert set(rows) == {"requests", "deduped", "impressions"}
    num = 4 * log["train"].num_requests
    for course in found["courses"]:
        assert [at for at, _ in course["losses"]][::2] == [0, num]
    start = {course["losses"][0][1] for course in found["courses"]}
    assert max(start) - min(start) < 1e-6  # the same weights, the same validation part
    for row in rows.values():
        assert sum(row["us_per_impression"].values()) == pytest.approx(row["us"])
        assert row["cpu_s_to_target"] == pytest.approx(
            1e-6 * row["us"] * row["impressions_to_target"]
        )
        assert set(row["us_per_impression"]) == set(PHASES)
    per_update = {way: row["rows_per_update"] for way, row in rows.items()}
    assert per_update["impressions"] == pytest.approx(4 * per_update["requests"])
    assert per_update["requests"] <= per_update["deduped"] < 1.5 * per_update["requests"]
    key = f"end_to_end/{name}/k4/impressions"
    seconds = {way: row["cpu_s_to_target"] for way, row in rows.items()}
    assert found["ratios"][key] == seconds["impressions"] / seconds["requests"]
