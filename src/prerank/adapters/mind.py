"""MIND news impressions to a request log.

Reads ``behaviors.tsv`` (impression id, user, time, history, impressions) and ``news.tsv`` (id,
category, subcategory, title, abstract, url, entities of title and abstract), tab-separated without
header. One row is one request.

F. Wu et al.: MIND: A Large-scale Dataset for News Recommendation. ACL 2020.

Three facts of the data shape the log. The history of a row is ordered but has no times: its events
get the request's time minus their distance from the end in milliseconds, so those times mean order
and nothing else. The publisher shuffled the impressions of a row: their order is no slot, and
``rank.exposed`` is not stored. Times carry no zone; they are read as UTC.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from prerank.adapters.files import Text, bad_row, open_files
from prerank.adapters.parts import BY_TIME, by_time
from prerank.adapters.report import ImportReport
from prerank.errors import InputError
from prerank.log import write_log
from prerank.log.impressions.grouping import as_lists, codes_of, offsets_of, ranges, repeats
from prerank.schema import Feature, Label, Lineage, Schema

__all__ = ["import_mind"]

Index = npt.NDArray[np.int64]

_NOTES = (
    "history.clicked.time is order only: MIND gives none; the last click stands 1 ms before the "
    "request, the one before 2 ms, ...",
    "impressions of a row were shuffled by the publisher; rank.exposed is not stored",
    "times have no zone in the files and are read as UTC",
)
_TIME = "%m/%d/%Y %I:%M:%S %p"
_SHOWN = r"^(?P<item>[^\s-]+)(?:-(?P<click>[01]))?$"
_CHUNK = 4096

_BEHAVIORS = ("impression", "user", "time", "history", "shown")
_NEWS = ("item_id", "category", "subcategory", "title", "abstract", "url", "in_title", "in_text")


def import_mind(
    src: str | Path,
    out: str | Path,
    *,
    max_history: int = 100,
    progress: Callable[[int], None] | None = None,
) -> ImportReport:
    """Import MIND impressions.

    Features: the ids of user and item, hour and weekday of the request, category, subcategory and
    title length (words) of the news. Label ``click``, which is also engaged; an impression without
    a mark (the published test part) is not observed. Split by time, 80/10/10 %.

    Parameters
    ----------
    src : path
        Folder or .zip with ``behaviors.tsv`` and ``news.tsv`` (or ``news_*.tsv``), each also as
        .gz, .zst or .zip.
    out : path
        Folder of the log.
    max_history : int
        Most recent clicks in a history.
    progress : callable, optional
        Called with the number of requests just written.

    Returns
    -------
    ImportReport
        ``counts``: ``clicks``, ``merged_impressions`` (an item shown again in one row),
        ``candidates_without_news``, ``items_without_news``, ``repeated_news``.

    Raises
    ------
    InputError
        A missing file, a line that cannot be read, ``out`` exists.
    """
    if max_history < 1:
        raise InputError(f"mind: max_history is {max_history}; expected 1 or more")
    files = open_files(src)
    rows = _Rows.read(files.read("behaviors.tsv"))
    news, repeated = _read_news(files.read("news.tsv", "news_*.tsv"))
    splits = by_time(rows.time)
    written = write_log(
        out,
        _schema(),
        rows.tables(max_history),
        news,
        splits=splits,
        splits_rule=BY_TIME,
        progress=progress,
    )
    listed = pc.is_in(rows.item, value_set=news["item_id"].combine_chunks())
    return ImportReport(
        num_requests=written.num_requests,
        num_candidates=written.num_candidates,
        num_users=len(rows.user.unique()),
        num_items=written.num_items,
        parts={name: len(part) for name, part in splits.items()},
        counts={
            "clicks": int(np.nansum(rows.click)),
            "merged_impressions": rows.num_merged,
            "candidates_without_news": len(listed) - listed.true_count,
            "items_without_news": written.num_items - news.num_rows,
            "repeated_news": repeated,
        },
        notes=_NOTES,
    )


def _schema() -> Schema:
    return Schema(
        features=(
            Feature(name="user", owner="user", kind="categorical"),
            Feature(name="item", owner="item", kind="categorical"),
            Feature(name="hour", owner="context", kind="categorical", transforms=("hour",)),
            Feature(name="weekday", owner="context", kind="categorical", transforms=("weekday",)),
            Feature(name="category", owner="item", kind="categorical"),
            Feature(name="subcategory", owner="item", kind="categorical"),
            Feature(name="title_words", owner="item", kind="dense", transforms=("standard",)),
        ),
        streams=("clicked",),
        labels=(Label(name="click"),),
        engaged="click",
        lineage=Lineage(made_by="import mind", notes=_NOTES),
    )


def _read_news(text: Text) -> tuple[pa.Table, int]:
    table = text.table(dict.fromkeys(_NEWS, pa.string()), "\t", nullable=_NEWS[1:])
    codes = codes_of(table["item_id"].combine_chunks())
    first = np.unique(codes, return_index=True)[1]
    table = table.take(pa.array(first))
    columns = {"item_id": table["item_id"]}
    for name in ("category", "subcategory"):
        empty = pc.equal(table[name], "")
        columns[name] = pc.if_else(empty, pa.scalar(None, pa.string()), table[name])
    title = pc.utf8_trim_whitespace(table["title"])
    words = pc.list_value_length(pc.utf8_split_whitespace(title)).cast(pa.float64())
    columns["title_words"] = pc.if_else(pc.equal(title, ""), pa.scalar(None, pa.float64()), words)
    return pa.table(columns), len(codes) - len(first)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Requests in time order; candidates and histories flat, with the rows' boundaries."""

    impression: pa.Array
    user: pa.Array
    time: Index
    item: pa.Array
    click: npt.NDArray[np.float32]
    item_offsets: Index
    past: pa.Array
    past_start: Index
    past_length: Index
    num_merged: int

    @classmethod
    def read(cls, text: Text) -> _Rows:
        types = dict.fromkeys(_BEHAVIORS, pa.string()) | {"impression": pa.int64()}
        table = text.table(types, "\t", nullable=("history",)).combine_chunks()
        stamp = pc.utf8_trim_whitespace(table["time"])
        parsed = pc.strptime(stamp, format=_TIME, unit="s", error_is_null=True)
        _refuse(text, parsed.is_null(), stamp, "time '{}' is not like 11/9/2019 6:42:51 PM")
        codes = codes_of(table["impression"].combine_chunks())
        again = np.setdiff1d(np.arange(len(codes)), np.unique(codes, return_index=True)[1])
        if len(again):
            raise bad_row(text, int(again[0]), "impression id stands on an earlier line already")
        item, click, lengths = _shown(text, table["shown"].combine_chunks())
        past, past_length = _tokens(table["history"].combine_chunks())

        time: Index = parsed.cast(pa.int64()).to_numpy() * 1000
        order = np.argsort(time, kind="stable")
        rows = pa.array(order)
        flat = ranges(offsets_of(lengths)[:-1][order], lengths[order])
        keep, click, lengths = _merge(item, click[flat], flat, lengths[order])
        return cls(
            impression=table["impression"].combine_chunks().take(rows),
            user=table["user"].combine_chunks().take(rows),
            time=time[order],
            item=item.take(pa.array(keep)),
            click=click,
            item_offsets=offsets_of(lengths),
            past=past,
            past_start=offsets_of(past_length)[:-1][order],
            past_length=past_length[order],
            num_merged=len(flat) - len(keep),
        )

    def tables(self, max_history: int) -> Iterator[pa.Table]:
        """Yield raw request tables."""
        click = pa.array(self.click, mask=np.isnan(self.click))
        stage = pa.array(np.repeat("exposed", len(click)))
        for low in range(0, len(self.time), _CHUNK):
            high = min(low + _CHUNK, len(self.time))
            offsets = self.item_offsets[low : high + 1]
            time = self.time[low:high]
            length = np.minimum(self.past_length[low:high], max_history)
            last = self.past_start[low:high] + self.past_length[low:high]
            index = ranges(last - length, length)
            before = np.repeat(last, length) - index
            past_offsets = offsets_of(length)
            yield pa.table(
                {
                    "request_id": self.impression[low:high],
                    "user": self.user[low:high],
                    "time": time,
                    "history.clicked.item": as_lists(self.past.take(pa.array(index)), past_offsets),
                    "history.clicked.time": as_lists(
                        pa.array(np.repeat(time, length) - before), past_offsets
                    ),
                    "candidates.item": as_lists(self.item, offsets),
                    "candidates.stage": as_lists(stage, offsets),
                    "labels.click": as_lists(click, offsets),
                }
            )


def _tokens(column: pa.Array) -> tuple[pa.Array, Index]:
    """Split text at white space; return all words and their number per row."""
    lists = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(column))
    words = lists.flatten()
    keep = pc.not_equal(words, "")
    parent = pc.list_parent_indices(lists).filter(keep).to_numpy()
    return words.filter(keep), np.bincount(parent, minlength=len(column)).astype(np.int64)


def _shown(text: Text, column: pa.Array) -> tuple[pa.Array, npt.NDArray[np.float32], Index]:
    """Parse ``N123-1 N45-0`` into items, clicks (NaN where unmarked) and lengths per row."""
    words, lengths = _tokens(column)
    parsed = pc.extract_regex(words, _SHOWN)
    if parsed.null_count:
        bad = int(np.flatnonzero(parsed.is_null().to_numpy(zero_copy_only=False))[0])
        row = int(np.searchsorted(np.cumsum(lengths), bad, side="right"))
        raise bad_row(text, row, f"impression '{words[bad]}' is not like N123-1 or N123-0")
    mark = pc.struct_field(parsed, "click")
    click = pc.if_else(pc.equal(mark, ""), pa.scalar(None, pa.string()), mark).cast(pa.float32())
    values = np.asarray(click.to_numpy(zero_copy_only=False), dtype=np.float32)
    return pc.struct_field(parsed, "item"), values, lengths


def _merge(
    item: pa.Array, click: npt.NDArray[np.float32], flat: Index, lengths: Index
) -> tuple[Index, npt.NDArray[np.float32], Index]:
    """Keep one candidate per row and item, clicked if any of them was."""
    request = np.repeat(np.arange(len(lengths)), lengths)
    found = repeats(request, codes_of(item)[flat])
    if found is None:
        return flat, click, lengths
    order, starts = found
    kept = order[starts]
    back = np.argsort(kept)
    kept = kept[back]
    merged = np.fmax.reduceat(click[order], starts)[back]
    return flat[kept], merged, np.bincount(request[kept], minlength=len(lengths)).astype(np.int64)


def _refuse(text: Text, bad: pa.ChunkedArray, values: pa.ChunkedArray, message: str) -> None:
    if pc.any(bad).as_py():
        row = int(np.flatnonzero(bad.to_numpy())[0])
        raise bad_row(text, row, message.format(values[row]))
