"""The clicks of all users as linked lists: one integer per request pins its whole history.

Each click points to the same user's click before it. A request stores only its ``head``, the
user's last click that it can see; following the pointers gives the history, during the simulation
and at any time after it.
"""

from __future__ import annotations

import numpy as np

from prerank.world.draws import Ints

__all__ = ["ClickLog"]


class ClickLog:
    """Append-only clicks with a pointer to the user's click before.

    Parameters
    ----------
    num_users : int
        Users are 0 to ``num_users - 1``.

    Examples
    --------
    >>> log = ClickLog(2)
    >>> log.add(np.array([1, 1, 0]), np.array([7, 5, 9]), np.array([30, 10, 20]))
    >>> item, time = log.history(log.head(np.array([1, 0])), 3)
    >>> item
    array([[-1,  5,  7],
           [-1, -1,  9]])
    """

    def __init__(self, num_users: int) -> None:
        self._last = np.full(num_users, -1, dtype=np.int64)
        self._item = np.empty(1024, dtype=np.int64)
        self._time = np.empty(1024, dtype=np.int64)
        self._before = np.empty(1024, dtype=np.int64)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def head(self, user: Ints) -> Ints:
        """Return the last click of users ``[B]``, -1 for none."""
        return self._last[user]

    def add(self, user: Ints, item: Ints, time: Ints) -> None:
        """Append clicks ``[K]``; none may be older than a click its user already has."""
        if not user.size:
            return
        order = np.lexsort((time, user))
        user, item, time = user[order], item[order], time[order]
        start, stop = self._size, self._size + user.size
        self._grow(stop)
        place = np.arange(start, stop)
        change = user[1:] != user[:-1]
        first = np.concatenate(([True], change))
        last = np.concatenate((change, [True]))
        self._item[start:stop] = item
        self._time[start:stop] = time
        self._before[start:stop] = np.where(first, self._last[user], place - 1)
        self._last[user[last]] = place[last]
        self._size = stop

    def history(self, head: Ints, length: int) -> tuple[Ints, Ints]:
        """Return the clicks up to ``head [B]``: items and times, ``[B, length]``, oldest first.

        Shorter histories are filled with -1 at the left.
        """
        item = np.full((head.size, length), -1, dtype=np.int64)
        time = np.full((head.size, length), -1, dtype=np.int64)
        at = head.copy()
        for column in range(length - 1, -1, -1):
            rows = np.flatnonzero(at >= 0)
            if not rows.size:
                break
            click = at[rows]
            item[rows, column] = self._item[click]
            time[rows, column] = self._time[click]
            at[rows] = self._before[click]
        return item, time

    def _grow(self, size: int) -> None:
        if size <= self._item.size:
            return
        capacity = max(size, 2 * self._item.size)
        for name in ("_item", "_time", "_before"):
            old = getattr(self, name)
            new = np.empty(capacity, dtype=np.int64)
            new[: self._size] = old[: self._size]
            setattr(self, name, new)
