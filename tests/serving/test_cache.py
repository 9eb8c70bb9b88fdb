"""Request states: bounded, forgotten in time, named by the client."""

from __future__ import annotations

import torch

from prerank.models.two_tower import RequestState
from prerank.serving.cache import StateCache, history_digest, user_digest
from prerank.serving.messages import User


def state(size: int = 100) -> tuple[RequestState]:
    return (RequestState(torch.zeros(1, 1, size)),)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_least_recently_used_goes_first_and_takes_its_names_along() -> None:
    cache = StateCache(3 * 1424, 60.0, Clock())
    for key in (b"a", b"b", b"c"):
        cache.put(key, state(), 0, names=[(b"u", key.decode())])
    assert cache.get(b"a", 0) is not None
    cache.put(b"d", state(), 0, names=[])
    assert (cache.get(b"b", 0), len(cache), cache.evictions) == (None, 3, 1)
    assert cache.key(b"u", "b") is None
    assert cache.key(b"u", "a") == b"a"
    assert cache.nbytes == 3 * 1424
    cache.put(b"e", state(10_000), 0, names=[])
    assert cache.get(b"e", 0) is None
    assert len(cache) == 3


def test_a_state_is_for_its_time() -> None:
    clock = Clock()
    cache = StateCache(1 << 20, 60.0, clock)
    cache.put(b"a", state(), 1_000_000, names=[(b"u", "1")])
    assert cache.get(b"a", 1_059_000) is not None
    assert cache.get(b"a", 941_000) is not None
    assert cache.get(b"a", 1_061_000) is None
    clock.now = 61.0
    assert cache.get(b"a", 1_000_000) is None
    assert (len(cache), cache.nbytes, cache.key(b"u", "1")) == (0, 0, None)
    assert (cache.hits, cache.misses) == (2, 2)


def test_a_name_moves_to_the_newest_history() -> None:
    cache = StateCache(1 << 20, 60.0, Clock())
    cache.put(b"a", state(), 0, names=[(b"u", "1")])
    cache.put(b"b", state(), 0, names=[(b"u", "1")])
    assert cache.key(b"u", "1") == b"b"
    cache.put(b"b", state(), 0, names=[])
    assert cache.key(b"u", "1") is None
    cache.name(b"a", b"u", "2")
    cache.name(b"gone", b"u", "3")
    assert (cache.key(b"u", "2"), cache.key(b"u", "3")) == (b"a", None)
    cache.clear()
    assert (len(cache), cache.key(b"u", "2")) == (0, None)


def test_digests_tell_apart_whatever_differs() -> None:
    users = [User(), User(id=1), User(id="1"), User(features={"a": 1}), User(features={"a": "1"})]
    found = {user_digest(v, user) for user in users for v in ("x", "y")}
    assert len(found) == 2 * len(users)
    histories = [{}, {"a": []}, {"a": [{"item": 1}]}, {"a": {"item": [1]}}, {"b": []}]
    assert len({history_digest(b"u", h) for h in histories}) == len(histories)
    # What only the order of keys tells apart is the same.
    assert user_digest("x", User(features={"a": 1, "b": 2})) == user_digest(
        "x", User(features={"b": 2, "a": 1})
    )
