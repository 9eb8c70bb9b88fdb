"""Funnels of real logs: clean, and better than chance at finding what people really chose."""

from __future__ import annotations

from pathlib import Path

import pytest

from prerank.adapters import get
from prerank.funnel import FunnelConfig, build_funnel
from prerank.log import check_log, open_log


@pytest.mark.slow
@pytest.mark.parametrize(("name", "folder"), [("movielens", "ml100k"), ("mind", "mind5k")])
def test_funnel_of_a_real_log(real_data: Path, tmp_path: Path, name: str, folder: str) -> None:
    get(name)(real_data / folder, tmp_path / "log")
    source = open_log(tmp_path / "log")
    config = FunnelConfig(max_requests=300, refits=1)
    report = build_funnel(source, tmp_path / "funnel", config)
    checked = check_log(tmp_path / "funnel")
    assert checked.ok
    assert not checked.findings
    assert report.num_requests == 300
    assert report.record["clock"] == ("user" if folder == "ml100k" else "global")
    quotas = report.record["quotas"]
    listed = sum(report.counts[f"stage:{s}"] for s in ("retrieval", "prerank", "rank", "exposed"))
    assert listed >= 300 * quotas["retrieval"]
    # A blind order would keep this share of the real items by the pre-ranker's own ranks.
    blind = quotas["prerank"] / quotas["retrieval"]
    if folder == "ml100k":
        assert report.rates["within_prerank"] > 1.1 * blind
        assert report.rates["within_rank"] > 1.1 * quotas["rank"] / quotas["retrieval"]
