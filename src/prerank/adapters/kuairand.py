"""KuaiRand to a request log: short videos, with a share of impressions chosen at random.

Reads ``log_standard_*.csv`` (chosen by Kuaishou's recommender), ``log_random_*.csv`` (videos put in
their place at random), ``user_features*.csv`` and ``video_features_basic*.csv`` of KuaiRand-Pure,
-1K or -27K; ``video_features_statistic*.csv`` is left alone, because its averages over the whole
month know the future.

C. Gao et al.: KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly Exposed Videos.
CIKM 2022.

Written to the published field list; the real files were not seen. Of the user and video files the
id must be there; features of the list that are absent are left out and named in the notes.

A **request** is what one user was shown in one tab within ``request_minutes`` of a first video. The
``channel`` of a candidate says how it was chosen: ``standard`` or ``random``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prerank.adapters.files import Files, Text, bad_row, open_files
from prerank.adapters.grouped import Sides, write_grouped
from prerank.adapters.report import ImportReport
from prerank.errors import InputError, did_you_mean
from prerank.log.impressions import ColumnMap, HistoryRule, ImpressionMap
from prerank.log.impressions.flat import feature_values
from prerank.log.impressions.grouping import codes_of, group_of, window_starts
from prerank.schema import Feature

__all__ = ["import_kuairand"]

_LOGS = {
    "both": ("log_standard_*.csv", "log_random_*.csv"),
    "standard": ("log_standard_*.csv",),
    "random": ("log_random_*.csv",),
}
_LABELS = {
    "click": "is_click",
    "like": "is_like",
    "follow": "is_follow",
    "comment": "is_comment",
    "forward": "is_forward",
    "hate": "is_hate",
    "long_view": "long_view",
    "play_time_ms": "play_time_ms",
}
_USER = (
    "user_active_degree",
    "is_lowactive_period",
    "is_live_streamer",
    "is_video_author",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
    *(f"onehot_feat{k}" for k in range(18)),
)
_VIDEO = (
    "author_id",
    "video_type",
    "upload_type",
    "music_id",
    "music_type",
    "video_duration",
    "tag",
)
_NOTES = (
    "written to the published field list; the real files were not seen",
    "a request is what a user was shown in one tab within a window; the logs have no request id",
    "channel says whether a video was chosen by the recommender (standard) or at random (random)",
    "user and video features are one snapshot, taken by the publisher at an unknown time",
    "hour and weekday are UTC; the app's clock is UTC+8",
)


def import_kuairand(
    src: str | Path,
    out: str | Path,
    *,
    logs: str = "both",
    request_minutes: float = 10,
    max_history: int = 100,
    progress: Callable[[int], None] | None = None,
) -> ImportReport:
    """Import KuaiRand.

    Features: ids of user and video, the categorical user features (ranges and encrypted ones),
    author, type, upload type, music, tags and duration of the video, tab, hour, weekday. Labels
    ``click``, ``like``, ``follow``, ``comment``, ``forward``, ``hate``, ``long_view``,
    ``play_time_ms``; engaged is ``click``, tasks are ``click`` and ``long_view``. History
    ``clicked``. Split by time.

    Parameters
    ----------
    src : path
        Folder or .zip with the files, each also as .gz, .zst or .zip.
    out : path
        Folder of the log.
    logs : {"both", "standard", "random"}
        Which impressions; histories come from the same ones.
    request_minutes : float
        Length of a request.
    max_history : int
        Most recent clicks in a history.
    progress : callable, optional
        Called with the number of requests just written.

    Returns
    -------
    ImportReport
        ``counts``: ``standard``, ``random`` (impressions), ``impressions``,
        ``merged_impressions``, ``users_without_row``, ``items_without_row``.

    Raises
    ------
    InputError
        A missing file or column, a line that cannot be read, ``out`` exists.
    """
    if logs not in _LOGS:
        raise InputError(f"kuairand: logs is '{logs}'; {did_you_mean(logs, _LOGS)}")
    for name, value in (("request_minutes", request_minutes), ("max_history", max_history)):
        if value <= 0:
            raise InputError(f"kuairand: {name} is {value}; expected more than 0")
    files = open_files(src)
    users, absent_user = _read_sides(files, "user_features*.csv", "user_id", _USER)
    videos, absent_video = _read_sides(files, "video_features_basic*.csv", "video_id", _VIDEO)
    shown = pa.concat_tables(
        _read_log(text) for pattern in _LOGS[logs] for text in files.read_all(pattern)
    ).combine_chunks()
    table = _with_requests(shown, int(request_minutes * 60_000))
    absent = (*absent_user, *absent_video)
    notes = (*_NOTES, f"absent columns: {', '.join(absent)}") if absent else _NOTES
    mapping = ImpressionMap(
        request_id="request",
        user="user_id",
        item="video_id",
        time="time_ms",
        labels=dict(_LABELS),
        engaged="click",
        tasks={"click": "click", "long_view": "long_view"},
        features={"context": {"tab": ColumnMap(column="tab")}},
        derived=(
            Feature(name="hour", owner="context", kind="categorical", transforms=("hour",)),
            Feature(name="weekday", owner="context", kind="categorical", transforms=("weekday",)),
        ),
        channel="channel",
        history={"clicked": HistoryRule(where="click", max_len=int(max_history))},
    )
    rand = table["is_rand"]
    return write_grouped(
        out,
        table,
        mapping,
        Sides(
            users=users.rename_columns({"user_id": "user"}),
            items=videos.rename_columns({"video_id": "item_id"}),
            features=(
                *(
                    Feature(name=n, owner="user", kind="categorical")
                    for n in users.column_names[1:]
                ),
                *(_video_feature(name) for name in videos.column_names[1:]),
            ),
        ),
        made_by="import kuairand",
        notes=notes,
        counts={
            "standard": int(pc.sum(pc.equal(rand, 0)).as_py() or 0),
            "random": int(pc.sum(pc.equal(rand, 1)).as_py() or 0),
        },
        progress=progress,
    )


def _video_feature(name: str) -> Feature:
    if name == "tag":
        return Feature(name=name, owner="item", kind="multi")
    if name == "video_duration":
        return Feature(name=name, owner="item", kind="dense", transforms=("log1p", "standard"))
    return Feature(name=name, owner="item", kind="categorical")


def _read_sides(
    files: Files, pattern: str, key: str, listed: tuple[str, ...]
) -> tuple[pa.Table, list[str]]:
    """Return the first row of every id, and which features of the list are absent."""
    parts = []
    for text in files.read_all(pattern):
        kinds = {key: pa.int64(), **dict.fromkeys(listed, pa.string())}
        if "video_duration" in kinds:
            kinds["video_duration"] = pa.float64()
        parts.append(text.named(kinds, optional=listed))
    table = pa.concat_tables(parts, promote_options="default")
    first = np.unique(codes_of(table[key].combine_chunks()), return_index=True)[1]
    table = table.take(pa.array(first))
    if "tag" in table.column_names:
        spec = ColumnMap(column="tag", kind="multi", separator=",")
        at = table.schema.get_field_index("tag")
        table = table.set_column(at, "tag", feature_values(table, spec)[0])
    return table, [name for name in listed if name not in table.column_names]


def _read_log(text: Text) -> pa.Table:
    whole = ("user_id", "video_id", "time_ms", *_LABELS.values(), "is_rand", "tab")
    table = text.named(dict.fromkeys(whole, pa.int64())).combine_chunks()
    for column in ("is_rand", *(c for c in _LABELS.values() if c != "play_time_ms")):
        wrong = np.flatnonzero(~np.isin(table[column].to_numpy(), (0, 1)))
        if len(wrong):
            what = f"{column} is {table[column][wrong[0]]}; expected 0 or 1"
            raise bad_row(text, int(wrong[0]), what, header=True)
    words = pa.array(["standard", "random"])
    return table.append_column("channel", words.take(table["is_rand"].combine_chunks()))


def _with_requests(table: pa.Table, window_ms: int) -> pa.Table:
    """Add the column ``request``: user, tab and window."""
    user, tab = (codes_of(table[name].combine_chunks()) for name in ("user_id", "tab"))
    owner = user * (int(tab.max()) + 1) + tab
    time = table["time_ms"].to_numpy()
    order = np.lexsort((time, owner))
    starts = window_starts(owner[order], time[order], window_ms)
    request = np.empty_like(order)
    request[order] = group_of(starts, len(order))
    return table.append_column("request", pa.array(request))
