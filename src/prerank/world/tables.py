"""From arrays to the raw tables of a request log: its schema, its items, its requests.

Features are what a logging system could know before the request: ids and categories are exact,
``type`` and ``quality`` are partly missing, ``quality`` and ``retrieval_score`` are the truth plus
noise, ``activity`` is the number of clicks before the log starts. None looks at the outcome.

Shapes: ``B`` requests of a block, ``K`` candidate slots, ``L`` history slots.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from prerank.schema import Feature, Label, Lineage, Schema, Task
from prerank.world.config import CHANNELS, WorldConfig
from prerank.world.draws import Bools, Floats, Ints
from prerank.world.funnel import STAGES, Outcome
from prerank.world.population import Items, Users
from prerank.world.schedule import Schedule

__all__ = ["FIRST_ITEM", "FIRST_USER", "STREAM", "items_table", "requests_table", "world_schema"]

FIRST_ITEM = 1_000_000
FIRST_USER = 5_000_000
"""Raw ids start here, so that a raw id taken for an index fails at once."""
STREAM = "click"
_DEVICES = ("phone", "tablet", "desktop")


def world_schema(config: WorldConfig) -> Schema:
    """Return the schema of a world's log; its vocabularies are empty, the writer fills them."""
    categories = ("item", "cluster", "subcluster", "style", "creator")
    features = [
        Feature(name="user", owner="user", kind="categorical"),
        Feature(name="type", owner="user", kind="categorical"),
        Feature(name="activity", owner="user", kind="dense", transforms=("log1p", "standard")),
        Feature(name="hour", owner="context", kind="categorical", transforms=("hour",)),
        Feature(name="device", owner="context", kind="categorical"),
        *(Feature(name=name, owner="item", kind="categorical") for name in categories),
        Feature(name="quality", owner="item", kind="dense", transforms=("standard",)),
        Feature(name="published", owner="item", kind="dense", transforms=("standard",)),
        Feature(
            name="age",
            owner="candidate",
            kind="dense",
            transforms=("age_of", "log1p", "standard"),
            of="published",
        ),
    ]
    if config.retrieval_score:
        features.append(
            Feature(
                name="retrieval_score", owner="candidate", kind="dense", transforms=("standard",)
            )
        )
    tasks: tuple[Task, ...] = ()
    if config.long_watch_ms:
        long = f"watch_ms >= {config.long_watch_ms}"
        tasks = (Task(name="click", positive="click"), Task(name="long", positive=long))
    return Schema(
        features=tuple(features),
        streams=(STREAM,),
        stages=STAGES,
        channels=CHANNELS,
        labels=(Label(name="click"), Label(name="watch_ms")),
        tasks=tasks,
        engaged="click",
        ranks=("prerank", "rank", "exposed"),
        scores=("ranker",),
        has_sample_prob=config.num_pool > 0,
        has_scored_online=True,
        lineage=Lineage(made_by="world", seed=config.seed),
    )


def items_table(items: Items) -> pa.Table:
    """Return the raw items, one row per item."""
    observed = items.observed_quality
    return pa.table(
        {
            "item_id": FIRST_ITEM + np.arange(items.sub.size),
            "cluster": items.cluster,
            "subcluster": items.sub,
            "style": items.style,
            "creator": items.creator,
            "quality": pa.array(observed.astype(np.float32), mask=np.isnan(observed)),
            "published": items.published.astype(np.float64),
        }
    )


def requests_table(
    config: WorldConfig,
    users: Users,
    schedule: Schedule,
    rows: Ints,
    *,
    history: tuple[Ints, Ints],
    outcome: Outcome,
) -> pa.Table:
    """Return the raw requests of a block.

    Parameters
    ----------
    config : WorldConfig
        Decides about optional columns.
    users, schedule : Users, Schedule
        The world's users and requests.
    rows : ndarray ``[B]`` int64
        The block.
    history : tuple of two ndarray ``[B, L]`` int64
        Clicked items and times, -1 where missing, oldest first.
    outcome : Outcome
        What the funnel did.
    """
    user = schedule.user[rows]
    columns: dict[str, Any] = {
        "request_id": rows,
        "user": FIRST_USER + user,
        "time": schedule.time[rows],
        "type": pa.array(users.kind[user], mask=~users.known_kind[user]),
        "activity": users.num_warm[user].astype(np.float32),
        "device": pa.array([_device(code) for code in schedule.device[rows]]),
    }
    past = history[0] >= 0
    columns[f"history.{STREAM}.item"] = _lists(past, FIRST_ITEM + history[0])
    columns[f"history.{STREAM}.time"] = _lists(past, history[1])

    there = outcome.item >= 0
    columns["candidates.item"] = _lists(there, FIRST_ITEM + outcome.item)
    columns["candidates.stage"] = _lists(there, outcome.stage, STAGES)
    columns["candidates.channel"] = _lists(there, outcome.channel, CHANNELS)
    for stage, rank in outcome.ranks.items():
        columns[f"candidates.rank.{stage}"] = _lists(there, rank.astype(np.int32), null=rank < 0)
    columns["candidates.score.ranker"] = _floats(there, outcome.ranker)
    columns["candidates.scored_online"] = _lists(there, outcome.online)
    if config.num_pool:
        columns["candidates.sample_prob"] = _floats(there, outcome.sample_prob)
    if config.retrieval_score:
        columns["candidates.retrieval_score"] = _floats(there, outcome.retrieval_score)
    columns["labels.click"] = _floats(there, outcome.click)
    columns["labels.watch_ms"] = _floats(there, outcome.watch_ms)
    return pa.table(columns)


def _device(code: int) -> str:
    return _DEVICES[code] if code < len(_DEVICES) else f"device{code}"


def _floats(there: Bools, values: Floats) -> pa.ListArray:
    """Return lists of float32; NaN becomes null."""
    return _lists(there, values.astype(np.float32), null=np.isnan(values))


def _lists(
    there: Bools,
    values: np.ndarray[Any, Any],
    names: tuple[str, ...] = (),
    *,
    null: Bools | None = None,
) -> pa.ListArray:
    """Return the values of the filled slots ``[B, K]`` as one list per row.

    With ``names``, values are codes of them; negative codes become null.
    """
    offsets = np.concatenate(([0], np.cumsum(there.sum(axis=1)))).astype(np.int32)
    flat = values[there]
    if names:
        codes = pa.array(flat, mask=flat < 0)
        return pa.ListArray.from_arrays(offsets, pa.array(names).take(codes))
    mask = None if null is None else null[there]
    return pa.ListArray.from_arrays(offsets, pa.array(flat, mask=mask))
