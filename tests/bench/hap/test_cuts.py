from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prerank.bench.hap.cuts import routed
from prerank.bench.hap.facts import cascade_order, places_of
from prerank.cascade.routers import ROUTERS


def some_facts(lengths: list[int], quota: int, truth: Any) -> Any:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    num = int(offsets[-1])

    def offsets_of(chosen: Any) -> Any:
        return np.concatenate([[0], np.cumsum(chosen)])[offsets].astype(np.int64)

    data = SimpleNamespace(
        offsets=offsets,
        row=np.arange(len(lengths)),
        lengths=np.array(lengths),
        item=np.arange(num),
        offsets_of=offsets_of,
    )
    return SimpleNamespace(data=data, truths=SimpleNamespace(quota=quota, binary={"T3": truth}))


@pytest.mark.parametrize("router", ROUTERS)
@given(data=st.data())
def test_a_router_re_orders_what_it_chose_and_nothing_else(router: str, data: Any) -> None:
    lengths = data.draw(st.lists(st.integers(0, 7), min_size=1, max_size=3))
    num = sum(lengths)
    numbers = st.lists(st.floats(-4, 4, width=32), min_size=num, max_size=num, unique=True)
    light, heavy = (np.array(data.draw(numbers), dtype=np.float64) for _ in range(2))
    truth = np.array(data.draw(st.lists(st.booleans(), min_size=num, max_size=num)), dtype=bool)
    quota = data.draw(st.integers(1, 5))
    facts = some_facts(lengths, quota, truth)
    count = np.array([data.draw(st.integers(0, n)) for n in lengths], dtype=np.int64)
    places = (-routed(light, heavy, facts, router, count)).astype(int)
    before = places_of(light, facts.data)
    for r, n in enumerate(lengths):
        here = slice(facts.data.offsets[r], facts.data.offsets[r + 1])
        now, was = places[here], before[here]
        assert sorted(now) == list(range(n))
        k = int(count[r])
        if router == "score":
            chosen = was < k
        elif router == "entropy":
            chosen = np.isin(np.arange(n), np.lexsort((was, np.abs(light[here])))[:k])
        elif router == "oracle":
            chosen = np.isin(np.arange(n), np.lexsort((was, ~truth[here]))[:k])
        elif router == "random":
            continue  # which ones is a matter of the draw; their places are checked above
        else:
            mark = np.sort(light[here])[::-1][min(quota, n) - 1] if n else 0.0
            far = np.abs(light[here] - mark)
            steps = np.abs(was - (min(quota, n) - 1))
            chosen = np.isin(np.arange(n), np.lexsort((steps, far))[:k])
        if router in ("margin", "entropy"):
            assert sorted(now[chosen]) == sorted(was[chosen])
            assert (now[~chosen] == was[~chosen]).all()
            first = np.argsort(np.where(chosen, now, n))[:k]
            assert (np.diff(heavy[here][first]) <= 0).all()
            continue
        assert set(now[chosen]) == set(range(k))
        assert (np.diff(heavy[here][np.argsort(now)[:k]]) <= 0).all()
        rest = np.argsort(now)[k:]
        assert (np.diff(was[rest]) > 0).all()


def test_the_highest_scored_are_the_plain_cascade() -> None:
    rng = np.random.default_rng(0)
    facts = some_facts([5, 9, 3], 4, np.zeros(17, dtype=bool))
    light, heavy = rng.normal(size=(2, 17))
    count = np.array([2, 4, 3])
    expected = cascade_order(places_of(light, facts.data), heavy, facts.data, count)
    np.testing.assert_array_equal(routed(light, heavy, facts, "score", count), expected)
    assert torch.get_default_dtype() == torch.float32
