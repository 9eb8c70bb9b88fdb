"""Open Bandit Data to a request log: impressions of a fashion shop with logged propensities.

Reads ``POLICY/CAMPAIGN/CAMPAIGN.csv`` and ``POLICY/CAMPAIGN/item_context.csv`` as published, or
``POLICY_CAMPAIGN_CAMPAIGN.csv`` and ``POLICY_CAMPAIGN_item_context.csv`` in one folder; policies
``random`` and ``bts`` (Bernoulli Thompson sampling), campaigns ``all``, ``men`` and ``women``. One
log is one policy in one campaign: item numbers of different campaigns are different items.

Y. Saito et al.: Open Bandit Dataset and Pipeline: Towards Realistic and Reproducible Off-Policy
Evaluation. NeurIPS Datasets and Benchmarks 2021.
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
from prerank.log.impressions import ColumnMap, ImpressionMap
from prerank.log.impressions.grouping import codes_of
from prerank.schema import Feature

__all__ = ["import_obd"]

POLICIES = ("random", "bts")
CAMPAIGNS = ("all", "men", "women")

_USER = tuple(f"user_feature_{k}" for k in range(4))
_ITEM = tuple(f"item_feature_{k}" for k in range(4))
_AFFINITY = "user-item_affinity_"
_NOTES = (
    "no user id was published: user is the combination of the four user features, a segment",
    "one row of the files is one shown item; rows of one moment and segment are one request",
    "candidates.propensity is the logging policy's probability of showing the item in its slot",
    "affinity is the published affinity of the user to the item that was shown",
)


def import_obd(
    src: str | Path,
    out: str | Path,
    *,
    policy: str = "random",
    campaign: str = "all",
    progress: Callable[[int], None] | None = None,
) -> ImportReport:
    """Import one policy of one campaign of Open Bandit Data.

    Features: ids of user segment and item, the four user features, the four item features (the
    first is a number), hour and weekday, the affinity to the shown item. ``rank.exposed`` is the
    slot (0, 1, 2), ``propensity`` as logged. Label ``click``, also engaged. Split by time.

    Parameters
    ----------
    src : path
        Folder or .zip with the files, each also as .gz, .zst or .zip.
    out : path
        Folder of the log.
    policy : {"random", "bts"}
        Who chose the items.
    campaign : {"all", "men", "women"}
        Part of the shop.
    progress : callable, optional
        Called with the number of requests just written.

    Returns
    -------
    ImportReport
        ``counts``: ``clicks``, ``impressions``, ``merged_impressions``, ``items_without_row``.

    Raises
    ------
    InputError
        A missing file or column, a line that cannot be read, a propensity outside (0, 1], an
        unknown policy or campaign, ``out`` exists.
    """
    for name, value, known in (("policy", policy, POLICIES), ("campaign", campaign, CAMPAIGNS)):
        if value not in known:
            raise InputError(f"obd: {name} is '{value}'; {did_you_mean(value, known)}")
    files = open_files(src)
    items = _read_items(files, policy, campaign)
    table = _read_log(
        files.read(
            f"{policy}_{campaign}_{campaign}.csv",
            f"{policy}/{campaign}/{campaign}.csv",
        ),
        items["item_id"],
    )
    mapping = ImpressionMap(
        request_id="request",
        user="user",
        item="item_id",
        time="time",
        labels={"click": "click"},
        features={
            "user": {name: ColumnMap(column=name) for name in _USER},
            "candidate": {"affinity": ColumnMap(column="affinity", kind="dense")},
        },
        derived=(
            Feature(name="hour", owner="context", kind="categorical", transforms=("hour",)),
            Feature(name="weekday", owner="context", kind="categorical", transforms=("weekday",)),
        ),
        position="position",
        first_position=1,
        propensity="propensity_score",
    )
    dense = Feature(name=_ITEM[0], owner="item", kind="dense", transforms=("standard",))
    named = [Feature(name=name, owner="item", kind="categorical") for name in _ITEM[1:]]
    return write_grouped(
        out,
        table,
        mapping,
        Sides(items=items, features=(dense, *named)),
        made_by=f"import obd {policy} {campaign}",
        notes=_NOTES,
        counts={"clicks": int(pc.sum(table["click"]).as_py())},
        progress=progress,
    )


def _read_items(files: Files, policy: str, campaign: str) -> pa.Table:
    text = files.read(
        f"{policy}_{campaign}_item_context.csv", f"{policy}/{campaign}/item_context.csv"
    )
    kinds = {"item_id": pa.int64(), _ITEM[0]: pa.float64()}
    table = text.named(kinds | dict.fromkeys(_ITEM[1:], pa.string()))
    codes = codes_of(table["item_id"].combine_chunks())
    again = np.setdiff1d(np.arange(len(codes)), np.unique(codes, return_index=True)[1])
    if len(again):
        raise bad_row(text, int(again[0]), "item_id stands on an earlier line", header=True)
    return table


def _read_log(text: Text, items: pa.ChunkedArray) -> pa.Table:
    affinity = [name for name in text.header().split(",") if name.startswith(_AFFINITY)]
    number, label = pa.float64(), pa.int64()
    kinds = {
        "timestamp": pa.timestamp("us", "UTC"),
        "item_id": label,
        "position": label,
        "click": label,
        "propensity_score": number,
    }
    table = text.named(
        kinds | dict.fromkeys(_USER, pa.string()) | dict.fromkeys(affinity, number)
    ).combine_chunks()
    propensity = table["propensity_score"]
    for bad, column, expected in (
        (
            pc.or_(pc.less_equal(propensity, 0), pc.greater(propensity, 1)),
            "propensity_score",
            "> 0",
        ),
        (pc.less(table["position"], 1), "position", "1 or more"),
        (pc.invert(pc.is_in(table["click"], value_set=pa.array([0, 1]))), "click", "0 or 1"),
        (pc.invert(pc.is_in(table["item_id"], value_set=items)), "item_id", "one of item_context"),
    ):
        rows = np.flatnonzero(bad.to_numpy())
        if len(rows):
            found = table[column][rows[0]]
            what = f"{column} is {found}; expected {expected}"
            raise bad_row(text, int(rows[0]), what, header=True)
    user = pc.binary_join_element_wise(
        *(pc.utf8_slice_codeunits(table[n], 0, 8) for n in _USER), "-"
    )
    time = pc.divide(table["timestamp"].cast(pa.int64()), 1000)
    moment = pc.binary_join_element_wise(user, table["timestamp"].cast(pa.string()), " ")
    return (
        table.drop_columns(["timestamp", *affinity])
        .append_column("user", user)
        .append_column("time", time)
        .append_column("request", pa.array(codes_of(moment.combine_chunks())))
        .append_column("affinity", _shown_affinity(table, affinity))
    )


def _shown_affinity(table: pa.Table, columns: list[str]) -> pa.Array:
    """Return the affinity of each row's user to each row's item ``[N]``; NaN without a column."""
    shown = table["item_id"].to_numpy()
    values = np.full(table.num_rows, np.nan)
    for name in columns:
        rows = np.flatnonzero(shown == int(name.removeprefix(_AFFINITY)))
        values[rows] = table[name].to_numpy()[rows]
    return pa.array(values)
