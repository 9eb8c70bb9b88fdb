"""What every sampler must do, whatever it chooses: the contract of ``Sampler``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from prerank import sampling
from prerank.config import from_values
from prerank.log import Columns, Transforms
from prerank.sampling import sampled

SMALL = {"quotas": {"rank": 4, "prerank": 6, "random": 2.0}, "alive": False}
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "defaults": ("hap", {}),
    "small": ("hap", SMALL),
    "shared": ("hap", {**SMALL, "pool": "shared"}),
    "popularity": ("hap", {**SMALL, "distribution": "popularity", "power": 0.5}),
    "alive": ("hap", {**SMALL, "alive": True}),
    "positive": ("hap", {**SMALL, "requests": "with_positive", "candidate_features": "missing"}),
}
OWN = [name for name, (_, options) in SAMPLERS.items() if options.get("pool") != "shared"]


@pytest.fixture
def make(rich: Any) -> Callable[[str], Any]:
    def build(name: str) -> Any:
        kind, options = SAMPLERS[name]
        config = from_values(sampling.get(kind).Config, options, where="test")
        return config.build(rich.log["train"])

    return build


def test_every_sampler_of_the_table_is_here() -> None:
    assert {kind for kind, _ in SAMPLERS.values()} == set(sampling.TABLE)


def requests_of(batches: Iterator[Columns], split: Any) -> dict[int, dict[str, Any]]:
    """Return each request's candidates by its row."""
    return {
        row: candidates
        for columns in batches
        for row, candidates in zip(columns.scalars["row"].tolist(), split(columns), strict=True)
    }


def assert_equal(one: dict[int, dict[str, Any]], two: dict[int, dict[str, Any]]) -> None:
    assert set(one) == set(two)
    for row, candidates in one.items():
        for name, values in candidates.items():
            np.testing.assert_array_equal(values, two[row][name], err_msg=f"{row} {name}")


@pytest.mark.parametrize("name", OWN)
def test_batch_size_order_and_other_requests_change_nothing(
    rich: Any, make: Any, split: Any, name: str
) -> None:
    part, sampler = rich.log["train"], make(name)
    whole = requests_of(sampled(part.columns(10**6), sampler, seed=3, epoch=1), split)
    for size, shuffle in ((1, False), (7, True), (64, True)):
        order = part.columns(size, seed=size, shuffle=shuffle)
        assert_equal(whole, requests_of(sampled(order, sampler, seed=3, epoch=1), split))


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_same_keys_give_the_same_draws_and_others_do_not(
    rich: Any, make: Any, split: Any, name: str
) -> None:
    part = rich.log["train"]

    def run(sampler: Any, seed: int, epoch: int) -> dict[int, dict[str, Any]]:
        return requests_of(sampled(part.columns(32), sampler, seed=seed, epoch=epoch), split)

    first = run(make(name), 0, 0)
    assert_equal(first, run(make(name), 0, 0))
    for seed, epoch in ((1, 0), (0, 1)):
        other = run(make(name), seed, epoch)
        with pytest.raises(AssertionError):
            assert_equal(first, other)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_see_what_one_process_sees(
    rich: Any, make: Any, name: str, world_size: int
) -> None:
    part, sampler = rich.log["train"], make(name)
    transforms = Transforms.fit(part, min_count=1)

    def run(rank: int, size: int) -> dict[int, tuple[list[int], list[float]]]:
        found = {}
        for batch in part.batches(
            transforms, 16, seed=5, shuffle=True, rank=rank, world_size=size, sampler=sampler
        ):
            offsets = batch.inputs.offsets.tolist()
            for k, row in enumerate(batch.evidence.row.tolist()):
                mine = slice(offsets[k], offsets[k + 1])
                found[row] = (
                    batch.evidence.item[mine].tolist(),
                    batch.evidence.sample_prob[mine].tolist(),
                )
        return found

    shares = [run(rank, world_size) for rank in range(world_size)]
    assert sum(map(len, shares)) == len(set().union(*shares))
    assert {row: items for share in shares for row, items in share.items()} == run(0, 1)


@pytest.mark.parametrize("name", SAMPLERS)
def test_starting_later_and_prefetching_change_nothing(rich: Any, make: Any, name: str) -> None:
    part, sampler = rich.log["train"], make(name)
    transforms = Transforms.fit(part, min_count=1)
    options: Any = {"seed": 1, "epoch": 2, "shuffle": True, "sampler": sampler}
    whole = list(part.batches(transforms, 16, prefetch=0, **options))
    late = list(part.batches(transforms, 16, start=4, prefetch=3, **options))
    assert len(late) == len(whole) - 4
    for one, two in zip(whole[4:], late, strict=True):
        assert torch.equal(one.inputs.items.categorical, two.inputs.items.categorical)
        assert torch.equal(one.inputs.candidate.dense, two.inputs.candidate.dense)
        assert torch.equal(one.evidence.item, two.evidence.item)


@pytest.mark.parametrize("name", SAMPLERS)
def test_all_that_was_shown_and_all_positives_stay(
    rich: Any, make: Any, split: Any, name: str
) -> None:
    part = rich.log["train"]
    stored = requests_of(part.columns(32), split)
    after = requests_of(sampled(part.columns(32), make(name), seed=0), split)
    last = len(rich.log.schema.stages) - 1
    for row, candidates in after.items():
        before = stored[row]
        must = before["item"][(before["stage"] == last) | (before["labels.click"] == 1)]
        assert set(must) <= set(candidates["item"])
    if name != "positive":
        assert set(after) == set(stored)


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_item_twice_in_a_request_and_types_stay(
    rich: Any, make: Any, split: Any, name: str
) -> None:
    (before,) = rich.log["train"].columns(10**6)
    (after,) = sampled([before], make(name), seed=0)
    for mine in split(after):
        assert len(set(mine["item"].tolist())) == len(mine["item"])
    group, stored = after.candidates, before.candidates
    assert group.offsets.dtype == np.int64
    assert group.offsets[-1] == len(group.values["item"])
    for column, values in stored.values.items():
        if column != "sample_prob":
            assert group.values[column].dtype == values.dtype, column
    assert group.values["sample_prob"].dtype == np.float32
    chance = group.values["sample_prob"]
    assert ((chance > 0) & (chance <= 1)).all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_requests_and_no_candidates(rich: Any, make: Any, name: str) -> None:
    (columns,) = rich.log["train"].columns(10**6)
    none = columns.slice(0, 0)
    assert make(name).sample(none, seed=0, epoch=0, key=0).num_requests == 0
    group = columns.candidates
    empty = type(group)(np.zeros(4, np.int64), {k: v[:0] for k, v in group.values.items()})
    three = Columns(
        columns.slice(0, 3).scalars, {**columns.slice(0, 3).groups, "candidates": empty}
    )
    after = make(name).sample(three, seed=0, epoch=0, key=0)
    assert after.candidates.offsets[-1] == 0


@pytest.mark.parametrize("name", SAMPLERS)
def test_stored_columns_are_not_written_to(rich: Any, make: Any, whole: Any, name: str) -> None:
    columns, again = (whole(rich.log["train"]) for _ in range(2))
    make(name).sample(columns, seed=0, epoch=0, key=0)
    for column, values in columns.candidates.values.items():
        np.testing.assert_array_equal(values, again.candidates.values[column])


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_description_survives_json_and_builds_it_again(rich: Any, make: Any, name: str) -> None:
    values = make(name).describe()
    again = msgspec.json.decode(msgspec.json.encode(values))
    again.pop("fitted_on", None)
    config = from_values(sampling.get(SAMPLERS[name][0]).Config, again, where="test")
    assert config.build(rich.log["train"]).describe() == values
