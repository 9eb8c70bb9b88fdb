"""Every rule of forwarding, router, merge and tail, against sorting Python lists."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prerank.cascade import Cascade, Facts, Gap, Margin, Mass, Share, Threshold, Tier
from prerank.cascade.ladder import Ladder, pad, sort_within
from prerank.errors import InputError

Forward = Any
Row = list[float]


@st.composite
def ragged(draw: Any, num_values: int = 3) -> tuple[list[int], list[Row]]:
    """Requests of 0 to 9 candidates; few distinct values, so that ties are common."""
    lengths = draw(st.lists(st.integers(0, 9), min_size=1, max_size=5))
    value = st.integers(-6, 6).map(lambda x: x / 2)
    column = st.lists(value, min_size=sum(lengths), max_size=sum(lengths))
    return lengths, [draw(column) for _ in range(num_values)]


BOUNDS = st.tuples(st.integers(0, 3), st.one_of(st.none(), st.integers(3, 6)))
HALVES = st.integers(-6, 6).map(lambda x: x / 2)
FORWARDS = st.one_of(
    st.integers(1, 9),
    st.integers(1, 100).map(lambda p: p / 100),
    st.builds(lambda s, b: Threshold(score=s, at_least=b[0], at_most=b[1]), HALVES, BOUNDS),
    st.builds(
        lambda m, t, b: Mass(mass=m / 10, temperature=t, at_least=b[0], at_most=b[1]),
        st.integers(0, 10),
        st.sampled_from([0.5, 1.0, 3.0]),
        BOUNDS,
    ),
    st.builds(
        lambda w, p, b: Gap(within=w, place=p, at_least=b[0], at_most=b[1]),
        HALVES,
        st.integers(1, 5),
        BOUNDS,
    ),
    st.builds(lambda p, b: Share(share=p / 100, at_least=b[0]), st.integers(0, 100), BOUNDS),
)
CUTS = st.one_of(st.integers(1, 9), st.integers(1, 100).map(lambda p: p / 100))
ROUTERS = st.sampled_from(["score", "margin", "entropy", "random", "oracle"])
MERGES = st.sampled_from([None, "front", "places"])
TAILS = st.sampled_from(["append", "drop"])


def amount_of(amount: Any, n: int) -> int:
    if isinstance(amount, float):
        return math.ceil(Fraction(repr(amount)) * n)
    return min(amount, n)


def how_many(forward: Any, values: Row, n: int) -> int:
    """Count of one request: ``values`` fall, ``n`` is the original number of candidates."""
    match forward:
        case float() | int():
            return min(amount_of(forward, n), len(values))
        case Threshold():
            count = sum(v >= forward.score for v in values)
        case Share():
            count = amount_of(forward.share, n)
        case Mass():
            weights = [math.exp(v / forward.temperature) for v in values]
            before = [sum(weights[:i]) / sum(weights) for i in range(len(values))]
            count = sum(b <= forward.mass + 1e-9 for b in before)
        case Gap():
            mark = values[min(forward.place, len(values)) - 1] if values else 0.0
            count = sum(mark - v <= forward.within for v in values)
    most = len(values) if forward.at_most is None else forward.at_most
    return min(len(values), max(forward.at_least, min(count, most)))


def expected(
    lengths: list[int],
    values: list[Row],
    rules: list[dict[str, Any]],
    tie: list[int],
    draw: list[int],
    truth: Row,
) -> tuple[list[int], list[int]]:
    """Positions and tiers of every candidate, one request after the other."""
    position, deepest = [-1] * sum(lengths), [0] * sum(lengths)
    start = 0
    for n in lengths:
        line = list(range(start, start + n))
        dropped: set[int] = set()
        alive, slots = line, list(range(n))
        for t, value in enumerate(values):
            for i in alive:
                deepest[i] = t
            alive = sorted(alive, key=lambda i: (-value[i], tie[i]))
            if t == len(rules):
                for slot, i in zip(slots, alive, strict=True):
                    line[slot] = i
                break
            rule = rules[t]
            chosen = routed(rule, alive, value, n, draw, truth)
            merge = rule["merge"] or (
                "front" if rule["router"] in ("score", "oracle") else "places"
            )
            if merge == "front":
                alive = [i for i in alive if i in chosen] + [i for i in alive if i not in chosen]
            for slot, i in zip(slots, alive, strict=True):
                line[slot] = i
            if rule["tail"] == "drop":
                last = max((k for k, i in enumerate(alive) if i in chosen), default=-1)
                dropped |= set(alive[last + 1 :])
            slots = [slot for slot, i in zip(slots, alive, strict=True) if i in chosen]
            alive = [i for i in alive if i in chosen]
        for place, i in enumerate(i for i in line if i not in dropped):
            position[i] = place
        start += n
    return position, deepest


def routed(
    rule: dict[str, Any], alive: list[int], value: Row, n: int, draw: list[int], truth: Row
) -> set[int]:
    """Which of ``alive`` (in the tier's order) go on."""
    values = [value[i] for i in alive]
    last = 0 if rule["cut"] is None else max(0, min(amount_of(rule["cut"], n), len(alive)) - 1)
    forward = rule["forward"]
    key: Callable[[int], Any] = {
        "score": lambda k: k,
        "margin": lambda k: (abs(values[k] - values[last]), abs(k - last), k),
        "entropy": lambda k: (abs(values[k]), k),
        "random": lambda k: (draw[alive[k]], k),
        "oracle": lambda k: (-truth[alive[k]], k),
    }[rule["router"]]
    if isinstance(forward, Margin):
        inside = sum(abs(v - values[last]) <= forward.within for v in values)
        most = len(values) if forward.at_most is None else forward.at_most
        count = max(forward.at_least, min(inside, most))
    else:
        count = how_many(forward, values, n)
    return {alive[k] for k in sorted(range(len(alive)), key=key)[:count]}


@st.composite
def tier_rules(draw: Any) -> dict[str, Any]:
    router = draw(ROUTERS)
    forward = draw(FORWARDS)
    if router == "margin" and draw(st.booleans()):
        low, high = draw(BOUNDS)
        forward = Margin(within=abs(draw(HALVES)), at_least=low, at_most=high)
    cut = draw(CUTS) if router == "margin" else None
    rest = {"router": router, "cut": cut, "merge": draw(MERGES), "tail": draw(TAILS)}
    return {"forward": forward, **rest}


@given(data=ragged(), first=tier_rules(), second=tier_rules(), seed=st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_three_tiers_equal_lists(
    planted: Any, case: Any, data: Any, first: Any, second: Any, seed: int
) -> None:
    lengths, values = data
    draws = np.random.default_rng(seed)
    num = sum(lengths)
    tie, draw = draws.permutation(num), draws.integers(0, 5, num)
    truth = draws.integers(0, 3, num).astype(float)
    tiers = [Tier(planted(0), **first), Tier(planted(1), **second), Tier(planted(2))]
    view = case(lengths, values).inputs()
    facts = Facts(draw=torch.from_numpy(draw), truth=torch.from_numpy(truth))
    order = Cascade(tiers).rank([view] * 3, tie=torch.from_numpy(tie), facts=facts)
    wanted = expected(lengths, values, [first, second], tie.tolist(), draw.tolist(), truth.tolist())
    assert (order.position.tolist(), order.tier.tolist()) == wanted
    if first["tail"] == second["tail"] == "append":
        assert not order.dropped.any()
    ends = np.cumsum([0, *lengths])
    for start, stop in itertools.pairwise(ends):
        places = sorted(p for p in order.position[start:stop].tolist() if p >= 0)
        assert places == list(range(len(places)))


def test_margin_leaves_those_above_the_band_above_it(planted: Any, case: Any) -> None:
    light = [9.0, 8.0, 5.0, 4.5, 4.0, 1.0]
    strong = [0.0, 0.0, 1.0, 3.0, 2.0, 9.0]
    view = case([6], [light, strong]).inputs()
    tier = Tier(planted(0), Margin(within=0.5), cut=4)
    order = Cascade([tier, Tier(planted(1))]).rank([view, view])
    # The band is 2, 3, 4 around the fourth; 0 and 1 stay above it, 5 below.
    assert order.position.tolist() == [0, 1, 4, 2, 3, 5]
    assert order.tier.tolist() == [0, 0, 1, 1, 1, 0]
    front = Tier(planted(0), Margin(within=0.5), cut=4, merge="front")
    order = Cascade([front, Tier(planted(1))]).rank([view, view])
    assert order.position.tolist() == [3, 4, 2, 0, 1, 5]
    drop = Tier(planted(0), Margin(within=0.5), cut=4, tail="drop")
    order = Cascade([drop, Tier(planted(1))]).rank([view, view])
    assert order.position.tolist() == [0, 1, 4, 2, 3, -1]


def test_the_router_changes_nothing_when_all_go_on(planted: Any, case: Any) -> None:
    view = case([4, 3], [[1.0, 2.0, 3.0, 4.0, 0.0, 1.0, -1.0], [3.0, 1.0, 2.0, 5.0, 1.0, 2.0, 0.0]])
    view = view.inputs()
    facts = Facts(draw=torch.arange(7), truth=torch.arange(7.0))
    alone = Cascade([Tier(planted(1))]).rank([view])
    for router in ("score", "margin", "entropy", "random", "oracle"):
        cut = 2 if router == "margin" else None
        tier = Tier(planted(0), 1.0, router=router, cut=cut, tail="drop")
        order = Cascade([tier, Tier(planted(1))]).rank([view, view], facts=facts)
        assert torch.equal(order.position, alone.position)


def test_routers_of_the_ablation_need_their_facts(planted: Any, case: Any) -> None:
    view = case([2], [[1.0, 2.0], [1.0, 2.0]]).inputs()
    for router, told in (("random", "needs draw"), ("oracle", "only evaluation knows")):
        cascade = Cascade([Tier(planted(0), 1, router=router), Tier(planted(1))])
        with pytest.raises(InputError, match=told):
            cascade.rank([view, view])


def test_nothing_may_go_on_where_at_least_is_0(planted: Any, case: Any) -> None:
    view = case([2, 2], [[1.0, 2.0, 5.0, 6.0], [2.0, 1.0, 2.0, 1.0]]).inputs()
    tier = Tier(planted(0), Threshold(score=4.0, at_least=0), tail="drop")
    strong = planted(1)
    order = Cascade([tier, Tier(strong)]).rank([view, view])
    assert order.position.tolist() == [-1, -1, 0, 1]
    assert strong.num_pairs == [2]


@given(data=ragged(1), level=st.integers(-8, 8).map(lambda x: x / 2), step=st.integers(0, 8))
def test_more_is_forwarded_at_a_higher_level(data: Any, level: float, step: int) -> None:
    lengths, (values,) = data
    offsets = torch.tensor([0, *np.cumsum(lengths)])
    value = torch.tensor(values, dtype=torch.float64)
    ladder = Ladder.of(value[sort_within(value, offsets, descending=True)], offsets)
    for rule in (Threshold(score=0.0), Mass(mass=0.0), Gap(within=0.0, place=2), Share(share=0.0)):
        low = rule.with_level(level).count(ladder)
        high = rule.with_level(level + step / 2).count(ladder)
        assert (low <= high).all()
        assert (high <= ladder.lengths).all()
        reach = rule.reach(ladder)
        inner = ladder.place[1:] > 0
        assert (reach.diff()[inner] >= 0).all()


def test_impossible_rules_are_refused(planted: Any) -> None:
    model = planted(0)
    for make, message in (
        (lambda: Threshold(score=float("nan")), "threshold: the level is nan"),
        (lambda: Threshold(score=1.0, at_least=-1), "at_least is -1"),
        (lambda: Mass(mass=0.5, at_least=3, at_most=2), "at_most is 2; expected at least 3"),
        (lambda: Mass(mass=0.5, temperature=0.0), "temperature is 0.0"),
        (lambda: Gap(within=1.0, place=0), "place is 0"),
        (lambda: Share(share=1.5), r"share: is 1\.5"),
        (lambda: Margin(within=-1.0), "within is -1.0"),
        (lambda: Tier(model, 3, router="skore"), "router is 'skore'; did you mean 'score'"),
        (lambda: Tier(model, 3, tail="dorp"), "tail is 'dorp'; did you mean 'drop'"),
        (lambda: Tier(model, 3, router="margin"), "router 'margin' needs a cut"),
        (lambda: Tier(model, 3, cut=5), "router 'score' is given a cut"),
        (lambda: Tier(model, 3, router="margin", cut=0), "cut is 0"),
        (lambda: Tier(model, Margin(within=1.0), router="random"), "the router is 'random'"),
    ):
        with pytest.raises(InputError, match=message):
            make()


def test_describe_themselves(planted: Any) -> None:
    model = planted(0)
    tiers = [
        Tier(model, Threshold(score=1.5)),
        Tier(model, Mass(mass=0.9), tail="drop"),
        Tier(model, Gap(within=0.5, place=10)),
        Tier(model, 0.3, router="margin", cut=50),
        Tier(model, Margin(within=0.25), cut=0.1),
        Tier(model),
    ]
    assert Cascade(tiers).describe() == (
        "Planted -> score >= 1.5, Planted -> 90 % of softmax mass, rest dropped, "
        "Planted -> within 0.5 of place 10, Planted -> 30 % by margin 50, "
        "Planted -> within 0.25 by margin 10 %, Planted"
    )


@given(
    lengths=st.lists(st.integers(0, 30), min_size=0, max_size=6),
    seed=st.integers(0, 99),
    descending=st.booleans(),
    kind=st.sampled_from([torch.float32, torch.int64, torch.bool]),
)
def test_sorting_within_requests_equals_sorting_each(
    lengths: list[int], seed: int, descending: bool, kind: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int64)
    key = torch.randint(-2, 3, (sum(lengths),), generator=generator).to(kind)
    order = sort_within(key, offsets, descending=descending)
    for start, stop in itertools.pairwise(offsets.tolist()):
        part = key[start:stop].to(torch.int64)
        alone = part.sort(stable=True, descending=descending).indices + start
        assert torch.equal(order[start:stop], alone)
    if sum(lengths):
        padded = pad(key, offsets, 0)
        assert padded.shape == (len(lengths), max(lengths))
