"""Tables as users have them, made up: odd names, ISO times, lists in text, gaps, no request id."""

from __future__ import annotations

import csv
import datetime as dt
import random
from collections.abc import Callable
from pathlib import Path

import pytest

Write = Callable[..., None]

_DEPTS = ("garden", "kitchen", "toys", "books", "sport")
_WORDS = ("red", "blue", "sale", "new", "eco", "big")
_LIKES = {"NO": (0, 3), "SE": (1, 4), "DK": (2, 0), "": (3, 1)}
_HEAD = ("Shopper Ref", "SKU Code", "Seen At", "dept", "labels", "list price", "platform")
_HEAD += ("country", "slot no", "did_buy", "secs on page", "page token")


def _write_shop(path: Path, num_users: int = 150, seed: int = 7) -> None:
    """Write a shop's CSV: what people buy depends on country and department; rows in any order."""
    draw = random.Random(seed)
    shelf = {}
    for k in range(300):
        tags = draw.sample(_WORDS, draw.randrange(4))
        shelf[f"SKU-{k:04d}"] = (_DEPTS[k % 5], tags, round(3 + draw.expovariate(0.02), 2))
    start = dt.datetime(2024, 3, 1, tzinfo=dt.timezone(dt.timedelta(hours=1)))
    rows = []
    for user in range(num_users):
        country, platform = draw.choice(list(_LIKES)), draw.choice(["ios", "android", "web"])
        fond = {*_LIKES[country], draw.randrange(5)}
        moment = start + dt.timedelta(minutes=draw.randrange(30_000))
        for _ in range(draw.randrange(5, 14)):
            moment += dt.timedelta(minutes=draw.randrange(90, 3000))
            shown = draw.sample(sorted(shelf), draw.randrange(4, 9))
            for slot, sku in enumerate(shown, start=1):
                dept, tags, price = shelf[sku]
                chance = 0.35 if _DEPTS.index(dept) in fond else 0.05
                bought = draw.random() < chance * (1.3 if "sale" in tags else 0.8)
                rows.append(
                    [
                        f"cust{user:04d}",
                        sku,
                        (moment + dt.timedelta(seconds=slot)).isoformat(),
                        dept,
                        "|".join(tags),
                        "" if draw.random() < 0.03 else price,
                        "NA" if draw.random() < 0.02 else platform,
                        country,
                        slot,
                        int(bought),
                        draw.randrange(5, 300) if bought else "",
                        f"{draw.randrange(16**12):012x}",
                    ]
                )
    draw.shuffle(rows)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([_HEAD, *rows])


def _write_events(path: Path, num_users: int = 60, seed: int = 8) -> None:
    """Write events in the layout of Taobao UserBehavior: no header, one row per event."""
    draw = random.Random(seed)
    rows = []
    for user in range(num_users):
        time = 1_511_600_000 + draw.randrange(40_000)
        for _ in range(60):
            time += draw.choice([5, 30, 60, 90, 20_000])
            item = int(draw.paretovariate(0.7) * 50) % 3000
            kind = draw.choice(["pv"] * 17 + ["cart", "fav", "buy"])
            rows.append((1000 + user, 500_000 + item, 7000 + item % 40, kind, time))
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture(scope="session")
def write_shop() -> Write:
    """``write_shop(path, num_users=..., seed=...)``."""
    return _write_shop


@pytest.fixture(scope="session")
def write_events() -> Write:
    """``write_events(path, num_users=..., seed=...)``."""
    return _write_events
