"""Engine: unknown items, cached states, coalescing, explanations, and what is refused."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from prerank.errors import InputError
from prerank.log import Log
from prerank.serving.engine import Engine
from prerank.serving.errors import BadRequestError, HistoryRequiredError, UnknownFeatureError
from prerank.serving.messages import Candidates, NewItem, RankAnswer, RankRequest, User
from prerank.serving.replay import requests_of


def change(request: RankRequest, **fields: Any) -> RankRequest:
    return msgspec.structs.replace(request, **fields)


def with_ids(request: RankRequest, ids: list[Any], **more: Any) -> RankRequest:
    return change(request, candidates=Candidates(ids=ids, **more))


@pytest.fixture
def request5(requests: list[RankRequest]) -> RankRequest:
    assert len(requests[5].candidates.ids) > 4
    return requests[5]


def answers(found: list[RankAnswer | InputError]) -> list[RankAnswer]:
    assert all(isinstance(a, RankAnswer) for a in found), found
    return found  # type: ignore[return-value]


def test_k_cuts_the_answer_and_packed_ids_are_ids(engine: Engine, request5: RankRequest) -> None:
    whole = engine.rank(request5)
    assert engine.rank(change(request5, k=3)).ids == whole.ids[:3]
    packed = np.array(request5.candidates.ids, dtype="<i8").tobytes()
    sent = change(request5, candidates=msgspec.structs.replace(request5.candidates, ids=packed))
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=RankRequest)
    assert engine.rank(again).ids == whole.ids
    assert whole.request_id == request5.request_id
    assert whole.model == engine.version
    assert not whole.degraded


def test_no_candidates_give_an_empty_answer(engine: Engine, request5: RankRequest) -> None:
    assert engine.rank(with_ids(request5, [])).ids == []
    assert engine.rank(with_ids(request5, [-5])).unknown == [-5]


def test_history_as_columns_or_as_events(rich_log: Log, engine: Engine) -> None:
    rows = [3, 4, 20]
    for a, b in zip(
        requests_of(rich_log, rows), requests_of(rich_log, rows, columnar=True), strict=True
    ):
        assert all(isinstance(events, dict) for events in b.history.values())
        for x, y in zip(engine.scores(a), engine.scores(b), strict=True):
            assert np.array_equal(x.numpy(), y.numpy())


def test_many_requests_at_once_are_ranked_as_each_alone(
    bundle: Path, requests: list[RankRequest]
) -> None:
    sent = requests[:14]
    one = Engine.open(bundle, Engine.Config(dtype="fp32", cache_bytes=0))
    alone = [one.rank(request) for request in sent]
    for size in (1 << 14, 40):
        many = Engine.open(bundle, Engine.Config(dtype="fp32", coalesce=size))
        for _ in range(2):  # the second time from cached states
            found = answers(many.rank_many(sent))
            assert [a.ids for a in found] == [a.ids for a in alone]
            assert [a.tier for a in found] == [a.tier for a in alone]
        assert many.stats().cache_hits >= len(sent)


def test_one_bad_request_fails_alone(engine: Engine, requests: list[RankRequest]) -> None:
    bad = change(requests[6], user=User(features={"shoe": 3}))
    found = engine.rank_many([requests[5], bad, requests[7]])
    assert isinstance(found[1], UnknownFeatureError)
    assert "'shoe'" in str(found[1])
    good = answers([found[0], found[2]])
    assert good[0].ids == engine.rank(requests[5]).ids


@pytest.mark.parametrize("policy", ["features", "last", "drop"])
def test_unknown_items_by_policy(
    policy: Any, bundle: Path, request5: RankRequest, requests: list[RankRequest]
) -> None:
    engine = Engine.open(bundle, Engine.Config(dtype="fp32", unknown=policy))
    known = request5.candidates.ids
    ids = [-1, *known, -2]
    features = {n: [None, *v, None] for n, v in request5.candidates.features.items()}
    values = {"category": "c1", "price": 12.0, "tags": ["t1"], "image": [1.0, 0.0, 2.0]}
    sent = with_ids(request5, ids, features=features, new=[NewItem(id=-2, features=values)])
    answer = engine.rank(change(sent, explain=True))
    assert answer.unknown == [-1, -2]
    plain = engine.rank(request5).ids
    assert [i for i in answer.ids if i in set(known)] == plain or policy == "features"
    match policy:
        case "drop":
            assert answer.ids == plain
        case "last":
            assert answer.ids == [*plain, -1, -2]
            assert answer.tier[-2:] == [-1, -1]
            assert engine.rank(change(sent, k=2)).ids == plain[:2]
        case "features":
            assert answer.ids[-1] == -1
            assert -2 in answer.ids[:-1]
            both = answers(engine.rank_many([sent, requests[7], sent]))
            assert both[0].ids == both[2].ids == answer.ids
            assert both[1].ids == engine.rank(requests[7]).ids


def test_an_unknown_item_scores_as_training_scores_one_it_has_not_seen(
    engine: Engine, rich_log: Log, request5: RankRequest
) -> None:
    """The same features under an id that is known but was too rare would give the same score."""
    born = float(rich_log.items.scalars["born"][7])
    feats = {"category": "c2", "price": 3.5, "tags": ["t0", "t4"], "image": [0.0, 1.0, 0.5]}
    new = [NewItem(id=-9, features={**feats, "born": born}), NewItem(id=-8, features=feats)]
    scores = engine.scores(with_ids(request5, [-9, -8], new=new))
    again = engine.scores(with_ids(request5, [-8, -9], new=new))
    for a, b in zip(scores, again, strict=True):
        assert np.allclose(a.numpy(), b.numpy()[::-1], atol=1e-6)
        # Its age is a candidate feature made from the item's own time.
        assert np.isnan(born) or not np.allclose(a[0].numpy(), a[1].numpy(), atol=1e-6)


def test_a_version_stands_for_a_history(bundle: Path, request5: RankRequest) -> None:
    engine = Engine.open(bundle, Engine.Config(dtype="fp32"))
    first = engine.rank(request5)
    later = change(request5, history={"version": first.history_version})
    assert engine.rank(later).ids == first.ids
    with pytest.raises(HistoryRequiredError, match="not held"):
        engine.rank(change(request5, history={"version": "v1"}))
    named = change(request5, history={**request5.history, "version": "v1"})
    assert engine.rank(named).history_version == "v1"
    assert engine.rank(change(request5, history={"version": "v1"})).ids == first.ids
    other = change(request5, user=User(id=1234), history={"version": "v1"})
    with pytest.raises(HistoryRequiredError):
        engine.rank(other)
    assert request5.time is not None
    with pytest.raises(HistoryRequiredError):
        engine.rank(change(request5, time=request5.time + 3_600_000, history={"version": "v1"}))


def test_context_is_no_part_of_a_cached_state(bundle: Path, request5: RankRequest) -> None:
    cached = Engine.open(bundle, Engine.Config(dtype="fp32"))
    fresh = Engine.open(bundle, Engine.Config(dtype="fp32", cache_bytes=0))
    for context in ({"device": "d0"}, {"device": "d1", "load": 4.0}, {}):
        sent = change(request5, context=context)
        for a, b in zip(cached.scores(sent), fresh.scores(sent), strict=True):
            assert np.array_equal(a.numpy(), b.numpy())
    assert cached.stats().cache_hits == 2
    assert fresh.stats().cache_entries == 0
    moved = change(request5, user=User(request5.user.id, {"age": 99.0}))
    cached.scores(moved)
    assert cached.stats().cache_hits == 2


def test_explanation_says_what_each_tier_said(engine: Engine, request5: RankRequest) -> None:
    answer = engine.rank(change(request5, explain=True))
    assert answer.explain is not None
    assert answer.score is not None
    light, strong = answer.explain
    assert (light.model, strong.model) == ("HAPLight", "HAPExpressive")
    head = answer.tier.count(1)
    assert strong.position == [*range(head), *[None] * (len(answer.ids) - head)]
    assert sorted(p for p in light.position if p is not None) == list(range(len(answer.ids)))
    assert light.position[head:] == sorted(light.position[head:])  # type: ignore[type-var]
    assert answer.score == [(strong if t else light).score[k] for k, t in enumerate(answer.tier)]
    places = dict(zip(answer.ids, light.position, strict=True))
    logits = engine.scores(request5)[0][:, 0]
    order = [request5.candidates.ids[k] for k in logits.argsort(descending=True)]
    assert [places[i] for i in order] == list(range(len(order)))


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"user": User(features={"ago": 3})}, UnknownFeatureError, "did you mean 'age'"),
        ({"user": User(features={"age": "old"})}, BadRequestError, "user.features.age"),
        ({"user": User(features={"age": 10**400})}, BadRequestError, "too large"),
        ({"user": User(features={"taste": [1.0]})}, BadRequestError, "expected a list of 2"),
        ({"user": User(features={"likes": "t1"})}, BadRequestError, "no list"),
        ({"user": User(id="me")}, BadRequestError, "user.id"),
        ({"context": {"hour": 3}}, UnknownFeatureError, "'hour'"),
        ({"context": {"device": 3.5}}, BadRequestError, "context.device"),
        ({"history": {"likes": []}}, UnknownFeatureError, "no stream 'likes'"),
        ({"history": {"views": "all"}}, BadRequestError, "no list of events"),
        ({"history": {"views": [{"item": 3}]}}, BadRequestError, "needs its time"),
        ({"history": {"views": [{"item": 3, "time": 1, "x": 1}]}}, UnknownFeatureError, "'x'"),
        ({"history": {"views": [{"item": 3, "time": 1 << 60}]}}, BadRequestError, "not before"),
        ({"history": {"views": [{"item": 3, "time": 1 << 70}]}}, BadRequestError, "too large"),
        (
            {"history": {"views": [{"item": 3, "time": 5}, {"item": 3, "time": 4}]}},
            BadRequestError,
            "oldest first",
        ),
        ({"history": {"views": {"item": [3], "time": []}}}, BadRequestError, "0 values"),
        ({"history": {"version": ["x"]}}, BadRequestError, "history.version"),
        ({"candidates": Candidates(ids=["a"])}, BadRequestError, "item ids are int"),
        ({"candidates": Candidates(ids=[3, 3])}, BadRequestError, "item 3 stands twice"),
        ({"candidates": Candidates(ids=b"123")}, BadRequestError, "8 bytes each"),
        ({"candidates": Candidates(ids=list(range(40)))}, BadRequestError, "at most 30"),
        (
            {"candidates": Candidates(ids=[3], features={"ctr": []})},
            BadRequestError,
            "0 values, expected 1",
        ),
        (
            {"candidates": Candidates(ids=[3], features={"channel": ["far"]})},
            BadRequestError,
            "no channel 'far'",
        ),
        (
            {"candidates": Candidates(ids=[-3], new=[NewItem(-3, {"size": 2})])},
            UnknownFeatureError,
            "'size'",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    fields: dict[str, Any],
    error: type[InputError],
    says: str,
    bundle: Path,
    request5: RankRequest,
    limited: Engine,
) -> None:
    with pytest.raises(error) as caught:
        limited.rank(change(request5, **fields))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, BadRequestError)


@pytest.fixture(scope="module")
def limited(bundle: Path) -> Engine:
    return Engine.open(bundle, Engine.Config(dtype="fp32", max_candidates=30, max_events=30))


def test_absurd_numbers_are_refused_or_missing(engine: Engine, request5: RankRequest) -> None:
    huge = {"ctr": [3e38] * len(request5.candidates.ids)}
    ids = list(request5.candidates.ids)
    sent = with_ids(request5, ids, features=huge)
    (answer,) = engine.rank_many([sent])
    if isinstance(answer, RankAnswer):
        assert sorted(answer.ids) == sorted(ids)
    else:
        assert isinstance(answer, BadRequestError)
        assert "not finite" in str(answer)
    nothing = with_ids(request5, ids, features={"ctr": [None] * len(ids)})
    beyond = with_ids(request5, ids, features={"ctr": [1e300] * len(ids)})
    for a, b in zip(engine.scores(nothing), engine.scores(beyond), strict=True):
        assert np.array_equal(a.numpy(), b.numpy())


def test_threads_do_not_disturb_one_another(bundle: Path, requests: list[RankRequest]) -> None:
    # So small a cache that states come and go all the time.
    engine = Engine.open(bundle, Engine.Config(dtype="fp32", cache_bytes=20_000))
    expected = [engine.rank(request).ids for request in requests[:12]]
    wrong: list[int] = []

    def work(start: int) -> None:
        for k in range(24):
            at = (start + k) % 12
            if engine.rank(requests[at]).ids != expected[at]:
                wrong.append(at)

    threads = [threading.Thread(target=work, args=(3 * t,)) for t in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert engine.stats().requests == 12 + 4 * 24
    assert engine.stats().cache_bytes <= 20_000
