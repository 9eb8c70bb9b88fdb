"""The order of an epoch: a pure function of (seed, epoch, row), cut into batches and ranks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prerank.log import Log, Part, RowRanges, Transforms
from prerank.log.order import Window, plan_windows, shuffled, skip_windows
from prerank.rng import hash64, stream

NUM_REQUESTS = 83


@pytest.fixture(scope="module", autouse=True)
def _small_windows() -> object:
    """Three row groups per window, so that an epoch has many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prerank.log.log.GROUPS_PER_WINDOW", 3)
        yield


@pytest.fixture(scope="module")
def log(plain_log: Callable[..., Log]) -> Log:
    """83 requests in row groups of 4, 12 requests a file; a part with gaps."""
    gaps = np.array([row for row in range(NUM_REQUESTS) if row % 7 != 3 and not 40 <= row < 52])
    return plain_log(
        range(NUM_REQUESTS), [row % 6 for row in range(NUM_REQUESTS)], splits={"gaps": gaps}
    )


@pytest.fixture(scope="module")
def transforms(log: Log) -> Transforms:
    """Fitted on the whole log."""
    return Transforms.fit(log.all())


def _rows(part: Part, batch_size: int, **order: int) -> list[list[int]]:
    return [c.scalars["row"].tolist() for c in part.columns(batch_size, shuffle=True, **order)]


def _expected(log: Log, part: Part, seed: int, epoch: int) -> list[int]:
    """The order by its definition, one request at a time."""
    groups = [range(a, b) for a, b in zip(log._starts[:-1], log._starts[1:], strict=True)]
    members = {int(row) for row in part.rows.within(0, NUM_REQUESTS)}
    groups = [g for g in groups if members & set(g)]
    key = stream("order/groups")
    groups.sort(key=lambda g: int(hash64(key, seed, epoch, g[0])))
    order: list[int] = []
    for k in range(0, len(groups), 3):
        window = [row for group in groups[k : k + 3] for row in group if row in members]
        window.sort(key=lambda row: int(hash64(stream("order/rows"), seed, epoch, row)))
        order += window
    return order


@pytest.mark.parametrize("name", ["all", "gaps"])
@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (0, 1), (5, 0)])
def test_the_order_is_its_definition(log: Log, name: str, seed: int, epoch: int) -> None:
    part = log.all() if name == "all" else log["gaps"]
    expected = _expected(log, part, seed, epoch)
    assert sorted(expected) == part.rows.within(0, NUM_REQUESTS).tolist()
    for batch_size in (1, 5, 16, 200):
        batches = _rows(part, batch_size, seed=seed, epoch=epoch)
        assert [row for rows in batches for row in rows] == expected
        assert [len(rows) for rows in batches[:-1]] == [batch_size] * (len(batches) - 1)
        assert len(batches) == part.num_batches(batch_size)


def test_without_shuffling_requests_come_in_log_order(log: Log) -> None:
    part = log["gaps"]
    found = [r for c in part.columns(5, seed=3, epoch=2) for r in c.scalars["row"].tolist()]
    assert found == part.rows.within(0, NUM_REQUESTS).tolist()


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 99),
    batch_size=st.integers(1, 30),
    start=st.integers(0, 90),
    shuffle=st.booleans(),
)
def test_starting_at_a_batch_skips_exactly_those_before(
    log: Log, seed: int, epoch: int, batch_size: int, start: int, shuffle: bool
) -> None:
    part = log["gaps"]
    order = {"seed": seed, "epoch": epoch, "shuffle": shuffle}
    whole = [c.scalars["row"].tolist() for c in part.columns(batch_size, **order)]
    rest = [c.scalars["row"].tolist() for c in part.columns(batch_size, start=start, **order)]
    assert rest == whole[start:]
    assert sorted(r for rows in whole for r in rows) == part.rows.within(0, 10**6).tolist()


def test_starting_late_reads_only_the_row_groups_it_needs(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    original = log.read

    def spy(groups: tuple[int, ...], **more: bool) -> object:
        read.extend(groups)
        return original(groups, **more)

    monkeypatch.setattr(log, "read", spy)
    last = [c.scalars["row"].tolist() for c in log.all().columns(8, start=10, shuffle=True)]
    assert [len(rows) for rows in last] == [3]
    assert len(read) <= 3


@settings(max_examples=15)
@given(seed=st.integers(0, 2**31), world_size=st.integers(1, 5), batch_size=st.integers(1, 20))
def test_ranks_partition_every_batch(
    log: Log, transforms: Transforms, seed: int, world_size: int, batch_size: int
) -> None:
    part = log["gaps"]
    whole = _rows(part, batch_size, seed=seed)
    ranks = [
        [
            batch.evidence.row.tolist()
            for batch in part.batches(
                transforms,
                batch_size,
                seed=seed,
                shuffle=True,
                rank=rank,
                world_size=world_size,
                prefetch=0,
            )
        ]
        for rank in range(world_size)
    ]
    assert {len(batches) for batches in ranks} == {len(whole)}  # all ranks make as many steps
    for rows, *shares in zip(whole, *ranks, strict=True):
        for rank, share in enumerate(shares):
            assert share == rows[rank::world_size]


def test_a_rank_without_requests_gets_an_empty_batch(log: Log, transforms: Transforms) -> None:
    batch = next(log.all().batches(transforms, 2, rank=2, world_size=3, prefetch=0))
    assert (batch.num_requests, batch.num_candidates) == (0, 0)
    assert batch.inputs.candidate.dense.shape == (0, 2)
    assert batch.evidence.targets.shape == (0, 1)


def test_prefetching_changes_no_batch(log: Log, transforms: Transforms) -> None:
    plain, ahead = (
        list(log["gaps"].batches(transforms, 9, seed=4, epoch=2, shuffle=True, prefetch=p))
        for p in (0, 3)
    )
    assert len(plain) == len(ahead)
    for a, b in zip(plain, ahead, strict=True):
        assert torch.equal(a.evidence.row, b.evidence.row)
        assert torch.equal(a.evidence.engaged, b.evidence.engaged)
        assert torch.equal(a.inputs.items.categorical, b.inputs.items.categorical)
        assert torch.equal(a.inputs.candidate.dense, b.inputs.candidate.dense)


def test_file_boundaries_do_not_change_the_order(plain_log: Callable[..., Log], log: Log) -> None:
    users = [row % 6 for row in range(NUM_REQUESTS)]
    one_file = plain_log(range(NUM_REQUESTS), users, groups_per_part=1000)
    assert len({name for name, _ in log._groups}) > len({name for name, _ in one_file._groups}) == 1
    assert _rows(one_file.all(), 7, seed=3, epoch=1) == _rows(log.all(), 7, seed=3, epoch=1)


def test_seeds_and_epochs_give_different_orders(log: Log) -> None:
    keys = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2)]
    orders = {tuple(_rows(log.all(), NUM_REQUESTS, seed=s, epoch=e)[0]) for s, e in keys}
    assert len(orders) == len(keys)
    assert tuple(range(NUM_REQUESTS)) not in orders
    again = _rows(log.all(), 8, seed=1, epoch=1)
    assert again == _rows(log.all(), 8, seed=1, epoch=1)


@given(st.sets(st.integers(0, 60)), st.lists(st.integers(1, 9), min_size=1, max_size=12), st.data())
def test_windows_hold_every_chosen_row_once(
    rows: set[int], sizes: list[int], data: st.DataObject
) -> None:
    starts = np.cumsum([0, *sizes])
    rows = {row for row in rows if row < starts[-1]}
    per_window, shuffle = data.draw(st.integers(1, 5)), data.draw(st.booleans())
    windows = plan_windows(
        RowRanges.of(np.array(sorted(rows), dtype=np.int64)),
        starts,
        seed=1,
        epoch=2,
        shuffle=shuffle,
        groups_per_window=per_window,
    )
    groups = [g for window in windows for g in window.groups]
    assert len(set(groups)) == len(groups)
    assert set(groups) == {int(np.searchsorted(starts, r, side="right")) - 1 for r in rows}
    if not shuffle:
        assert groups == sorted(groups)
    for window in windows:
        assert 1 <= len(window.groups) <= per_window
        inside = [r for g in window.groups for r in range(starts[g], starts[g + 1]) if r in rows]
        assert window.num_requests == len(inside)


@given(st.lists(st.integers(1, 9), max_size=6), st.integers(0, 60))
def test_skipping_finds_the_window_of_a_position(sizes: list[int], position: int) -> None:
    windows = [Window((k,), size) for k, size in enumerate(sizes)]
    index, inside = skip_windows(windows, position)
    assert sum(sizes[:index]) + inside == position
    assert index == len(sizes) or inside < sizes[index]


@given(st.lists(st.integers(0, 2**40), unique=True, max_size=30))
def test_shuffled_order_of_a_row_does_not_depend_on_the_others(rows: list[int]) -> None:
    index = np.array(rows, dtype=np.int64)
    order = index[shuffled(index, 3, 4)].tolist()
    half = index[::2]
    assert half[shuffled(half, 3, 4)].tolist() == [r for r in order if r in set(half.tolist())]
