"""Reserves and caps: against brute force, and properties of every arrangement."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prerank.cascade import Cascade, Maximum, Minimum, Reserves, Tier
from prerank.cascade.reserves import group_codes
from prerank.errors import InputError

CODES = st.integers(-1, 2)


@st.composite
def lines(draw: Any, names: tuple[str, ...] = ("a", "b"), longest: int = 9) -> Any:
    """Ragged requests with a code per group and candidate, and how many have a place."""
    lengths = draw(st.lists(st.integers(0, longest), min_size=1, max_size=4))
    num = sum(lengths)
    codes = {name: draw(st.lists(CODES, min_size=num, max_size=num)) for name in names}
    alive = [draw(st.integers(0, length)) for length in lengths] if draw(st.booleans()) else lengths
    return lengths, codes, alive


def rules_of(minima: Any, maxima: Any, quota: int) -> Reserves:
    return Reserves(
        quota=quota,
        minimum=tuple(Minimum(of=of, at_least=min(n, quota)) for of, n in minima),
        maximum=tuple(Maximum(of=of, at_most=n) for of, n in maxima),
    )


AMOUNTS = st.integers(1, 4)
RULES = st.tuples(
    st.lists(st.tuples(st.sampled_from("ab"), AMOUNTS), max_size=2, unique_by=lambda x: x[0]),
    st.lists(st.tuples(st.sampled_from("ab"), AMOUNTS), max_size=2, unique_by=lambda x: x[0]),
    st.integers(1, 7),
).filter(lambda r: r[0] or r[1])


def arranged(rules: Reserves, lengths: list[int], codes: Any, alive: list[int]) -> Any:
    offsets = torch.tensor([0, *np.cumsum(lengths)])
    ones = [i < n for length, n in zip(lengths, alive, strict=True) for i in range(length)]
    given = {rule.key: torch.tensor(codes[rule.of], dtype=torch.int64) for rule in rules.rules}
    return rules.apply(offsets, given, torch.tensor(ones, dtype=torch.bool))


def one_by_one(
    rules: Reserves, n: int, codes: dict[str, list[int]], alive: int
) -> tuple[list[int], int]:
    """The same choice by a plain loop over candidates of one request: order, places."""
    kept: list[int] = []

    def room(i: int, extra: Any = ()) -> bool:
        limits = [(m.of, m.at_most) for m in rules.maximum] + list(extra)
        return len(kept) < rules.quota and all(
            codes[of][i] < 0 or sum(codes[of][j] == codes[of][i] for j in kept) < most
            for of, most in limits
        )

    for m in rules.minimum:
        for i in range(n):
            if codes[m.of][i] >= 0 and i not in kept and room(i, [(m.of, m.at_least)]):
                kept.append(i)
    # Whoever is reserved holds room in a group, wherever it stands.
    for i in range(alive):
        if i not in kept and room(i):
            kept.append(i)
    for i in range(alive):
        if i not in kept and len(kept) < rules.quota:
            kept.append(i)
    rest = [i for i in range(n) if i not in kept]
    return sorted(kept) + rest, alive + sum(i >= alive for i in kept)


@given(data=lines(), given_rules=RULES)
@settings(max_examples=150, deadline=None)
def test_equals_going_through_candidates_one_by_one(data: Any, given_rules: Any) -> None:
    lengths, codes, alive = data
    rules = rules_of(*given_rules)
    found = arranged(rules, lengths, codes, alive)
    start = 0
    for length, living in zip(lengths, alive, strict=True):
        mine = {name: code[start : start + length] for name, code in codes.items()}
        order, places = one_by_one(rules, length, mine, living)
        block = slice(start, start + length)
        assert (found.order[block] - start).tolist() == order
        assert found.alive[block].sum().item() == places
        start += length


@given(data=lines(), given_rules=RULES)
@settings(max_examples=120, deadline=None)
def test_the_rest_keeps_its_order_and_a_second_time_changes_nothing(
    data: Any, given_rules: Any
) -> None:
    lengths, codes, alive = data
    rules = rules_of(*given_rules)
    found = arranged(rules, lengths, codes, alive)
    offsets = [0, *np.cumsum(lengths)]
    for start, stop in itertools.pairwise(offsets):
        order = (found.order[start:stop] - start).tolist()
        assert sorted(order) == list(range(stop - start))
        k = min(rules.quota, int(found.alive[start:stop].sum()))
        assert order == sorted(order[:k]) + sorted(order[k:])
    again_codes = {name: torch.tensor(c)[found.order].tolist() for name, c in codes.items()}
    places = [int(found.alive[a:b].sum()) for a, b in itertools.pairwise(offsets)]
    living = torch.tensor([i < n for ln, n in zip(lengths, places, strict=True) for i in range(ln)])
    assert torch.equal(living, found.alive)
    again = arranged(rules, lengths, again_codes, places)
    assert again.order.tolist() == list(range(sum(lengths)))
    assert again.moves["all"].promoted.sum() == 0


@given(data=lines(), given_rules=RULES)
@settings(max_examples=100, deadline=None)
def test_other_requests_do_not_matter(data: Any, given_rules: Any) -> None:
    lengths, codes, alive = data
    rules = rules_of(*given_rules)
    whole = arranged(rules, lengths, codes, alive)
    start = 0
    for r, length in enumerate(lengths):
        mine = {name: code[start : start + length] for name, code in codes.items()}
        alone = arranged(rules, [length], mine, [alive[r]])
        block = slice(start, start + length)
        assert torch.equal(alone.order, whole.order[block] - start)
        for key, moves in alone.moves.items():
            assert moves.promoted.item() == whole.moves[key].promoted[r].item()
            assert moves.demoted.item() == whole.moves[key].demoted[r].item()
            assert moves.unmet.item() == whole.moves[key].unmet[r].item()
        start += length


def best_sets(
    n: int, quota: int, minima: list[tuple[list[int], int]], maxima: list[tuple[list[int], int]]
) -> set[tuple[int, ...]]:
    """All sets of ``quota`` that keep every rule and the most of the original first ones."""
    fair = []
    for kept in itertools.combinations(range(n), min(quota, n)):
        ok = True
        for code, least in minima:
            for value in set(code) - {-1}:
                existing = sum(c == value for c in code)
                ok &= sum(code[i] == value for i in kept) >= min(least, existing)
        for code, most in maxima:
            for value in set(code) - {-1}:
                ok &= sum(code[i] == value for i in kept) <= most
        if ok:
            fair.append(kept)
    if not fair:
        return set()
    top = max(sum(i < quota for i in kept) for kept in fair)
    return {kept for kept in fair if sum(i < quota for i in kept) == top}


@given(
    code=st.lists(CODES, min_size=1, max_size=9),
    amount=st.integers(1, 3),
    quota=st.integers(1, 6),
    kind=st.sampled_from(["minimum", "maximum"]),
)
@settings(max_examples=150, deadline=None)
def test_one_rule_moves_no_more_than_any_other_choice(
    code: list[int], amount: int, quota: int, kind: str
) -> None:
    n, amount = len(code), min(amount, quota)
    rule = [("a", amount)]
    rules = rules_of(*((rule, []) if kind == "minimum" else ([], rule)), quota)
    group = [(code, amount)]
    best = best_sets(n, quota, *((group, []) if kind == "minimum" else ([], group)))
    found = arranged(rules, [n], {"a": code}, [n])
    unmet = found.moves[f"{kind}:a"].unmet.item()
    assert (unmet == 0) == bool(best)  # met whenever anything can
    if best:
        kept = tuple(found.order[: min(quota, n)].tolist())
        assert kept in best
        # Of the best sets, the one whose places are the first in the original order.
        assert kept == min(best)


@given(
    mark=st.lists(st.integers(-1, 0), min_size=1, max_size=9),
    author=st.lists(CODES, min_size=9, max_size=9),
    least=st.integers(1, 3),
    most=st.integers(1, 3),
    quota=st.integers(3, 6),
)
@settings(max_examples=150, deadline=None)
def test_a_reserve_and_a_cap_are_met_together_whenever_they_can_be(
    mark: list[int], author: list[int], least: int, most: int, quota: int
) -> None:
    n = len(mark)
    author = author[:n]
    rules = rules_of([("mark", least)], [("author", most)], quota)
    best = best_sets(n, quota, [(mark, least)], [(author, most)])
    found = arranged(rules, [n], {"mark": mark, "author": author}, [n])
    unmet = found.moves["minimum:mark"].unmet.item() + found.moves["maximum:author"].unmet.item()
    if best:
        assert unmet == 0
    else:
        assert unmet > 0


@given(data=lines(("a",)), quota=st.integers(1, 6), amount=st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_nothing_changes_where_the_rule_holds_already(data: Any, quota: int, amount: int) -> None:
    lengths, codes, _ = data
    rules = rules_of([], [("a", amount)], quota)
    found = arranged(rules, lengths, codes, lengths)
    offsets = [0, *np.cumsum(lengths)]
    for r, (start, stop) in enumerate(itertools.pairwise(offsets)):
        first = codes["a"][start : min(stop, start + quota)]
        holds = all(first.count(v) <= amount for v in (0, 1, 2))
        same = (found.order[start:stop] - start).tolist() == list(range(stop - start))
        if holds:
            assert same
        moves = found.moves["maximum:a"]
        assert moves.demoted[r].item() == found.moves["all"].demoted[r].item()
        assert same == (found.moves["all"].demoted[r].item() == 0)


def test_two_pinned_ones_take_the_last_places() -> None:
    rules = rules_of([("pinned", 3)], [], 4)
    pinned = [-1, 0, -1, -1, -1, -1, 0, -1, 0, 0]
    found = arranged(rules, [10], {"pinned": pinned}, [10])
    assert found.order.tolist() == [0, 1, 6, 8, 2, 3, 4, 5, 7, 9]
    moves = found.moves["minimum:pinned"]
    assert (moves.promoted.item(), moves.unmet.item()) == (2, 0)
    assert found.moves["all"].demoted.item() == 2


def test_a_minimum_that_caps_stand_against_is_reported() -> None:
    rules = rules_of([("pinned", 2)], [("author", 1)], 3)
    found = arranged(rules, [4], {"pinned": [-1, -1, 0, 0], "author": [-1, -1, 5, 5]}, [4])
    assert found.order.tolist() == [0, 1, 2, 3]
    assert found.moves["minimum:pinned"].unmet.item() == 1
    assert found.moves["maximum:author"].unmet.item() == 0


def test_a_dropped_candidate_can_be_reserved_and_gets_a_place() -> None:
    rules = rules_of([("pinned", 1)], [], 3)
    found = arranged(rules, [5], {"pinned": [-1, -1, -1, -1, 0]}, [3])
    assert found.order.tolist() == [0, 1, 4, 2, 3]
    assert found.alive.tolist() == [True, True, True, True, False]
    # With a free place nobody has to go.
    found = arranged(rules, [5], {"pinned": [-1, -1, -1, -1, 0]}, [2])
    assert found.order.tolist() == [0, 1, 4, 2, 3]
    assert found.moves["all"].demoted.item() == 0


def test_a_cascade_applies_them_to_its_order(planted: Any, case: Any) -> None:
    view = case([5], [[5.0, 4.0, 3.0, 2.0, 1.0], [1.0, 9.0, 7.0, 8.0, 6.0]]).inputs()
    tiers = [Tier(planted(0), forward=2), Tier(planted(1))]
    rules = Reserves(quota=2, minimum=(Minimum(of="new", at_least=1),))
    new = torch.tensor([False, False, False, False, True])
    order = Cascade(tiers, rules).rank([view, view], groups={"new": new})
    # Without the reserve: 1, 0, 2, 3, 4.
    assert order.position.tolist() == [2, 0, 3, 4, 1]
    assert order.tier.tolist() == [1, 1, 0, 0, 0]
    assert order.moves["minimum:new"].promoted.tolist() == [1]
    dropping = [Tier(planted(0), forward=2, tail="drop"), Tier(planted(1))]
    order = Cascade(dropping, rules).rank([view, view], groups={"new": new})
    assert order.position.tolist() == [2, 0, -1, -1, 1]
    with pytest.raises(InputError, match=r"group 'new' was not given and is no categorical feat"):
        Cascade(tiers, rules).rank([view, view])
    with pytest.raises(InputError, match=r"'new' has 4 values for 5 candidates"):
        Cascade(tiers, rules).rank([view, view], groups={"new": new[:4]})


def test_impossible_rules_are_refused() -> None:
    one = Minimum(of="new", at_least=1)
    for values, message in (
        ({"quota": 0, "minimum": (one,)}, "quota is 0"),
        ({"quota": 5}, "no rule"),
        ({"quota": 5, "minimum": (one, one)}, "minimum:new is given twice"),
        ({"quota": 5, "minimum": (Minimum(of="x", at_least=6),)}, "minimum:x is 6; expected from"),
        ({"quota": 5, "maximum": (Maximum(of="x", at_most=-1),)}, "maximum:x is -1"),
        ({"quota": 5, "minimum": (one,), "pinned": (3,)}, "no rule of 'pinned'"),
    ):
        with pytest.raises(InputError, match=message):
            Reserves(**values)


def test_groups_come_from_categorical_features(
    schemas: dict[str, Any], make_batch: Any, planted: Any
) -> None:
    schema = schemas["rich"]
    inputs = make_batch(schema, num_requests=6, max_candidates=9, seed=3).inputs
    found = 0
    for owner, features in (("item", inputs.items), ("candidate", inputs.candidate)):
        for column, feature in enumerate(schema.of(owner, "categorical")):
            rows = features.categorical[:, column]
            rows = rows[inputs.item_of] if owner == "item" else rows
            rule = Reserves(quota=3, maximum=(Maximum(of=f"{owner}.{feature.name}", at_most=1),))
            (codes,) = group_codes(rule, inputs, schema, {}).values()
            # Rows 0 and 1, missing and unknown, are no group.
            assert codes.tolist() == [r if r > 1 else -1 for r in rows.tolist()]
            found += 1
    assert found >= 2
    given_first = {"item.item": torch.ones(inputs.num_candidates, dtype=torch.bool)}
    rule = Reserves(quota=3, maximum=(Maximum(of="item.item", at_most=1),))
    (codes,) = group_codes(rule, inputs, schema, given_first).values()
    assert not codes.any()
