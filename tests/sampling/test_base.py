"""The plain function on any stream of columns, and finding samplers by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from prerank import sampling
from prerank.errors import InputError
from prerank.log import Transforms
from prerank.sampling import HAPSampler, sampled


@pytest.mark.parametrize("pool", ["request", "shared"])
def test_a_stream_of_columns_gets_what_the_reader_makes(funnel: Any, pool: Any) -> None:
    part = funnel.log["train"]
    sampler = HAPSampler.Config(pool=pool, alive=False).build(part)
    transforms = Transforms.fit(part, min_count=1)
    read = part.batches(transforms, 16, seed=4, epoch=2, shuffle=True, sampler=sampler)
    order = part.columns(16, seed=4, epoch=2, shuffle=True)
    for batch, columns in zip(read, sampled(order, sampler, seed=4, epoch=2), strict=True):
        values = columns.candidates.values
        assert batch.evidence.item.tolist() == values["item"].tolist()
        np.testing.assert_array_equal(batch.evidence.sample_prob.numpy(), values["sample_prob"])


def test_streams_are_lazy(funnel: Any) -> None:
    sampler = HAPSampler.Config(alive=False).build(funnel.log)

    def endless() -> Any:
        columns = next(funnel.log["train"].columns(4))
        while True:
            yield columns

    stream = sampled(endless(), sampler, seed=0)
    assert next(stream).num_requests == next(stream).num_requests == 4


def test_names() -> None:
    assert sampling.get("hap") is HAPSampler
    with pytest.raises(InputError, match="did you mean 'hap'"):
        sampling.get("hapo")
