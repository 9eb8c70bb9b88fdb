"""Request states kept from request to request.

The key is a digest of the version that made them and of user and history as they were sent; the
context has no part in it. A state also holds the ages of its events, so it serves requests whose
time is close to its own only.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from prerank.batch import Rows
from prerank.serving.messages import User

__all__ = ["Entry", "StateCache", "history_digest", "user_digest"]

_ENTRY_BYTES = 1024  # what an entry costs beside its tensors, about


def user_digest(version: str, user: User) -> bytes:
    """Return a digest of a user's id and features, for one version of the engine.

    Examples
    --------
    >>> user_digest("a", User(id=1)) == user_digest("a", User(id="1"))
    False
    """
    text = msgspec.msgpack.encode((version, user.id, user.features), order="deterministic")
    return hashlib.blake2b(text, digest_size=16).digest()


def history_digest(user: bytes, history: Mapping[str, Any]) -> bytes:
    """Return a digest of a user and the streams of a history."""
    text = msgspec.msgpack.encode(history, order="deterministic")
    return hashlib.blake2b(user + text, digest_size=16).digest()


@dataclass(slots=True)
class Entry:
    """States of one request, one per tier, made at a time (ms), and the names they go by."""

    states: tuple[Rows, ...]
    time_ms: int
    stored: float
    nbytes: int
    names: set[tuple[bytes, str]] = field(default_factory=set)


class StateCache:
    """Least recently used states go first, to a bound of bytes; safe for several threads.

    Parameters
    ----------
    max_bytes : int
        Of all states; 0 keeps none.
    ttl_s : float
        How far request times may be apart, and how long a state is held.
    clock : callable
        Seconds.

    Examples
    --------
    >>> from prerank.models.two_tower import RequestState
    >>> import torch
    >>> cache = StateCache(1 << 20, 60.0, clock=lambda: 0.0)
    >>> cache.put(b"k", (RequestState(torch.zeros(1, 1, 4)),), 1_000, names=[(b"u", "7")])
    >>> cache.get(b"k", 2_000) is not None, cache.get(b"k", 90_000) is None, cache.key(b"u", "7")
    (True, True, b'k')
    """

    def __init__(self, max_bytes: int, ttl_s: float, clock: Callable[[], float]) -> None:
        self.max_bytes, self.ttl_s, self._clock = max_bytes, ttl_s, clock
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._names: dict[tuple[bytes, str], bytes] = {}
        self._lock = threading.Lock()
        self.nbytes = self.hits = self.misses = self.evictions = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes, time_ms: int) -> tuple[Rows, ...] | None:
        """Return the states of a key for a request at a time, or None."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and self._clock() - entry.stored > self.ttl_s:
                self._drop(key)
                entry = None
            if entry is None or abs(time_ms - entry.time_ms) > 1e3 * self.ttl_s:
                self.misses += 1
                return None
            self._entries.move_to_end(key)
            self.hits += 1
            return entry.states

    def key(self, user: bytes, version: str) -> bytes | None:
        """Return the key of a user's named history, or None."""
        with self._lock:
            return self._names.get((user, version))

    def name(self, key: bytes, user: bytes, version: str) -> None:
        """Let a history go by another name, if it is held."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._call(entry, key, (user, version))

    def put(
        self,
        key: bytes,
        states: tuple[Rows, ...],
        time_ms: int,
        *,
        names: list[tuple[bytes, str]],
    ) -> None:
        """Keep states; what no longer fits goes, these too if they alone do not fit."""
        size = _ENTRY_BYTES + sum(state.nbytes for state in states)
        with self._lock:
            if key in self._entries:
                self._drop(key)
            if size > self.max_bytes:
                return
            entry = Entry(states, time_ms, self._clock(), size)
            self._entries[key] = entry
            self.nbytes += size
            for name in names:
                self._call(entry, key, name)
            while self.nbytes > self.max_bytes or self._oldest_expired():
                self._drop(next(iter(self._entries)))
                self.evictions += 1

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self._names.clear()
            self.nbytes = 0

    def _call(self, entry: Entry, key: bytes, name: tuple[bytes, str]) -> None:
        before = self._names.get(name)
        if before is not None and before != key:
            self._entries[before].names.discard(name)
        self._names[name] = key
        entry.names.add(name)

    def _oldest_expired(self) -> bool:
        entry = next(iter(self._entries.values()), None)
        return entry is not None and self._clock() - entry.stored > self.ttl_s

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key)
        self.nbytes -= entry.nbytes
        for name in entry.names:
            del self._names[name]
