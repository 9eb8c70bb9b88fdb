from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from prerank.world.clicks import ClickLog

NUM_USERS = 4
batches = st.lists(
    st.lists(st.tuples(st.integers(0, NUM_USERS - 1), st.integers(0, 99)), max_size=12),
    max_size=6,
)


@given(batches, st.integers(1, 5))
def test_history_is_that_of_plain_lists(parts: list[list[tuple[int, int]]], length: int) -> None:
    log = ClickLog(NUM_USERS)
    plain: list[list[tuple[int, int]]] = [[] for _ in range(NUM_USERS)]
    heads, expected = [], []
    everyone = np.arange(NUM_USERS)
    clock = 0
    for part in parts:
        times = np.arange(clock, clock + len(part))
        clock += len(part)
        user = np.array([u for u, _ in part], dtype=np.int64)
        item = np.array([i for _, i in part], dtype=np.int64)
        shuffled = np.random.default_rng(clock).permutation(len(part))
        log.add(user[shuffled], item[shuffled], times[shuffled])
        for (u, i), t in zip(part, times, strict=True):
            plain[u].append((i, int(t)))
        heads.append(log.head(everyone))
        expected.append([list(clicks[-length:]) for clicks in plain])
    # Old heads still give the histories of their time, whatever came later.
    for head, histories in zip(heads, expected, strict=True):
        item, time = log.history(head, length)
        for u, history in enumerate(histories):
            seen = item[u] >= 0
            assert list(zip(item[u][seen], time[u][seen], strict=True)) == history
            assert not seen[: length - len(history)].any()
    assert len(log) == clock


def test_it_grows_beyond_its_first_allocation() -> None:
    log = ClickLog(1)
    for start in range(0, 5000, 500):
        time = np.arange(start, start + 500)
        log.add(np.zeros(500, dtype=np.int64), time, time)
    item, _ = log.history(log.head(np.array([0])), 5000)
    assert (item[0] == np.arange(5000)).all()
