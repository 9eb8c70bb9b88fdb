"""The stages against sorting one request at a time by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prerank.errors import InputError
from prerank.funnel import Quotas
from prerank.funnel.stages import EXPOSED, POOL, PRERANK, RANK, RETRIEVAL, positions, run_stages


def by_hand(real, found, pool, first, second, quotas):
    """One request: lists of candidates, best first, real ones kept whatever their place."""
    listed = sorted(np.flatnonzero(~pool), key=lambda i: (-first[i], i))

    def keep(order, quota):
        room = quota - real.sum()
        others = [i for i in order if not real[i]][: max(room, 0)]
        return {*others, *np.flatnonzero(real)}

    kept = keep(listed, quotas.prerank)
    ranked = sorted(kept, key=lambda i: (-second[i], i))
    last = keep(ranked, quotas.rank)
    stage, survives = [], []
    for i in range(len(real)):
        if pool[i]:
            stage.append(POOL)
        elif real[i]:
            stage.append(EXPOSED)
        else:
            stage.append(RANK if i in last else PRERANK if i in kept else RETRIEVAL)
        place1 = listed.index(i) if not pool[i] else 99
        place2 = ranked.index(i) if i in kept else 99
        survives.append(bool(found[i]) and place1 < quotas.prerank and place2 < quotas.rank)
    return stage, survives, listed, ranked


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_equals_sorting_by_hand(seed: int, ties: bool) -> None:
    draws = np.random.default_rng(seed)
    quotas = Quotas(retrieval=12, prerank=7, rank=4)
    sizes = draws.integers(1, 15, size=3)
    request_of = np.repeat(np.arange(3), sizes)
    num = len(request_of)
    pool = draws.random(num) < 0.2
    real = (draws.random(num) < 0.3) & ~pool
    found = draws.random(num) < 0.7
    scores = draws.integers(0, 3, (2, num)) if ties else draws.permutation(2 * num).reshape(2, num)
    first, second = scores.astype(np.float32)
    outcome = run_stages(
        request_of,
        real=real,
        found=found,
        pool=pool,
        prerank_score=first,
        rank_score=second,
        quotas=quotas,
        tie=np.arange(num).astype(np.uint64),
    )
    for r in range(3):
        at = np.flatnonzero(request_of == r)
        inputs = (real[at], found[at], pool[at], first[at], second[at])
        stage, survives, listed, ranked = by_hand(*inputs, quotas)
        assert outcome.stage[at].tolist() == stage
        assert outcome.survives[at].tolist() == survives
        assert [outcome.prerank[at][i] for i in listed] == list(range(len(listed)))
        assert [outcome.rank[at][i] for i in ranked] == list(range(len(ranked)))
        assert (outcome.rank[at] >= 0).tolist() == outcome.online[at].tolist()


def test_being_real_moves_no_position_in_the_pre_rankers_list() -> None:
    draws = np.random.default_rng(0)
    request_of = np.repeat(np.arange(4), 20)
    score = draws.random(80).astype(np.float32)
    tie = np.arange(80).astype(np.uint64)
    places = []
    for share in (0.0, 0.3):
        real = draws.random(80) < share
        outcome = run_stages(
            request_of,
            real=real,
            found=np.ones(80, bool),
            pool=np.zeros(80, bool),
            prerank_score=score,
            rank_score=-score,
            quotas=Quotas(retrieval=20, prerank=10, rank=5),
            tie=tie,
        )
        places.append(outcome.prerank)
    np.testing.assert_array_equal(*places)


def test_positions_of_nothing() -> None:
    nothing = np.zeros(0, np.int64)
    assert len(positions(nothing.astype(np.float32), nothing, nothing.astype(np.uint64))) == 0


def test_quotas_must_not_grow() -> None:
    with pytest.raises(InputError, match="quota rank is 9; expected at least 1 and at most"):
        Quotas(retrieval=20, prerank=8, rank=9)


@given(st.integers(1, 5000), st.floats(0.5, 100))
def test_scaled_quotas_stay_in_order(num_items: int, slate: float) -> None:
    quotas = Quotas().scaled(num_items, slate)
    assert quotas.retrieval <= max(num_items, 400)
    assert quotas.prerank <= quotas.retrieval
