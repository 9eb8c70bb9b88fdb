"""MovieLens ratings to a request log.

Reads the official layout of MovieLens-1M (``ratings.dat``, ``movies.dat``, ``users.dat``; values
separated by ``::``, Latin-1) and the atomic files of RecBole (``.inter``, ``.item``, ``.user``;
tab-separated with a typed header). Which one it is shows in the file names.

F. M. Harper, J. A. Konstan: The MovieLens Datasets: History and Context. ACM TiiS 5(4), 2015.

A **request** is a slate: up to ``slate`` consecutive ratings of one user, cut so that ratings of
one second stay together (a second with more ratings than that is a slate of its own). MovieLens
did not log what was shown; every candidate counts as exposed because it was rated. Requests are
numbered in log order. The list of candidates keeps the order of rating, which is no slot:
``rank.exposed`` is not stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from prerank.adapters.files import Files, Text, open_files
from prerank.adapters.grouped import num_unknown, with_users
from prerank.adapters.report import ImportReport
from prerank.errors import InputError, did_you_mean
from prerank.log import write_log
from prerank.log.impressions.build import group_impressions
from prerank.log.impressions.flat import feature_values
from prerank.log.impressions.grouping import chain, codes_of, group_of
from prerank.log.impressions.mapping import ColumnMap, HistoryRule, ImpressionMap
from prerank.schema import Feature, Lineage

__all__ = ["import_movielens", "slate_starts"]

Index = npt.NDArray[np.int64]

_NOTES = (
    "a request is a slate of consecutive ratings of one user; every candidate counts as exposed",
    "order inside a user is real; clocks of different users are not comparable (parts of the "
    "published seconds are filled in): split per user by order",
    "candidates stand in order of rating, which is no slot; rank.exposed is not stored",
)
_RULE = "per user by order: last 10 % of the requests test, 10 % before valid, at least one each"


def import_movielens(
    src: str | Path,
    out: str | Path,
    *,
    slate: int = 10,
    max_history: int = 100,
    progress: Callable[[int], None] | None = None,
) -> ImportReport:
    """Import MovieLens ratings.

    Features: the ids of user and item; gender, age, occupation and the first three digits of the
    zip code of the user; year and genres of the movie. Label ``rating``; engaged from 4 stars up.
    History ``rated``: the user's ratings before the request's time, with their stars.

    Parameters
    ----------
    src : path
        Folder or .zip with the files, each also as .gz, .zst or .zip.
    out : path
        Folder of the log.
    slate : int
        Ratings per request.
    max_history : int
        Most recent ratings in a history.
    progress : callable, optional
        Called with the number of requests just written.

    Returns
    -------
    ImportReport
        ``counts``: ``ratings``, ``merged_ratings`` (an item rated again in one slate),
        ``items_without_row``, ``items_without_year``, ``users_without_row``.

    Raises
    ------
    InputError
        A missing file, a line that cannot be read, ``out`` exists.
    """
    for name, value in (("slate", slate), ("max_history", max_history)):
        if value < 1:
            raise InputError(f"movielens: {name} is {value}; expected 1 or more")
    files = open_files(src)
    if files.find("ratings.dat") is not None:
        data = _read_dat(files)
    elif files.find("*.inter") is not None:
        data = _read_atomic(files)
    else:
        files.read("ratings.dat", "*.inter")  # raises, and says what the folder holds
        raise AssertionError
    ratings = _slates(data.ratings, slate)
    mapping = ImpressionMap(
        request_id="request",
        user="user",
        item="item",
        time="time",
        labels={"rating": "rating"},
        engaged="rating >= 4",
        history={
            "rated": HistoryRule(
                max_len=max_history, features={"rating": ColumnMap(column="stars")}
            )
        },
    )
    schema, rated, requests, grouped = group_impressions(ratings, mapping)
    schema = msgspec.structs.replace(
        schema,
        features=(*schema.features, *_features(data)),
        lineage=Lineage(made_by="import movielens", notes=_NOTES),
    )
    users = ratings["user"].combine_chunks()
    first = np.unique(ratings["request"].to_numpy(), return_index=True)[1]
    splits = _split(codes_of(users)[first])
    written = write_log(
        out,
        schema,
        with_users(requests, data.users),
        data.items,
        splits=splits,
        splits_rule=_RULE,
        progress=progress,
    )
    return ImportReport(
        num_requests=written.num_requests,
        num_candidates=written.num_candidates,
        num_users=grouped.num_users,
        num_items=written.num_items,
        parts={name: len(rows) for name, rows in splits.items()},
        counts={
            "ratings": grouped.num_rows,
            "merged_ratings": grouped.num_merged,
            "items_without_row": num_unknown(rated["item_id"], data.items["item_id"]),
            "items_without_year": data.items["year"].null_count,
            "users_without_row": num_unknown(pc.unique(users), data.users["user"]),
        },
        notes=_NOTES,
    )


@dataclass(frozen=True, slots=True)
class _Data:
    """Ratings (user, item, rating, time in ms, stars), users and items with raw features."""

    ratings: pa.Table
    users: pa.Table
    items: pa.Table


def _features(data: _Data) -> list[Feature]:
    users = [n for n in data.users.column_names if n != "user"]
    return [
        *(Feature(name=name, owner="user", kind="categorical") for name in users),
        Feature(name="year", owner="item", kind="dense", transforms=("standard",)),
        Feature(name="genres", owner="item", kind="multi"),
    ]


def _read_dat(files: Files) -> _Data:
    whole, text = pa.int64(), pa.string()
    ratings = files.read("ratings.dat").table(
        {"user": whole, "item": whole, "rating": pa.float64(), "time": whole}, "::"
    )
    movies = files.read("movies.dat").table(
        {"item_id": whole, "title": text, "genres": text}, "::", encoding="latin-1"
    )
    users = files.read("users.dat").table(
        {"user": whole, "gender": text, "age": whole, "occupation": whole, "zip": text},
        "::",
        encoding="latin-1",
        nullable=("gender", "age", "occupation", "zip"),
    )
    year = pc.struct_field(pc.extract_regex(movies["title"], r"\((?P<year>[0-9]{4})\)\s*$"), "year")
    items = {
        "item_id": movies["item_id"],
        "year": year.cast(pa.float64()),
        "genres": _genres(movies, "genres", "|"),
    }
    time = pc.multiply(ratings["time"], 1000)
    return _data(ratings.set_column(3, "time", time), users, pa.table(items))


def _read_atomic(files: Files) -> _Data:
    rated = _atomic(files.read("*.inter"), ("user_id", "item_id", "rating", "timestamp"))
    ratings = pa.table(
        {
            "user": rated["user_id"],
            "item": rated["item_id"],
            "rating": rated["rating"],
            "time": pc.floor(pc.multiply(rated["timestamp"], 1000.0)).cast(pa.int64()),
        }
    )
    items = pa.table({"item_id": pa.array([], pa.string())})
    if files.find("*.item") is not None:
        items = _atomic(files.read("*.item"), ("item_id",))
    users = pa.table({"user_id": pa.array([], pa.string())})
    if files.find("*.user") is not None:
        users = _atomic(files.read("*.user"), ("user_id",))
    genres = next((n for n in ("genre", "genres", "class") if n in items.column_names), None)
    kept = [n for n in ("gender", "age", "occupation") if n in users.column_names]
    people = {"user": users["user_id"], **{name: users[name] for name in kept}}
    if "zip_code" in users.column_names:
        people["zip"] = users["zip_code"]
    movies = {
        "item_id": items["item_id"],
        "year": _years(items),
        "genres": _genres(items, genres, " "),
    }
    return _data(ratings, pa.table(people), pa.table(movies))


def _genres(items: pa.Table, column: str | None, separator: str) -> pa.Array:
    if column is None:
        return pa.nulls(items.num_rows, pa.list_(pa.string()))
    return feature_values(items, ColumnMap(column=column, kind="multi", separator=separator))[0]


def _years(items: pa.Table) -> pa.ChunkedArray:
    if "release_year" not in items.column_names:
        return pa.chunked_array([pa.nulls(items.num_rows, pa.float64())])
    text = items["release_year"].cast(pa.string())
    found = pc.struct_field(pc.extract_regex(text, r"^\s*(?P<year>[0-9]{4})\s*$"), "year")
    return found.cast(pa.float64())


def _atomic(text: Text, needed: tuple[str, ...]) -> pa.Table:
    """Read one RecBole file: header ``name:type``, tab-separated; tokens stay text."""
    fields = dict(column.partition(":")[::2] for column in text.header().split("\t"))
    for name in needed:
        if name not in fields:
            raise InputError(f"{text.where}:1: no column '{name}'; {did_you_mean(name, fields)}")
    types = {n: pa.float64() if kind == "float" else pa.string() for n, kind in fields.items()}
    free = [name for name in fields if name not in needed]
    return text.table(types, "\t", header=True, nullable=free)


def _data(ratings: pa.Table, users: pa.Table, items: pa.Table) -> _Data:
    rating = ratings["rating"]
    whole = pc.all(pc.equal(rating, pc.floor(rating))).as_py()
    ratings = ratings.append_column("stars", rating.cast(pa.int64() if whole else pa.string()))
    columns: dict[str, pa.ChunkedArray] = {}
    for name in users.column_names:
        values = users[name]
        if name != "user" and pa.types.is_string(values.type):
            values = pc.if_else(pc.equal(values, ""), pa.scalar(None, pa.string()), values)
        # Three digits are a region; the full code tells most users apart.
        columns["zip3" if name == "zip" else name] = (
            pc.utf8_slice_codeunits(values, 0, 3) if name == "zip" else values
        )
    return _Data(ratings, pa.table(columns), items)


def _slates(ratings: pa.Table, slate: int) -> pa.Table:
    """Add the column ``request``: number of the rating's slate in time order of all slates."""
    user = codes_of(ratings["user"].combine_chunks())
    time: Index = ratings["time"].to_numpy()
    order = np.lexsort((time, user))
    starts = slate_starts(user[order], time[order], slate)
    number = np.empty(len(starts), dtype=np.int64)
    number[np.argsort(time[order][starts], kind="stable")] = np.arange(len(starts))
    request = number[group_of(starts, len(order))]
    # In log order, so that the number of a request is its row in the log.
    again = np.argsort(request, kind="stable")
    rows = ratings.take(pa.array(order[again]))
    return rows.append_column("request", pa.array(request[again]))


def slate_starts(user: Index, time: Index, slate: int) -> Index:
    """Return the first row of each slate; rows of one user and time are never parted.

    Parameters
    ----------
    user, time : ndarray ``[N]`` int64
        Sorted by user, then time.
    slate : int
        Rows per slate; only a single moment with more rows makes a longer one.

    Examples
    --------
    >>> user = np.zeros(6, dtype=np.int64)
    >>> slate_starts(user, np.array([1, 2, 2, 3, 4, 5]), 2)
    array([0, 1, 3, 5])
    """
    num_rows = len(user)
    new = (np.diff(user, prepend=-1) != 0) | (np.diff(time, prepend=time[0]) != 0)
    cuts = np.append(np.flatnonzero(new), num_rows)
    row = np.arange(num_rows)
    limit = np.minimum(row + slate, np.searchsorted(user, user, side="right"))
    fitting = cuts[np.searchsorted(cuts, limit, side="right") - 1]
    next_moment = cuts[np.searchsorted(cuts, row, side="right")]
    return chain(np.maximum(fitting, next_moment))


def _split(user: Index) -> dict[str, Index]:
    """Split requests ``[R]`` in log order: each user's last tenth test, the tenth before valid."""
    rows = np.argsort(user, kind="stable")
    starts = np.flatnonzero(np.diff(user[rows], prepend=-1))
    count = np.diff(np.append(starts, len(rows)))
    held = np.maximum(1, count // 10)
    test = np.minimum(held, count - 1)
    valid = np.minimum(held, count - 1 - test)
    from_end = np.repeat(starts + count, count) - np.arange(len(rows))
    is_test = from_end <= np.repeat(test, count)
    is_valid = ~is_test & (from_end <= np.repeat(test + valid, count))
    masks = {"train": ~(is_test | is_valid), "valid": is_valid, "test": is_test}
    return {name: np.sort(rows[mask]) for name, mask in masks.items()}
