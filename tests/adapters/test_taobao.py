"""Taobao UserBehavior: labels, histories and requests against a plain double loop."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prerank.adapters.taobao import import_taobao
from prerank.errors import InputError
from prerank.log import open_log

Sample = Callable[[Path], None]
Event = tuple[int, int, int, str, int]

HOUR = 3_600_000


def _events(path: Path) -> list[Event]:
    with pa.input_stream(str(path), compression="zstd" if path.suffix == ".zst" else None) as file:
        lines = file.read().decode().splitlines()
    rows = []
    for line in lines:
        user, item, category, kind, time = line.split(",")
        if 1_511_539_200 <= int(time) < 1_512_316_800:
            rows.append((int(user), int(item), int(category), kind, int(time) * 1000))
    return rows


def _expected(events: list[Event], minutes: float, hours: float) -> dict[tuple[int, int], Any]:
    """(user, time) of each request -> its items with labels, by going through every event."""
    done: dict[tuple[int, int, str], list[int]] = defaultdict(list)
    views: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for user, item, _, kind, time in events:
        done[user, item, kind].append(time)
        if kind == "pv":
            views[user].append((time, item))
    requests: dict[tuple[int, int], Any] = {}
    for user, seen in views.items():
        start = None
        for time, item in sorted(seen, key=lambda view: view[0]):
            if start is None or time >= start + minutes * 60_000:
                start = time
            labels = requests.setdefault((user, start), {}).setdefault(item, [None] * 3)
            for k, kind in enumerate(("cart", "fav", "buy")):
                if any(time <= t <= start + hours * HOUR for t in done[user, item, kind]):
                    labels[k] = 1.0
    return requests


def _found(log_path: Path) -> dict[tuple[int, int], Any]:
    log = open_log(log_path)
    users, items = (log.vocabulary(name).values.to_pylist() for name in ("user", "item"))
    table = pa.concat_tables(pq.read_table(p) for p in sorted((log_path / "requests").iterdir()))
    names = ["user", "time", "candidates.item", "labels.cart", "labels.fav", "labels.buy"]
    found = {}
    for user, time, shown, *labels in zip(*(table[n].to_pylist() for n in names), strict=True):
        rows = zip(*labels, strict=True)
        found[users[user], time] = {items[i]: list(r) for i, r in zip(shown, rows, strict=True)}
    return found


@pytest.mark.parametrize(("minutes", "hours"), [(30, 6), (1, 0.01), (2000, 100)])
def test_labels_and_requests(
    minutes: float, hours: float, samples: dict[str, Sample], tmp_path: Path
) -> None:
    samples["taobao"](tmp_path)
    report = import_taobao(tmp_path, tmp_path / "log", request_minutes=minutes, label_hours=hours)
    events = _events(tmp_path / "UserBehavior.csv")
    assert _found(tmp_path / "log") == _expected(events, minutes, hours)
    assert (report.counts["events"], report.counts["outside_period"]) == (480, 1)


def test_histories_are_all_earlier_events(samples: dict[str, Sample], tmp_path: Path) -> None:
    samples["taobao"](tmp_path)
    import_taobao(tmp_path, tmp_path / "log", max_history=7)
    log = open_log(tmp_path / "log")
    events = sorted(_events(tmp_path / "UserBehavior.csv"), key=lambda event: event[4])
    words = log.vocabulary("behaviour").values.to_pylist()
    users, items = (log.vocabulary(name).values.to_pylist() for name in ("user", "item"))
    table = pa.concat_tables(
        pq.read_table(p) for p in sorted((tmp_path / "log" / "requests").iterdir())
    )
    names = ["user", "time", *(f"history.events.{n}" for n in ("item", "behaviour", "time"))]
    for user, time, *past in zip(*(table[n].to_pylist() for n in names), strict=True):
        mine = [e for e in events if e[0] == users[user] and e[4] < time][-7:]
        found = [(items[i], words[b], t) for i, b, t in zip(*past, strict=True)]
        assert found == [(e[1], e[3], e[4]) for e in mine]


def test_a_missing_label_is_zero_only_when_its_window_is_over(
    samples: dict[str, Sample], tmp_path: Path
) -> None:
    samples["taobao"](tmp_path)
    import_taobao(tmp_path, tmp_path / "log", label_hours=6)
    log = open_log(tmp_path / "log")
    for label in log.schema.labels:
        assert label.window_ms == 6 * HOUR
    end = max(e[4] for e in _events(tmp_path / "UserBehavior.csv"))
    for columns in log.all().columns(50):
        until = columns.scalars["observed_until"]
        assert set(until.tolist()) == {end}
        assert np.isfinite(columns.scalars["time"]).all()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,2,3,view,1511600000", r"csv:2: behaviour 'view'; expected one of pv, cart"),
        ("1,2,3,pv,yesterday", r"csv:2: 'time'"),
        ("1,2,3,pv", r"csv:2: Expected 5 columns, got 4"),
    ],
)
def test_a_bad_row_is_named(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "UserBehavior.csv").write_text(f"1,2,3,pv,1511600000\n{line}\n")
    with pytest.raises(InputError, match=message):
        import_taobao(tmp_path, tmp_path / "log")


def test_a_log_needs_views_and_sensible_options(tmp_path: Path) -> None:
    (tmp_path / "UserBehavior.csv").write_text("1,2,3,buy,1511600000\n")
    with pytest.raises(InputError, match="no view"):
        import_taobao(tmp_path, tmp_path / "log")
    with pytest.raises(InputError, match="label_hours is 0; expected more than 0"):
        import_taobao(tmp_path, tmp_path / "log", label_hours=0)


def test_the_real_sample(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "taobao_ub84k"
    if not folder.is_dir():
        pytest.skip("no Taobao sample in the real data")
    report = import_taobao(folder, tmp_path / "log")
    expected = _expected(_events(folder / "UserBehavior_84k.csv.zst"), 30, 6)
    assert _found(tmp_path / "log") == expected
    assert report.counts["events"] + report.counts["outside_period"] == 84_475
