"""What the new log says of itself: its schema, its parts, and ``funnel.json``."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from prerank.config import to_values
from prerank.funnel.alive import AliveItems
from prerank.funnel.config import CHANNELS, FunnelConfig, Quotas
from prerank.funnel.plan import Plan
from prerank.funnel.serve import SCORES
from prerank.funnel.stages import STAGES
from prerank.log import Log
from prerank.log.split import load_splits
from prerank.schema import Schema

__all__ = ["carried_splits", "funnel_schema", "make_record"]

_SOURCES = {
    "random": ("pool",),
    "prerank": ("retrieval",),
    "rank": ("prerank", "rank"),
    "exposed": ("exposed",),
}


def carried_splits(log: Log, plan: Plan) -> tuple[dict[str, npt.NDArray[np.int64]] | None, str]:
    """Return the parts of the source log in rows of the new one."""
    rule = load_splits(log.path).rule
    if not log.parts:
        return None, rule
    served = np.flatnonzero(plan.stint_of >= 0)
    splits = {}
    for name in log.parts:
        rows = log[name].rows.within(0, log.num_requests)
        splits[name] = np.flatnonzero(np.isin(served, rows))
    clock = "user by user" if plan.clock == "user" else "by time"
    return splits, f"{clock}, as in the source log ({rule})"


def funnel_schema(source: Schema, log: Log, notes: list[str], seed: int) -> Schema:
    """Return the schema of the new log; vocabularies are empty, the writer fills them."""
    lineage = msgspec.structs.replace(
        source.lineage,
        log_id="",
        revision=0,
        made_by="fitted funnel",
        parent=log.schema.lineage.log_id,
        seed=seed,
        notes=(*source.lineage.notes, *notes),
    )
    return msgspec.structs.replace(
        source,
        stages=STAGES,
        sources=_SOURCES,
        channels=CHANNELS,
        ranks=("retrieval", "prerank", "rank"),
        scores=SCORES,
        has_sample_prob=True,
        has_scored_online=True,
        vocabularies={},
        lineage=lineage,
    )


def make_record(
    log: Log,
    plan: Plan,
    config: FunnelConfig,
    quotas: Quotas,
    alive: AliveItems,
    exclude_seen: bool,
    counts: Counter[str],
) -> dict[str, Any]:
    """Return the content of ``funnel.json``: models, seeds, quotas, fitting ranges, counts."""
    real = max(counts["real"], 1)
    rates = {
        "found": counts["real_found"] / real,
        "within_prerank": counts["real_within_prerank"] / real,
        "within_rank": counts["real_within_rank"] / real,
        "would_survive": counts["real_would_survive"] / real,
    }
    gone = [f.column for f in log.schema.features if f.owner == "candidate" and f.stored]
    gone += [f"candidates.rank.{name}" for name in log.schema.ranks]
    gone += [f"candidates.score.{name}" for name in log.schema.scores]
    notes = [
        "fitted funnel: candidates that were not exposed come from models fitted on real "
        "interactions, not from a deployed system",
        f"items are alive when {alive.rule}",
        "candidates.rank.retrieval: by candidates.score.retrieval, the weighted reciprocal rank "
        "fusion of the channels' orders of all items alive; real items that no channel returned "
        "have their place by the same formula, items of the pool have the score and no rank",
        "candidates.score.would_survive: 1 where a channel found the item and its own ranks were "
        "within the quotas; real items are kept whatever it says",
    ]
    values = msgspec.json.decode(msgspec.json.encode(to_values(config)))
    digest = hashlib.sha256(msgspec.json.encode(values)).hexdigest()[:16]
    return {
        "what": "fitted funnel",
        "source": {"log_id": log.schema.lineage.log_id, "made_by": log.schema.lineage.made_by},
        "clock": plan.clock,
        "models": {"retrieval": list(CHANNELS), "prerank": "two_tower", "rank": "din"},
        "seed": config.seed,
        "config": values,
        "config_digest": digest,
        "quotas": to_values(quotas),
        "exclude_seen": exclude_seen,
        "alive": alive.rule,
        "fits": [{"name": stint.name, **stint.record} for stint in plan.stints],
        "counts": dict(sorted(counts.items())),
        "rates": rates,
        "left_out": gone,
        "notes": notes,
    }
