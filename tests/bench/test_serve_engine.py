"""The engine table: all ways score the same, and what is reported follows from what was timed."""

from __future__ import annotations

from pathlib import Path

import pytest

from prerank.bench.serve_engine import engine_table


@pytest.mark.slow
def test_ways_agree_and_ratios_follow(tmp_path: Path) -> None:
    told: list[str] = []
    result = engine_table(tmp_path, quick=True, say=told.append)
    rows = {row["way"]: row for row in result["rows"]}
    assert list(rows)[:4] == ["tiled", "split", "states", "cascade10"]
    # The same model in the same precision: what is asserted inside is not all, orders agree too.
    assert rows["tiled"]["agreement"] == rows["split"]["agreement"] == 1.0
    assert rows["tiled"]["recall"] == rows["states"]["recall"]
    assert rows["tiled"]["gflop"] > rows["split"]["gflop"] > rows["states"]["gflop"]
    assert rows["cascade10"]["gflop"] < rows["cascade30"]["gflop"] < rows["states"]["gflop"]
    ms = {name: row["cpu_ms"] for name, row in rows.items()}
    ratios = result["ratios"]
    assert ratios["serve/c100/algebra"] == pytest.approx(ms["tiled"] / ms["states"])
    assert ratios["serve/c100/cascade30"] == pytest.approx(ms["states"] / ms["cascade30"])
    again = engine_table(tmp_path, quick=True, say=(later := []).append)
    assert len(told) > len(later)  # nothing is trained twice
    assert again["rows"][0]["recall"] == result["rows"][0]["recall"]
