"""Taobao UserBehavior to a request log: views as impressions, later behaviours as late labels.

Reads ``UserBehavior.csv`` (also ``UserBehavior*.csv``): user, item, category, behaviour (``pv``,
``cart``, ``fav``, ``buy``), time in seconds; no header. Published by Alibaba on Tianchi (data set
649), used for instance in H. Zhu et al.: Learning Tree-based Deep Model for Recommender Systems,
KDD 2018.

A **request** is what one user viewed within ``request_minutes`` of a first view. The data set does
not say what was shown and not viewed: every candidate was viewed, and what there is to learn is
which views lead to a cart, a favourite or a purchase. Such a label is 1 where the user did it to
the same item from the view on and within ``label_hours`` of the request. Where that did not happen
the label is not stored: the schema's window makes it 0 when the log was observed long enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from prerank.adapters.files import Text, bad_row, open_files
from prerank.adapters.grouped import Requests, Sides, write_grouped
from prerank.adapters.report import ImportReport
from prerank.errors import InputError
from prerank.log.impressions import ImpressionMap
from prerank.log.impressions.grouping import Events, codes_of, group_of, window_starts
from prerank.schema import Feature

__all__ = ["import_taobao"]

Index = npt.NDArray[np.int64]

_LATE = ("cart", "fav", "buy")
_BEHAVIOURS = ("pv", *_LATE)
_HOUR_MS = 3_600_000
# The published nine days, 25 November to 3 December 2017, in Beijing's time.
_PERIOD_S = (1_511_539_200, 1_512_316_800)
_NOTES = (
    "a request is a user's views within a window; what was shown and not viewed is not published",
    "labels are later events of the same user and item; unknown where the log ends too early",
    "events outside 25 November to 3 December 2017 (UTC+8) are clock errors and were dropped",
    "hour and weekday are UTC; the shop's clock is UTC+8",
)


def import_taobao(
    src: str | Path,
    out: str | Path,
    *,
    request_minutes: float = 30,
    label_hours: float = 6,
    max_history: int = 100,
    progress: Callable[[int], None] | None = None,
) -> ImportReport:
    """Import Taobao UserBehavior.

    Features: ids of user and item, category of the item, hour and weekday. History ``events``: all
    the user's earlier events of any kind, each with its ``behaviour``. Labels ``cart``, ``fav``,
    ``buy``; engaged is any of them. Split by time; requests of the last ``label_hours`` have labels
    that are not known yet unless they came early.

    Parameters
    ----------
    src : path
        Folder or .zip with the file, also as .gz, .zst or .zip.
    out : path
        Folder of the log.
    request_minutes : float
        Length of a request.
    label_hours : float
        How long after the request a behaviour counts.
    max_history : int
        Most recent events in a history.
    progress : callable, optional
        Called with the number of requests just written.

    Returns
    -------
    ImportReport
        ``counts``: ``events``, ``outside_period``, ``impressions``, ``merged_impressions`` (an item
        viewed again in one request), and views with a label: ``cart``, ``fav``, ``buy``.

    Raises
    ------
    InputError
        A missing file, a line that cannot be read, no view at all, ``out`` exists.
    """
    for name, value in (
        ("request_minutes", request_minutes),
        ("label_hours", label_hours),
        ("max_history", max_history),
    ):
        if value <= 0:
            raise InputError(f"taobao: {name} is {value}; expected more than 0")
    text = open_files(src).read("UserBehavior.csv", "UserBehavior*.csv")
    events, outside = _read(text)
    window = int(label_hours * _HOUR_MS)
    views = _views(events, int(request_minutes * 60_000), window, text.where)
    mapping = ImpressionMap(
        request_id="request",
        user="user",
        item="item",
        time="time",
        observed_until="until",
        labels={name: name for name in _LATE},
        label_windows_ms=dict.fromkeys(_LATE, window),
        engaged=" or ".join(_LATE),
        derived=(
            Feature(name="hour", owner="context", kind="categorical", transforms=("hour",)),
            Feature(name="weekday", owner="context", kind="categorical", transforms=("weekday",)),
        ),
    )
    category = Feature(name="category", owner="item", kind="categorical")
    behaviour = Feature(name="behaviour", owner="history", kind="categorical", stream="events")
    return write_grouped(
        out,
        views,
        mapping,
        Sides(
            items=_items(events),
            features=(category, behaviour),
            streams=("events",),
            change=lambda requests: _with_events(requests, events, int(max_history)),
        ),
        made_by="import taobao",
        notes=_NOTES,
        counts={
            "events": events.num_rows,
            "outside_period": outside,
            **{name: len(views) - views[name].null_count for name in _LATE},
        },
        progress=progress,
    )


def _read(text: Text) -> tuple[pa.Table, int]:
    """Return the events of the published period in order of time, and how many others."""
    whole = pa.int64()
    kinds = {"user": whole, "item": whole, "category": whole, "behaviour": pa.string()}
    table = text.table({**kinds, "time": whole}, ",").combine_chunks()
    known = pc.is_in(table["behaviour"], value_set=pa.array(_BEHAVIOURS))
    wrong = np.flatnonzero(~known.to_numpy())
    if len(wrong):
        found = table["behaviour"][wrong[0]]
        expected = ", ".join(_BEHAVIOURS)
        raise bad_row(text, int(wrong[0]), f"behaviour '{found}'; expected one of {expected}")
    time = table["time"].to_numpy()
    inside = np.flatnonzero((time >= _PERIOD_S[0]) & (time < _PERIOD_S[1]))
    order = inside[np.argsort(time[inside], kind="stable")]
    kept = table.take(pa.array(order))
    at = kept.schema.get_field_index("time")
    return kept.set_column(at, "time", pc.multiply(kept["time"], 1000)), len(time) - len(inside)


def _items(events: pa.Table) -> pa.Table:
    """Return every item of any event with its first category, in order of appearance."""
    first = np.unique(codes_of(events["item"].combine_chunks()), return_index=True)[1]
    rows = events.select(["item", "category"]).take(pa.array(first))
    return rows.rename_columns(["item_id", "category"])


def _views(events: pa.Table, request_ms: int, window_ms: int, where: str) -> pa.Table:
    """Return the views with their request and late labels (1, or null)."""
    views = events.filter(pc.equal(events["behaviour"], "pv"))
    if not views.num_rows:
        raise InputError(f"{where}: no view (behaviour 'pv') in the published period")
    user, time = codes_of(views["user"].combine_chunks()), views["time"].to_numpy()
    order = np.lexsort((time, user))
    starts = window_starts(user[order], time[order], request_ms)
    group = group_of(starts, len(order))
    request, first = np.empty_like(order), np.empty_like(order)
    request[order], first[order] = group, time[order][starts][group]
    until = np.full(len(order), int(events["time"].to_numpy().max()))
    views = views.append_column("request", pa.array(request)).append_column(
        "until", pa.array(until)
    )
    for name in _LATE:
        later = _happened(views, events, name, first + window_ms)
        views = views.append_column(name, pa.array(np.ones(len(later)), mask=~later))
    return views


def _happened(
    views: pa.Table, events: pa.Table, behaviour: str, until: Index
) -> npt.NDArray[np.bool_]:
    """Return which views ``[N]`` the same user followed by a behaviour to the same item."""
    done = events.filter(pc.equal(events["behaviour"], behaviour))
    pairs = [_pairs(t) for t in (views, done)]
    codes = codes_of(pa.concat_arrays(pairs))
    seen, acted = codes[: len(views)], codes[len(views) :]
    moment = np.concatenate([views["time"].to_numpy(), done["time"].to_numpy()])
    rank = np.unique(np.concatenate([moment, until]), return_inverse=True)[1]
    width = int(rank.max()) + 1
    key = np.sort(acted * width + rank[len(views) : len(moment)])
    low = np.searchsorted(key, seen * width + rank[: len(views)])
    high = np.searchsorted(key, seen * width + rank[len(moment) :], side="right")
    return np.asarray(high > low)


def _pairs(table: pa.Table) -> pa.Array:
    text = [table[name].cast(pa.string()) for name in ("user", "item")]
    return pc.binary_join_element_wise(*text, " ").combine_chunks()


def _with_events(requests: Requests, events: pa.Table, max_len: int) -> Iterator[pa.Table]:
    users = pc.unique(events["user"])
    index = pc.index_in(events["user"], value_set=users).to_numpy().astype(np.int64)
    past = Events(index, events["time"].to_numpy())
    columns = {name: events[name].combine_chunks() for name in ("item", "time", "behaviour")}
    for table in requests:
        user = pc.index_in(table["user"], value_set=users).to_numpy().astype(np.int64)
        lists = past.lists(user, table["time"].to_numpy(), max_len, columns)
        for name, values in lists:
            table = table.append_column(f"history.events.{name}", values)  # noqa: PLW2901
        yield table
