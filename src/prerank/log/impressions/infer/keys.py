"""Which columns are the time, the request, the user and the item of a flat table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from prerank.log.impressions.grouping import window_starts
from prerank.log.impressions.infer.profile import Profile

__all__ = ["WINDOW_MS", "Keys", "agreement", "find_keys", "has_word"]

Index = npt.NDArray[np.int64]
Profiles = Mapping[str, Profile]

WINDOW_MS = 1_800_000
_CERTAIN = 0.99
_HINTS = {
    "time": ("time", "timestamp", "ts", "date", "datetime", "when", "unix", "at", "clock", "dt"),
    "request": ("request", "req", "query", "search", "slate", "impression", "pageview", "session"),
    "user": (
        "user",
        "uid",
        "member",
        "customer",
        "visitor",
        "account",
        "person",
        "client",
        "buyer",
    ),
    "item": (
        *("item", "iid", "product", "sku", "video", "vid", "movie", "article", "news", "doc"),
        *("song", "track", "book", "post", "photo", "goods", "listing", "ad", "creative", "asin"),
        *("content", "document", "offer"),
    ),
}
_FILLERS = ("id", "ids", "key", "ref", "no", "nr", "code", "hash", "idx", "number")
_OTHER_TIMES = ("upload", "publish", "published", "birth", "created", "register", "release", "end")


def _words(name: str) -> list[str]:
    parts = re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
    return [word for word in re.split(r"[^a-z]+", parts) if word]


def _hint(name: str, role: str) -> float:
    """Return 4 for a name that means the role (``user_id``), 0.5 for one that mentions it."""
    words = [word for word in _words(name) if word not in _FILLERS]
    if words and set(words) <= set(_HINTS[role]) and not re.search(r"\d$", name):
        return 4.0
    return 0.5 if has_word(name, _HINTS[role]) else 0.0


def has_word(name: str, words: Iterable[str]) -> bool:
    """Return whether a column's name holds one of the words.

    Examples
    --------
    >>> has_word("userId", ["user"]), has_word("user_id", ["user"]), has_word("username", ["user"])
    (True, True, False)
    """
    return not set(_words(name)).isdisjoint(words)


def agreement(values: Index, key: Index) -> tuple[float, int]:
    """Return the share of groups in which a column has one value, and how many groups can tell.

    Parameters
    ----------
    values, key : ndarray ``[N]`` int64
        Codes; -1 is null. Groups with fewer than two known values cannot tell.

    Examples
    --------
    >>> agreement(np.array([5, 5, 1, 2, 9]), np.array([0, 0, 1, 1, 2]))
    (0.5, 2)
    """
    rows = np.flatnonzero((values >= 0) & (key >= 0))
    if not len(rows):
        return 0.0, 0
    rows = rows[np.argsort(key[rows], kind="stable")]
    starts = np.flatnonzero(np.diff(key[rows], prepend=-1))
    found = values[rows]
    low, high = np.minimum.reduceat(found, starts), np.maximum.reduceat(found, starts)
    several = np.diff(np.append(starts, len(rows))) > 1
    if not several.any():
        return 0.0, 0
    return float((low == high)[several].mean()), int(several.sum())


@dataclass(slots=True)
class Keys:
    """The columns that identify an impression, why, and what else they could be.

    ``request`` is None where no column groups rows to requests; ``groups`` ``[N]`` numbers the
    requests of the rows either way (a window of one user, then).
    """

    time: str | None = None
    request: str | None = None
    user: str | None = None
    item: str | None = None
    groups: Index = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    why: dict[str, str] = field(default_factory=dict)
    others: dict[str, list[str]] = field(default_factory=dict)
    doubts: dict[str, str] = field(default_factory=dict)


def find_keys(profiles: Profiles) -> Keys:
    """Find the key columns; a role that nothing fits stays None."""
    keys = Keys()
    keys.time = _find_time(profiles, keys)
    if keys.time is None:
        return keys
    times = profiles[keys.time].times
    assert times is not None
    ids = [
        p
        for name, p in profiles.items()
        if name != keys.time and p.is_id and (p.times is None or _named(name))
    ]
    keys.request = _find_request(ids, times.ms, keys)
    rest = [p for p in ids if p.name != keys.request]
    request = None if keys.request is None else profiles[keys.request].codes
    keys.user = _find_user(rest, request, times.ms, keys)
    rest = [p for p in rest if p.name != keys.user]
    keys.item = _find_item(rest, request, keys)
    if request is not None:
        keys.groups = request
    elif keys.user is not None:
        keys.groups = _windows(profiles[keys.user].codes, times.ms, keys)
    return keys


def _named(name: str) -> bool:
    return any(has_word(name, _HINTS[role]) for role in ("request", "user", "item"))


def _choose(role: str, ranked: Sequence[tuple[float, str]], keys: Keys) -> str | None:
    """Take the best of ``(score, column)``; remember the others."""
    best = sorted(ranked, key=lambda pair: -pair[0])
    if not best:
        return None
    keys.others[role] = [name for score, name in best[1:3] if score > 0.25 * best[0][0]]
    return best[0][1]


def _find_time(profiles: Profiles, keys: Keys) -> str | None:
    ranked = []
    for name, p in profiles.items():
        if p.times is None or p.num_null > 0.5 * p.num_rows:
            continue
        score = 2.0 * has_word(name, _HINTS["time"]) - 3.0 * has_word(name, _OTHER_TIMES)
        score += 1.0 * (p.numbers is None) - 2.0 * (p.numbers is not None and _named(name))
        ranked.append((score + p.num_distinct / max(1, p.num_rows), name))
    chosen = _choose("time", ranked, keys)
    if chosen is not None:
        times = profiles[chosen].times
        assert times is not None
        unit = f" if read as {times.unit}" if times.unit else ""
        keys.why["time"] = f"{times.span()}{unit}"
    return chosen


def _find_request(ids: Sequence[Profile], ms: Index, keys: Keys) -> str | None:
    """Find ids whose rows lie close together in time and belong to one other id (the user)."""
    ranked = []
    for p in ids:
        size = (p.num_rows - p.num_null) / max(1, p.num_distinct)
        hint = _hint(p.name, "request")
        if not 1.05 <= size <= 20_000 or has_word(p.name, (*_HINTS["user"], *_HINTS["item"])):
            continue
        close = _share_of_short(p.codes, ms)
        owners = [q for q in ids if q is not p and 1 < q.num_distinct < p.num_distinct]
        owned = [q.name for q in owners if agreement(q.codes, p.codes)[0] >= _CERTAIN]
        if close < 0.9 or (not owned and not hint):
            continue
        ranked.append((hint + close + p.num_distinct / p.num_rows, p.name))
        keys.why[f"request:{p.name}"] = (
            f"{p.summary()}; {size:.1f} rows each, within one hour in {100 * close:.1f} % of them"
        )
    chosen = _choose("request", ranked, keys)
    if chosen is not None:
        keys.why["request"] = keys.why[f"request:{chosen}"]
    return chosen


def _share_of_short(codes: Index, ms: Index) -> float:
    """Return the share of groups of several rows that last no longer than an hour."""
    rows = np.flatnonzero((codes >= 0) & (ms >= 0))
    rows = rows[np.argsort(codes[rows], kind="stable")]
    starts = np.flatnonzero(np.diff(codes[rows], prepend=-1))
    if not len(starts):
        return 0.0
    length = np.maximum.reduceat(ms[rows], starts) - np.minimum.reduceat(ms[rows], starts)
    several = np.diff(np.append(starts, len(rows))) > 1
    return float((length[several] <= 3_600_000).mean()) if several.any() else 0.0


def _find_user(ids: Sequence[Profile], request: Index | None, ms: Index, keys: Keys) -> str | None:
    ranked = []
    for p in ids:
        hint = _hint(p.name, "user")
        if has_word(p.name, _HINTS["item"]) and not hint:
            continue
        if request is not None:
            score, _ = agreement(p.codes, request)
            why = f"constant within request in {100 * score:.1f} % of groups"
            fits = score >= _CERTAIN
        else:
            score = _locality(p.codes, ms)
            why = (
                f"{100 * score:.0f} % more of its rows than by chance are followed by another of "
                "the same value within 30 minutes"
            )
            # What a finer id decides (a category, by its item) is no user.
            fits = not p.is_row_number and not any(
                q.num_distinct > p.num_distinct
                and agreement(p.codes, q.codes)[0] >= _CERTAIN
                and not q.is_row_number
                and agreement(p.codes, q.codes)[1] >= 10
                for q in ids
                if q is not p
            )
        if fits or hint >= 1:
            # With a request id, the finest id that is constant within it tells users apart best.
            detail = p.num_distinct / p.num_rows if request is not None else 0.0
            ranked.append((hint + score + detail, p.name))
            keys.why[f"user:{p.name}"] = f"{p.summary()}; {why}"
    chosen = _choose("user", ranked, keys)
    if chosen is not None:
        keys.why["user"] = keys.why[f"user:{chosen}"]
        if request is None and max(score for score, _ in ranked) < 0.1:
            keys.doubts["user"] = "its rows do not come in bursts, as those of a person do"
    return chosen


def _locality(codes: Index, ms: Index) -> float:
    """Return how much more often than by chance half an hour holds the next row of a value."""
    rows = np.flatnonzero((codes >= 0) & (ms >= 0))
    if len(rows) < 2:
        return 0.0
    shuffled = np.random.default_rng(0).permutation(codes[rows])
    return _followed(codes[rows], ms[rows]) - _followed(shuffled, ms[rows])


def _followed(codes: Index, ms: Index) -> float:
    order = np.lexsort((ms, codes))
    same = np.diff(codes[order]) == 0
    return float((same & (np.diff(ms[order]) <= WINDOW_MS)).sum() / len(codes))


def _find_item(ids: Sequence[Profile], request: Index | None, keys: Keys) -> str | None:
    ranked = []
    for p in ids:
        hint = _hint(p.name, "item")
        if p.is_row_number and not hint:
            continue
        if request is not None and not hint and agreement(p.codes, request)[0] > 0.5:
            continue
        ranked.append((hint + p.num_distinct / p.num_rows, p.name))
    chosen = _choose("item", ranked, keys)
    found = next((p for p in ids if p.name == chosen), None)
    if found is not None:
        keys.why["item"] = found.summary()
    return chosen


def _windows(user: Index, ms: Index, keys: Keys) -> Index:
    rows = np.flatnonzero((user >= 0) & (ms >= 0))
    rows = rows[np.lexsort((ms[rows], user[rows]))]
    groups = np.full(len(user), -1, dtype=np.int64)
    if len(rows):
        starts = window_starts(user[rows], ms[rows], WINDOW_MS)
        groups[rows] = np.cumsum(np.isin(np.arange(len(rows)), starts)) - 1
        keys.why["window_ms"] = (
            f"no column groups rows to requests; half an hour of one user makes "
            f"{len(starts):,} requests of {len(rows) / len(starts):.1f} rows"
        )
    return groups
