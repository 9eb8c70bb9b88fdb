"""Building a fitted funnel: models, shards, log; an interrupted build goes on where it was."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from prerank.errors import InputError
from prerank.funnel.alive import AliveItems
from prerank.funnel.channels import Channels
from prerank.funnel.config import FunnelConfig, Quotas
from prerank.funnel.exposures import Exposures, events_of, view_of
from prerank.funnel.plan import Plan, make_plan
from prerank.funnel.record import carried_splits, funnel_schema, make_record
from prerank.funnel.sampled import SampledPart
from prerank.funnel.scorers import Scorers
from prerank.funnel.serve import Server
from prerank.log import Columns, Log, write_log
from prerank.log.format.files import check_free, read_json, write_json
from prerank.log.format.raw import raw_items, raw_requests

__all__ = ["FunnelReport", "Progress", "build_funnel", "work_folder"]

Progress = Callable[[str, int, int], None]
"""Called with what is being done, steps done, and steps in all."""

_STATE = "funnel.json"


class FunnelReport(msgspec.Struct, frozen=True):
    """What was built.

    Parameters
    ----------
    num_requests, num_candidates, num_items : int
        Sizes of the log.
    counts : dict of str to int
        Candidates per stage and channel, and how far the real ones got by themselves.
    rates : dict of str to float
        Shares of the real items: found by a channel, within the quota of the pre-ranker, of the
        ranker, and of all of them (``would_survive``).
    record : dict
        What ``funnel.json`` of the log holds.
    """

    num_requests: int
    num_candidates: int
    num_items: int
    counts: dict[str, int]
    rates: dict[str, float]
    record: dict[str, Any]


def work_folder(out: str | Path) -> Path:
    """Return where an unfinished build keeps its models and shards: ``OUT.work``."""
    out = Path(out)
    return out.with_name(f"{out.name}.work")


def build_funnel(
    log: Log,
    out: str | Path,
    config: FunnelConfig | None = None,
    *,
    progress: Progress | None = None,
) -> FunnelReport:
    """Fit a logging cascade on the real interactions of a log and write what it would log.

    Every request of the new log keeps its user, time, history and real candidates; beside them
    stand the candidates that the fitted funnel brings, each with its channel, stage, ranks and
    scores. The real ones take the same path through the same code, only keeping them is forced.

    Parameters
    ----------
    log : Log
        Real exposures with labels.
    out : path
        Folder of the new log. ``OUT.work`` beside it holds models and shards until it is whole;
        called again with the same arguments, a build goes on there.
    config : FunnelConfig, optional
        Options.
    progress : callable, optional
        See :data:`Progress`.

    Raises
    ------
    InputError
        ``out`` exists, or ``OUT.work`` belongs to another build.
    """
    config = config or FunnelConfig()
    out = Path(out)
    check_free(out)
    say = progress or (lambda what, done, total: None)
    view = view_of(log)
    work = _open_work(work_folder(out), log, config)
    exposures = Exposures.read(
        view,
        max_history=config.max_history,
        progress=_adding(say, "reading", log.num_requests),
    )
    plan = make_plan(log, exposures, config)
    alive = AliveItems(view, exposures, plan, config.alive_hours)
    slate = len(exposures.item) / exposures.num_requests
    quotas = config.quotas or Quotas().scaled(_typical_alive(alive, plan), slate)
    exclude_seen = exposures.repeats < 0.01 if config.exclude_seen is None else config.exclude_seen
    servers = []
    for k in range(len(plan.stints)):
        say("fitting", k, len(plan.stints))
        channels, scorers = _fitted(view, exposures, plan, k, config, work)
        servers.append(
            Server(
                view,
                exposures,
                channels,
                scorers,
                config=config,
                quotas=quotas,
                exclude_seen=exclude_seen,
            )
        )
    say("fitting", len(plan.stints), len(plan.stints))
    shards = _write_shards(view, plan, servers, alive, config, work, say)
    counts = _sum_counts(shards)
    record = make_record(log, plan, config, quotas, alive, exclude_seen, counts)
    splits, rule = carried_splits(log, plan)
    served = int((plan.stint_of >= 0).sum())
    written = write_log(
        out,
        funnel_schema(view.schema, log, record["notes"], config.seed),
        (pq.read_table(shard) for shard in shards),
        raw_items(view),
        splits=splits,
        splits_rule=rule,
        extra={"funnel": record},
        progress=_adding(say, "writing", served),
    )
    shutil.rmtree(work)
    return FunnelReport(
        written.num_requests,
        written.num_candidates,
        written.num_items,
        dict(counts),
        record["rates"],
        record,
    )


def _adding(say: Progress, what: str, total: int) -> Callable[[int], None]:
    done = 0

    def add(number: int) -> None:
        nonlocal done
        done += number
        say(what, done, total)

    return add


class _State(msgspec.Struct, frozen=True):
    log_id: str
    revision: int
    config: dict[str, Any]


def _open_work(work: Path, log: Log, config: FunnelConfig) -> Path:
    lineage = log.schema.lineage
    mine = _State(
        lineage.log_id, lineage.revision, msgspec.json.decode(msgspec.json.encode(config))
    )
    if (work / _STATE).exists():
        if read_json(work / _STATE, _State) != mine:
            raise InputError(
                f"{work}: holds an unfinished build of another log or of other options; give the "
                "same ones again, or remove the folder"
            )
        return work
    try:
        (work / "shards").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{work}: cannot be created: {error.strerror or error}") from None
    write_json(mine, work / _STATE)
    return work


def _typical_alive(alive: AliveItems, plan: Plan) -> int:
    """Return how many items are alive at the first request that is served."""
    row = int(np.flatnonzero(plan.stint_of >= 0)[0])
    return int(alive.at(row, int(plan.stint_of[row])).sum())


def _fitted(
    log: Log, exposures: Exposures, plan: Plan, k: int, config: FunnelConfig, work: Path
) -> tuple[Channels, Scorers]:
    stint = plan.stints[k]
    path = work / f"{stint.name}-channels.safetensors"
    num_items = log.schema.size("item")
    if path.exists():
        channels = Channels.load(path)
    else:
        user, item = events_of(exposures, stint.rows)
        channels = Channels.fit(
            user,
            item,
            num_items=num_items,
            neighbours=config.neighbours,
            dim=config.dim,
            seed=config.seed * 1000 + k,
        )
        temporary = path.with_suffix(".partial")
        channels.save(temporary)
        temporary.rename(path)
    chosen = np.zeros(exposures.num_requests, dtype=np.bool_)
    chosen[stint.rows] = True
    shown = exposures.item[np.repeat(chosen, np.diff(exposures.offsets))]
    part = SampledPart(
        log,
        stint.rows,
        stint.name,
        popularity=np.bincount(shown, minlength=num_items).astype(np.float32),
        num_negatives=config.num_negatives,
        seed=config.seed * 1000 + k,
    )
    return channels, Scorers.fit(log, part, config, work)


def _chunks(log: Log, plan: Plan, size: int) -> Iterator[tuple[pa.Table, Columns]]:
    """Yield the raw and the encoded form of up to ``size`` requests that are to be served."""
    for raw, columns in zip(raw_requests(log), log.read(range(log.num_groups)), strict=True):
        local = np.flatnonzero(plan.stint_of[columns.scalars["row"]] >= 0)
        kept = [n for n in raw.column_names if not n.startswith(("candidates.", "labels."))]
        request_side = raw.select(kept)
        for start in range(0, len(local), size):
            rows = local[start : start + size]
            yield request_side.take(pa.array(rows)), columns.take(rows)


def _write_shards(
    log: Log,
    plan: Plan,
    servers: list[Server],
    alive: AliveItems,
    config: FunnelConfig,
    work: Path,
    say: Progress,
) -> list[Path]:
    """Serve what is not yet on disk; returns all shards in order."""
    total = int((plan.stint_of >= 0).sum())
    first_part = np.zeros(log.num_requests, dtype=np.bool_)
    if log.parts:
        first_part[log[log.parts[0]].rows.within(0, log.num_requests)] = True
    shards: list[Path] = []
    done = 0
    for raw, columns in _chunks(log, plan, config.rows_per_shard):
        path = work / "shards" / f"{len(shards):06d}.parquet"
        shards.append(path)
        if not path.exists():
            rows = columns.scalars["row"]
            tables: list[pa.Table] = []
            places: list[npt.NDArray[np.int64]] = []
            counts: Counter[str] = Counter()
            for k in np.unique(plan.stint_of[rows]):
                mine = np.flatnonzero(plan.stint_of[rows] == k)
                living = alive.at(int(rows[mine[0]]), int(k))
                table, found = servers[k].serve(columns.take(mine), living, ~first_part[rows[mine]])
                tables.append(table)
                places.append(mine)
                counts += found
            back = np.argsort(np.concatenate(places))
            table = pa.concat_tables(tables, promote_options="none").take(pa.array(back))
            _save_shard(_side_by_side(raw, table), counts, path)
        done += columns.num_requests
        say("serving", done, total)
    return shards


def _side_by_side(left: pa.Table, right: pa.Table) -> pa.Table:
    return pa.table({name: t[name] for t in (left, right) for name in t.column_names})


def _save_shard(table: pa.Table, counts: Counter[str], path: Path) -> None:
    metadata = {b"counts": msgspec.json.encode(dict(counts))}
    temporary = path.with_suffix(".partial")
    pq.write_table(table.replace_schema_metadata(metadata), temporary, compression="zstd")
    temporary.rename(path)


def _sum_counts(shards: list[Path]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for shard in shards:
        stored = pq.read_schema(shard).metadata[b"counts"]
        for name, count in msgspec.json.decode(stored, type=dict[str, int]).items():
            counts[name] += count
    return counts
