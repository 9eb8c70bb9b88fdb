from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from prerank.jagged import Jagged
from prerank.nn.hstu.padding import Padding, join_rows, similar_rows

lengths_of = st.lists(st.integers(0, 300), max_size=40)


@given(lengths_of)
def test_groups_hold_every_row_once_and_little_padding(lengths: list[int]) -> None:
    groups = similar_rows(lengths)
    assert sorted(r for rows in groups for r in rows) == [r for r, n in enumerate(lengths) if n]
    for rows in groups:
        longest = max(lengths[r] for r in rows)
        assert all(lengths[r] >= min(0.8 * longest, longest - 8) for r in rows)


@given(lengths_of)
def test_no_two_neighbouring_groups_could_be_one(lengths: list[int]) -> None:
    groups = similar_rows(lengths)
    for before, after in itertools.pairwise(groups):
        longest = max(lengths[r] for r in before)
        assert all(lengths[r] < min(0.8 * longest, longest - 8) for r in after)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(0, 99))
def test_what_is_put_back_is_what_was_padded(lengths: list[int], seed: int) -> None:
    rows = Jagged.from_lengths(torch.randn(sum(lengths), 2), torch.tensor(lengths))
    order = torch.randperm(sum(lengths), generator=torch.Generator().manual_seed(seed))
    starts = rows.offsets.tolist()
    for chosen in similar_rows(lengths):
        at = [starts[r] for r in chosen], [lengths[r] for r in chosen]
        padding = Padding.of(*at, torch.device("cpu"))
        block = padding.pad(rows.values)
        expected = rows.select(torch.tensor(chosen)).to_padded(padding.width)
        assert torch.equal(block, expected)
        out = torch.zeros_like(rows.values)
        padding.put(block, out)
        inside = torch.isin(rows.row_of, torch.tensor(chosen))
        assert torch.equal(out, rows.values * inside.unsqueeze(1))
        moved = Padding.of(*at, torch.device("cpu"), order).pad(rows.values)
        assert torch.equal(moved, Padding.of(*at, torch.device("cpu")).pad(rows.values[order]))


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), max_size=6))
def test_rows_are_joined_row_by_row(lengths: list[tuple[int, int, int]]) -> None:
    parts = [
        Jagged.from_lengths(
            torch.randn(sum(n), 2, generator=torch.Generator().manual_seed(k)),
            torch.tensor(n, dtype=torch.int64),
        )
        for k, n in enumerate(zip(*lengths, strict=True) if lengths else [(), (), ()])
    ]
    joined = join_rows(parts)
    for r in range(len(lengths)):
        row = torch.tensor([r])
        expected = torch.cat([part.select(row).values for part in parts])
        assert torch.equal(joined.select(row).values, expected)
    assert joined.num_rows == len(lengths)
