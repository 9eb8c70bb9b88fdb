"""Random negatives of real impressions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prerank.adapters import get
from prerank.errors import InputError
from prerank.log import open_log, split_log
from prerank.sampling import HAPSampler, sampled, tally

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("pool", ["request", "shared"])
def test_random_negatives_of_news_impressions(real_data: Path, tmp_path: Path, pool: str) -> None:
    get("mind")(real_data / "mind5k", tmp_path / "log")
    log = open_log(tmp_path / "log")
    split_log(log)
    log = open_log(tmp_path / "log")
    part = log["train"]
    with pytest.raises(InputError, match="needs ranks of stage"):
        HAPSampler.Config().build(part)  # impressions alone have no ranks
    options = {"quotas": {"random": 2.0}, "floors": {}, "pool": pool}
    sampler = HAPSampler.Config(**options, distribution="popularity").build(part)
    shown = np.zeros(log.items.num_items)
    first_shown = np.full(log.items.num_items, np.iinfo(np.int64).max)
    for columns in part.columns(1024):
        items = columns.candidates.values["item"]
        shown += np.bincount(items, minlength=len(shown))
        times = np.repeat(columns.scalars["time"], np.diff(columns.candidates.offsets))
        np.minimum.at(first_shown, items, times)
        for stream in log.schema.streams:
            group = columns.groups[f"history.{stream}"]
            times = np.repeat(columns.scalars["time"], np.diff(group.offsets))
            np.minimum.at(first_shown, group.values["item"], times)
    drawn = np.zeros(len(shown))
    for columns in sampled(part.columns(256), sampler, seed=1):
        group = columns.candidates
        random = group.values["stage"] == 0
        request = np.repeat(np.arange(columns.num_requests), np.diff(group.offsets))
        items = group.values["item"]
        pairs = request.astype(np.int64) * len(shown) + items
        assert len(np.unique(pairs)) == len(pairs)
        assert (first_shown[items[random]] < columns.scalars["time"][request[random]]).all()
        drawn += np.bincount(items[random], minlength=len(shown))
    counts = tally(part, sampler, seed=1)
    random_counts = counts.sources["random"]
    assert drawn.sum() == random_counts.taken > 0.9 * random_counts.wanted
    assert random_counts.wanted == 2 * counts.positives
    assert drawn[shown == 0].sum() == 0
    often, seldom = shown >= np.quantile(shown[shown > 0], 0.9), (shown > 0) & (shown <= 2)
    assert drawn[often].sum() / often.sum() > 5 * drawn[seldom].sum() / seldom.sum()
