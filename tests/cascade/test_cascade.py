"""Orders of cascades over ragged requests, against sorting Python lists."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prerank.cascade import Cascade, Tier
from prerank.errors import InputError

AMOUNTS = st.one_of(
    st.integers(1, 9),
    st.integers(1, 100).map(lambda p: p / 100),
    st.floats(1e-12, 1.0).map(float),
)


@st.composite
def ragged(draw: Any, num_values: int = 3) -> tuple[list[int], list[list[float]]]:
    """Requests of 0 to 12 candidates; few distinct values, so that ties are common."""
    lengths = draw(st.lists(st.integers(0, 12), min_size=1, max_size=6))
    value = st.integers(-4, 4).map(float)
    column = st.lists(value, min_size=sum(lengths), max_size=sum(lengths))
    return lengths, [draw(column) for _ in range(num_values)]


def ranked(cascade: Cascade, *views: Any, **options: Any) -> tuple[list[int], list[int]]:
    views = views * len(cascade.tiers) if len(views) == 1 else views
    order = cascade.rank([view.inputs() for view in views], **options)
    return order.position.tolist(), order.tier.tolist()


@given(data=ragged(), first=AMOUNTS, second=AMOUNTS)
def test_three_tiers_equal_sorting_by_hand(
    planted: Any, case: Any, by_hand: Any, data: Any, first: Any, second: Any
) -> None:
    lengths, values = data
    tiers = [Tier(planted(0), forward=first), Tier(planted(1), forward=second), Tier(planted(2))]
    position, tier = ranked(Cascade(tiers), case(lengths, values))
    assert (position, tier) == by_hand(lengths, values, [first, second])
    ends = np.cumsum([0, *lengths])
    for start, stop in itertools.pairwise(ends):
        assert sorted(position[start:stop]) == list(range(stop - start))
        # Nested: who went deeper stands before who did not.
        deepest = [tier[i] for i in sorted(range(start, stop), key=position.__getitem__)]
        assert deepest == sorted(deepest, reverse=True)


@given(data=ragged(2), amount=AMOUNTS, seed=st.integers(0, 99))
def test_given_ties_decide_among_equals_only(
    planted: Any, case: Any, by_hand: Any, data: Any, amount: Any, seed: int
) -> None:
    lengths, values = data
    tie = np.random.default_rng(seed).permutation(sum(lengths))
    cascade = Cascade([Tier(planted(0), forward=amount), Tier(planted(1))])
    found = ranked(cascade, case(lengths, values), tie=torch.from_numpy(tie))
    assert found == by_hand(lengths, values, [amount], tie.tolist())


@given(data=ragged(2), amount=AMOUNTS, power=st.integers(-3, 3), shift=st.integers(-1000, 1000))
def test_scores_of_two_tiers_are_never_compared(
    planted: Any, case: Any, data: Any, amount: Any, power: int, shift: int
) -> None:
    plain, moved = Tier(planted(1)), Tier(planted(1, scale=2.0**power, shift=float(shift)))
    light = Tier(planted(0), forward=amount)
    loud = Tier(planted(0, scale=2.0**power, shift=float(shift)), forward=amount)
    view = case(*data)
    expected = ranked(Cascade([light, plain]), view)
    assert ranked(Cascade([light, moved]), view) == expected
    assert ranked(Cascade([loud, plain]), view) == expected


@given(data=ragged(2))
def test_one_tier_is_its_model_and_forwarding_all_is_the_last_model(
    planted: Any, case: Any, by_hand: Any, data: Any
) -> None:
    lengths, values = data
    view = case(lengths, values)
    alone = ranked(Cascade([Tier(planted(1))]), view)
    assert alone == by_hand(lengths, values[1:], [])
    for everything in (1.0, 12, 10_000):
        cascade = Cascade([Tier(planted(0), forward=everything), Tier(planted(1))])
        assert ranked(cascade, view) == (alone[0], [1] * sum(lengths))


def test_the_rest_follows_in_the_order_of_the_tier_that_kept_it(planted: Any, case: Any) -> None:
    view = case([5], [[5.0, 4.0, 3.0, 2.0, 1.0], [1.0, 9.0, 7.0, 8.0, 6.0]])
    cascade = Cascade([Tier(planted(0), forward=2), Tier(planted(1))])
    # 0 and 1 go on and change places; 3 is worth more to the second tier, which never sees it.
    assert ranked(cascade, view) == ([1, 0, 2, 3, 4], [1, 1, 0, 0, 0])


def test_empty_requests_and_batches(planted: Any, case: Any) -> None:
    cascade = Cascade([Tier(planted(0), forward=0.5), Tier(planted(1))])
    assert ranked(cascade, case([0, 0], [[], []])) == ([], [])
    assert ranked(cascade, case([0, 2, 0], [[1.0, 2.0]] * 2)) == ([1, 0], [0, 1])


def test_only_forwarded_candidates_and_their_items_are_computed(planted: Any, case: Any) -> None:
    light, strong = planted(0), planted(1)
    # Items by value; 9 is in no candidate of the first two places, 7 is shared by two requests.
    view = case(
        [3, 3],
        [[-7.0, -8.0, -99.0, -7.0, -6.0, -99.0], [1.0, 2.0, 0.0, 1.0, 2.0, 0.0]],
        items=[9.0, 8.0, 7.0, 6.0, 5.0],
        item_of=[2, 1, 0, 2, 3, 0],
    )
    cascade = Cascade([Tier(light, forward=2), Tier(strong)])
    position, tier = ranked(cascade, view)
    assert light.num_pairs == [6]
    assert strong.num_pairs == [4]
    assert sorted(strong.items[0]) == [6.0, 7.0, 8.0]
    # Values of the last tier: 7 + 1 and 8 + 2, then 7 + 1 and 6 + 2 (a tie, in candidate order).
    assert position == [1, 0, 2, 0, 1, 2]
    assert tier == [1, 1, 0, 1, 1, 0]


def test_every_tier_reads_its_own_view(planted: Any, case: Any, by_hand: Any) -> None:
    """Transforms differ, so do values, and the numbers that unique items get in a batch."""
    lengths, item_of = [3, 2], [0, 1, 2, 1, 0]
    first = case(lengths, [[0.0] * 5] * 2, items=[3.0, 2.0, 1.0], item_of=item_of)
    other = [2 - i for i in item_of]
    second = case(lengths, [[0.0] * 5] * 2, items=[10.0, 20.0, 15.0, 99.0], item_of=other)
    cascade = Cascade([Tier(planted(0), forward=2), Tier(planted(1))])
    values = [[[3.0, 2.0, 1.0][i] for i in item_of], [[10.0, 20.0, 15.0][i] for i in other]]
    assert ranked(cascade, first, second) == by_hand(lengths, values, [2])
    assert ranked(cascade, first, first) == by_hand(lengths, values[:1] * 2, [2])


def test_a_value_that_is_not_finite_names_its_tier(planted: Any, case: Any) -> None:
    for bad in (float("nan"), float("inf")):
        view = case([2], [[1.0, 2.0], [1.0, bad]])
        cascade = Cascade([Tier(planted(0), forward=1), Tier(planted(1))])
        with pytest.raises(InputError, match=r"tier 1 \(Planted\) gives a value that is not fin"):
            ranked(cascade, view)
        flipped = Cascade([Tier(planted(1), forward=1), Tier(planted(0))])
        with pytest.raises(InputError, match="tier 0"):
            ranked(flipped, view)


def test_impossible_cascades_are_refused(planted: Any, case: Any) -> None:
    model = planted(0)
    with pytest.raises(InputError, match="no tier"):
        Cascade([])
    with pytest.raises(InputError, match="tier 0 does not say what to forward"):
        Cascade([Tier(model), Tier(model)])
    with pytest.raises(InputError, match=r"last tier forwards 0\.3, but none follows"):
        Cascade([Tier(model, forward=0.3)])
    cascade = Cascade([Tier(model, forward=0.3), Tier(model)])
    with pytest.raises(InputError, match="2 tiers got 1 inputs"):
        cascade.rank([case([1], [[0.0]]).inputs()])


def test_describes_itself(planted: Any) -> None:
    model = planted(0)
    cascade = Cascade([Tier(model, forward=0.57), Tier(model, forward=50), Tier(model)])
    assert cascade.describe() == "Planted -> 57 %, Planted -> 50, Planted"
    assert cascade.models == (model,) * 3
