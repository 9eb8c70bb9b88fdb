"""Reading ahead: the same items, errors passed on, no thread left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prerank.errors import InputError
from prerank.log import Log, Transforms
from prerank.log.prefetch import prefetch


def _threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "prerank-prefetch"]


@settings(max_examples=30)
@given(st.lists(st.none() | st.integers() | st.just(StopIteration)), st.integers(0, 4))
def test_items_come_unchanged_and_in_order(items: list[object], depth: int) -> None:
    assert list(prefetch(items, depth)) == items
    assert not _threads()


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_errors_come_after_the_items_before_them(depth: int, error: BaseException) -> None:
    def source() -> Iterator[int]:
        yield from range(5)
        raise error

    ahead = prefetch(source(), depth)
    assert [next(ahead) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(type(error)) as raised:
        next(ahead)
    assert raised.value is error
    assert not _threads()


@pytest.mark.parametrize("depth", [1, 3])
def test_stopping_early_joins_the_thread(depth: int) -> None:
    made = []

    def source() -> Iterator[int]:
        for k in range(10**9):
            made.append(k)
            yield k

    ahead = prefetch(source(), depth)
    assert [next(ahead), next(ahead)] == [0, 1]
    assert len(_threads()) == 1
    ahead.close()  # type: ignore[attr-defined]
    assert not _threads()
    count = len(made)
    assert count <= 2 + depth + 1  # held ready, and one in hand
    time.sleep(0.05)
    assert len(made) == count


def test_an_error_in_the_consumer_joins_the_thread() -> None:
    def consume() -> None:
        for item in prefetch(iter(range(10**9)), 2):
            if item == 3:
                raise RuntimeError("consumer")

    with pytest.raises(RuntimeError, match="consumer"):
        consume()
    assert not _threads()


def test_without_depth_there_is_no_thread() -> None:
    ahead = prefetch(iter(range(3)), 0)
    assert next(ahead) == 0
    assert not _threads()


def test_it_runs_ahead_by_depth() -> None:
    ready = threading.Semaphore(0)

    def source() -> Iterator[int]:
        for k in range(9):
            yield k
            ready.release()  # asked for the next one: this one is stored

    ahead = prefetch(source(), 3)
    assert next(ahead) == 0
    for _ in range(4):  # 0 taken, 1 to 3 stored
        assert ready.acquire(timeout=10)
    assert not ready.acquire(timeout=0.05)  # 4 waits for room
    assert list(ahead) == list(range(1, 9))


def test_damage_found_while_reading_ahead_reaches_the_caller(
    plain_log: Callable[..., Log],
) -> None:
    log = plain_log(range(40), [0] * 40)
    transforms = Transforms.fit(log.all())
    last = log.path / log._groups[-1][0]
    last.write_bytes(last.read_bytes()[:-9])
    batches = log.all().batches(transforms, 4, prefetch=2)
    assert sum(next(batches).num_requests for _ in range(9)) == 36
    with pytest.raises(InputError, match=r"part-00003.parquet.* the log is damaged"):
        next(batches)
    assert not _threads()
