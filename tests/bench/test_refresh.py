"""The benchmark of daily refresh on a tiny world: what is compared; nothing looks ahead."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from prerank.bench import refresh
from prerank.bench.refresh import REFRESH_WORLD, bench_refresh
from prerank.log import RowRanges
from prerank.training import FitConfig, read_run

TINY = msgspec.structs.replace(
    REFRESH_WORLD,
    num_users=30,
    num_items=200,
    num_requests=200,
    num_days=5,
    num_clusters=8,
    num_retrieved=30,
    num_preranked=20,
    num_ranked=12,
    num_exposed=6,
)
FIT = FitConfig(batch_size=32, min_count=1)


@pytest.fixture(scope="module", autouse=True)
def no_fsync() -> Iterator[None]:
    """Waiting for the disk is most of the time of a tiny run, and no test cuts the power."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    options: dict[str, Any] = {"world": TINY, "first_days": 2, "first": FIT, "daily": FIT}
    return bench_refresh(seeds=(0, 1), num_resamples=50, **options)


def test_every_way_is_measured_on_every_day(result: dict[str, Any]) -> None:
    ways = {"frozen", "daily", "daily_reset", "retrained"}
    found = {(row["seed"], row["day"], row["way"]) for row in result["rows"]}
    assert found == {(s, d, w) for s in (0, 1) for d in (1, 2) for w in ways}
    assert len(result["rows"]) == len(found)
    for row in result["rows"]:
        assert 0 < row["gauc/T1"] < 1
        assert 0 < row["recall@10/T1"] <= 1
        assert (row["train_seconds"] > 0) == (row["way"] != "frozen")


def test_differences_pool_days_and_worlds(result: dict[str, Any]) -> None:
    rows = result["rows"]
    for metric in ("gauc", "recall@10"):
        for way in ("daily", "daily_reset", "retrained"):
            key = f"refresh/{metric}/{way}/frozen"
            found = result["differences"][key]
            assert found["low"] <= found["value"] <= found["high"]
            by_day = [
                sum(
                    sign * row[f"{metric}/T1"]
                    for row in rows
                    for name, sign in ((way, 1), ("frozen", -1))
                    if (row["seed"], row["day"], row["way"]) == (seed, day, name)
                )
                for seed in (0, 1)
                for day in (1, 2)
            ]
            assert min(by_day) - 1e-9 <= found["value"] <= max(by_day) + 1e-9
            assert result["ratios"][key] > 0
    assert result["ratios"]["refresh/seconds/daily/retrained"] > 0
    assert result["machine"]["torch"]


def test_a_day_is_evaluated_before_it_is_trained_on(
    result: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs see no row of the day they are judged by; a second time gives the same numbers."""
    judged: list[tuple[str, int]] = []
    real = refresh._Seed._evaluate

    def evaluate(self: Any, part: Any, models: Any, units: Any, number: int) -> Any:
        for way, model in models.items():
            seen = read_run(self.runs[way]).seen
            assert sum(RowRanges(rows.rows).overlap(part.rows) for rows in seen) == 0
            assert model.transforms is not None
            judged.append((way, number))
        return real(self, part, models, units, number)

    monkeypatch.setattr(refresh._Seed, "_evaluate", evaluate)
    options: dict[str, Any] = {"world": TINY, "first_days": 2, "first": FIT, "daily": FIT}
    again = bench_refresh(seeds=(0,), num_resamples=10, **options)
    assert len(judged) == 8

    def numbers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if k != "train_seconds"} for row in rows]

    assert numbers(again["rows"]) == numbers(result["rows"])[:8]
