"""What the counts say against what the sampled requests hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from prerank.sampling import HAPSampler, sampled, tally

STAGES = {"random": (0,), "prerank": (1,), "rank": (2, 3), "exposed": (4,)}


@pytest.mark.parametrize("requests", ["all", "with_positive"])
def test_counts_are_those_of_the_candidates(rich: Any, split: Any, requests: Any) -> None:
    part = rich.log["train"]
    sampler = HAPSampler.Config(
        quotas={"rank": 25, "prerank": 3.0, "random": 2.0, "exposed": None},
        floors={"prerank": 40},
        floor_share=1.0,
        alive=False,
        requests=requests,
    ).build(part)
    counts = tally(part, sampler, epoch=3, batch_size=11)
    before = split(next(part.columns(10**6)))
    columns = next(sampled(part.columns(10**6), sampler, seed=0, epoch=3))
    after = split(columns)
    positives = np.array([(m["labels.click"] == 1).sum() for m in before])
    used = np.ones(len(positives), bool) if requests == "all" else positives > 0
    assert counts.requests == part.num_requests
    assert counts.without_positive == (positives == 0).sum()
    assert counts.left_out == (~used).sum()
    assert counts.stored == 64 * part.num_requests
    assert counts.positives == positives.sum()
    assert counts.taken == len(columns.candidates.values["item"])
    for name, stages in STAGES.items():
        found = counts.sources[name]

        def of(candidates: list[dict[str, Any]], stages: tuple[int, ...] = stages) -> int:
            return sum(
                int((np.isin(m["stage"], stages) & (m["labels.click"] != 1)).sum())
                for m in candidates
            )

        assert found.taken == of(after), name
        assert found.stored == of(before), name
    num = int(used.sum())
    rank, prerank, random = (counts.sources[name] for name in ("rank", "prerank", "random"))
    assert (rank.wanted, rank.eligible, rank.starved) == (25 * num, 20 * num, num)
    per_positive = 3 * positives[used]
    assert prerank.wanted == per_positive.sum()
    assert prerank.eligible == 20 * num  # ranks 40 to 59
    assert prerank.starved == (per_positive > 20).sum()
    assert random.wanted == 2 * positives.sum()
    assert (random.eligible, random.starved) == (340 * num, 0)
    assert counts.sources["exposed"].wanted == counts.sources["exposed"].taken


def test_random_negatives_starve_where_no_item_is_known_yet(funnel: Any) -> None:
    sampler = HAPSampler.Config(quotas={"random": 30}, alive=True).build(funnel.log)
    counts = tally(funnel.log["train"], sampler).sources["random"]
    assert counts.starved >= 1
    assert counts.taken < counts.wanted == 30 * 60
