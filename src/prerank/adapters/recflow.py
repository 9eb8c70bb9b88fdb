"""RecFlow to a request log: candidates of every stage of Kuaishou's cascade.

Reads the daily files of ``all_stage/`` (or of ``realshow/``, exposures only), as .feather, .parquet
or .csv, one row per request and video.

Q. Liu et al.: RecFlow: An Industrial Full Flow Recommendation Dataset. ICLR 2025, arXiv 2410.20868.

Written to the published field list; the real files were not seen. ``seq_effective_50_dict``,
``request_id_dict``, ``ubm_seq_request_id_dict`` and ``id_cnt`` are published as pickles, which can
run code when they are read: they are skipped. Nothing is lost by the two request dictionaries,
whose content is that of ``all_stage``; in place of the published sequences, histories are made from
the effective views of earlier requests in the files given. ``others/`` is derived and not read.

A candidate's stage is the deepest list it was kept in, by the flags of its row:

======================  =========================================  ============
flag                    what the publisher says                    stage here
======================  =========================================  ============
``realshow``            shown                                      ``exposed``
``rerank_pos``          in the top 10 of re-ranking                ``rerank``
``rerank_neg``          not in the top 10 of re-ranking            ``rank``
``rank_pos``            in the top 10 of ranking                   ``rank``
``rank_neg``            not in the top 10 of ranking               ``coarse``
``coarse_neg``          not in the top 500 of coarse ranking       ``prerank``
``prerank_neg``         not in the top 500 of pre-ranking          ``retrieval``
======================  =========================================  ============
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pds
import pyarrow.feather as pf
import pyarrow.parquet as pq

from prerank.adapters.files import Files, Text, bad_row, open_files
from prerank.adapters.grouped import Sides, write_grouped
from prerank.adapters.report import ImportReport
from prerank.errors import InputError, did_you_mean
from prerank.log import open_log, split_log
from prerank.log.impressions import ColumnMap, HistoryRule, ImpressionMap, from_impressions
from prerank.log.impressions.source import BatchSource
from prerank.schema import Feature

__all__ = ["SOURCES", "STAGES", "import_recflow"]

STAGES = ("pool", "retrieval", "prerank", "coarse", "rank", "rerank", "exposed")
SOURCES = {
    "random": ("pool",),
    "prerank": ("retrieval",),
    "coarse": ("prerank",),
    "rank": ("coarse", "rank", "rerank"),
    "exposed": ("exposed",),
}
_FLAGS = {  # the later one wins
    "prerank_neg": "retrieval",
    "coarse_neg": "prerank",
    "rank_neg": "coarse",
    "rank_pos": "rank",
    "rerank_neg": "rank",
    "rerank_pos": "rerank",
    "realshow": "exposed",
}
_RANKS = {
    "rank": ("rank_index", ("rank_neg", "rank_pos", "rerank_neg", "rerank_pos", "realshow")),
    "rerank": ("rerank_index", ("rerank_neg", "rerank_pos", "realshow")),
}
_LABELS = (
    "effective_view",
    "long_view",
    "like",
    "follow",
    "forward",
    "comment",
    "playing_time",
)
_USER = ("age", "gender", "province")
_ITEM = ("author_id", "category_level_one", "category_level_two", "upload_type")
_COLUMNS = (
    *("request_id", "request_timestamp", "user_id", "device_id", *_USER),
    *("video_id", *_ITEM, "upload_timestamp", "duration"),
    *(*_FLAGS, *(column for column, _ in _RANKS.values()), *_LABELS),
)
_NULLABLE = (*(column for column, _ in _RANKS.values()), *_LABELS)
_PASSED = tuple(n for n in _COLUMNS if n not in (*_FLAGS, *_NULLABLE, "upload_timestamp"))
_SCHEMA = pa.schema(
    [
        *((name, pa.int64()) for name in _PASSED),
        ("stage", pa.string()),
        *((column, pa.float64()) for column, _ in _RANKS.values()),
        *((name, pa.float64()) for name in _LABELS),
        ("uploaded_ms", pa.float64()),
    ]
)
_KINDS = ("feather", "parquet", "csv")
_NOTES = (
    "written to the published field list; the real files were not seen",
    "pickles (seq_effective_50_dict, request_id_dict, ubm_seq_request_id_dict, id_cnt) are never "
    "read; histories are effective views of earlier requests in the files given",
    "upload_timestamp is taken as seconds",
    "hour and weekday are UTC; the app's clock is UTC+8",
)


def import_recflow(
    src: str | Path,
    out: str | Path,
    *,
    folder: str = "all_stage",
    days: object = "*",
    first_rank: int = 0,
    max_history: int = 50,
    memory_limit: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> ImportReport:
    """Import RecFlow.

    Features: ids of user and video; age, gender, province; device, hour, weekday; author, both
    category levels, upload type and duration of the video, its age in days. Labels are known for
    shown videos only; engaged is ``effective_view``. ``rank.rank`` and ``rank.rerank`` are stored
    where the video reached that stage. Source ``coarse`` stands beside the usual ones. Split by
    time.

    Parameters
    ----------
    src : path
        Folder or .zip that holds the folder of daily files.
    out : path
        Folder of the log.
    folder : {"all_stage", "realshow"}
        Candidates of all stages, or exposures only.
    days : str or date
        A day, or a shell pattern of days (``2024-02-1*``).
    first_rank : int
        What the published rank columns count from; the field list does not say.
    max_history : int
        Most recent effective views in a history.
    memory_limit : str, optional
        Sort the rows on disk with about this much memory (``8GB``) instead of loading all days;
        needs the extra ``frames``, and plain .feather or .parquet files in a folder to be of use.
    progress : callable, optional
        Called with the number of requests just written.

    Returns
    -------
    ImportReport
        ``counts``: ``days``, ``pickles_skipped``, ``impressions`` (rows), ``merged_impressions``.

    Raises
    ------
    InputError
        A missing file or column, a row without any flag, a rank below ``first_rank``, ``out``
        exists.
    """
    if folder not in ("all_stage", "realshow"):
        raise InputError(
            f"recflow: folder is '{folder}'; {did_you_mean(folder, ('all_stage', 'realshow'))}"
        )
    if max_history < 1:
        raise InputError(f"recflow: max_history is {max_history}; expected 1 or more")
    files = open_files(src)
    found = _daily(files, folder, str(days))
    mapping = ImpressionMap(
        request_id="request_id",
        user="user_id",
        item="video_id",
        time="request_timestamp",
        labels={name: name for name in _LABELS},
        engaged="effective_view",
        features={
            "user": {name: ColumnMap(column=name) for name in _USER},
            "context": {"device": ColumnMap(column="device_id")},
            "item": {
                **{name: ColumnMap(column=name) for name in _ITEM},
                "duration": ColumnMap(
                    column="duration", kind="dense", transforms=("log1p", "standard")
                ),
                "uploaded_ms": ColumnMap(column="uploaded_ms", kind="dense"),
            },
        },
        derived=(
            Feature(name="hour", owner="context", kind="categorical", transforms=("hour",)),
            Feature(name="weekday", owner="context", kind="categorical", transforms=("weekday",)),
            Feature(
                name="age_days",
                owner="candidate",
                kind="dense",
                transforms=("age_of", "log1p", "standard"),
                of="uploaded_ms",
            ),
        ),
        stage="stage",
        stages=STAGES,
        sources=SOURCES,
        ranks={stage: column for stage, (column, _) in _RANKS.items()},
        history={"viewed": HistoryRule(where="effective_view", max_len=int(max_history))},
        notes=_NOTES,
    )
    counts = {"days": len(found), "pickles_skipped": sum(map(_is_pickle, files.names))}
    if memory_limit is not None:
        return _from_disk(files, found, first_rank, mapping, out, memory_limit, counts, progress)
    return write_grouped(
        out,
        pa.concat_tables(_derived(_parse(text), text, first_rank) for text in _texts(files, found)),
        mapping,
        Sides(),
        made_by="import recflow",
        notes=_NOTES,
        counts=counts,
        progress=progress,
    )


def _from_disk(
    files: Files,
    names: list[str],
    first_rank: int,
    mapping: ImpressionMap,
    out: str | Path,
    memory_limit: str,
    counts: dict[str, int],
    progress: Callable[[int], None] | None,
) -> ImportReport:
    def batches() -> Iterator[Any]:
        for name in names:
            for table, text in _pieces(files, name):
                yield from _derived(table, text, first_rank).combine_chunks().to_batches()

    source = BatchSource(str(files.path), _SCHEMA, batches)
    report = from_impressions(
        source,
        mapping,
        out,
        memory_limit=memory_limit,
        made_by="import recflow",
        progress=progress,
    )
    parts = split_log(open_log(out))
    shown = {"impressions": report.num_rows, "merged_impressions": report.num_merged}
    return ImportReport(
        num_requests=report.num_requests,
        num_candidates=report.num_candidates,
        num_users=report.num_users,
        num_items=report.num_items,
        parts=parts,
        counts=counts | shown,
        notes=_NOTES,
    )


def _pieces(files: Files, name: str) -> Iterator[tuple[pa.Table, Text]]:
    """Yield the rows of one day in pieces, if the file can be read so, with what to call them."""
    kind = {".feather": "ipc", ".parquet": "parquet"}.get(PurePosixPath(name).suffix)
    if files.archive is not None or kind is None:
        (text,) = files.read_all(name)
        yield _parse(text), text
        return
    text = Text(f"{files.path}/{name}", b"")
    row = 0
    try:
        found = pds.dataset(str(files.path / name), format=kind)
        for batch in found.to_batches(batch_size=1 << 18, batch_readahead=1, fragment_readahead=1):
            yield _checked(pa.Table.from_batches([batch]), text, row), text
            row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(text, error) from None
    if not row:
        raise InputError(f"{text.where}: no records")


def _is_pickle(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix == ".pkl" and (len(path.parts) == 2 or path.name == "id_cnt.pkl")


def _daily(files: Files, folder: str, days: str) -> list[str]:
    """Return the names of the daily files, one per day."""
    found = files.find_all(*(f"{folder}/{days}.{kind}" for kind in _KINDS))
    seen: dict[str, str] = {}
    for name in found:
        day = PurePosixPath(name).name.split(".", 1)[0]
        if day in seen:
            raise InputError(f"{files.path}/{name}: {seen[day]} holds that day already; remove one")
        seen[day] = name
    return found


def _texts(files: Files, names: list[str]) -> Iterator[Text]:
    for name in names:
        yield from files.read_all(name)


def _derived(table: pa.Table, text: Text, first_rank: int) -> pa.Table:
    """Return the columns that the map reads, from those that are published."""
    flags = {name: table[name].to_numpy() == 1 for name in _FLAGS}
    stage = np.full(table.num_rows, -1)
    for name, word in _FLAGS.items():
        stage[flags[name]] = STAGES.index(word)
    _refuse(text, stage < 0, f"none of {', '.join(_FLAGS)} is 1")
    out = {name: table[name] for name in _COLUMNS if name not in _FLAGS}
    out["stage"] = pa.array(STAGES).take(pa.array(stage))
    for column, reached in _RANKS.values():
        scored = np.logical_or.reduce([flags[name] for name in reached])
        rank = table[column].to_numpy() - first_rank
        what = f"{column} is below {first_rank} where the stage ordered the video (first_rank)"
        _refuse(text, scored & (rank < 0), what)
        out[column] = pa.array(rank, mask=~scored | np.isnan(rank))
    for name in _LABELS:
        label = table[name].to_numpy()
        out[name] = pa.array(label, mask=~flags["realshow"] | np.isnan(label))
    uploaded = table["upload_timestamp"].to_numpy()
    out["uploaded_ms"] = pa.array(uploaded * 1000.0, mask=uploaded <= 0)
    del out["upload_timestamp"]
    return pa.table(out).select(_SCHEMA.names).cast(_SCHEMA)


def _parse(text: Text) -> pa.Table:
    """Read the published columns as int64, whatever the file's kind."""
    kinds = dict.fromkeys(_COLUMNS, pa.int64())
    path = text.where
    for packing in (".gz", ".zst", ".zip"):
        path = path.removesuffix(packing)
    if path.endswith(".csv"):
        return text.named(kinds, nullable=_NULLABLE).combine_chunks()
    try:
        source = pa.BufferReader(text.data)
        table = pf.read_table(source) if path.endswith(".feather") else pq.read_table(source)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(text, error) from None
    if not table.num_rows:
        raise InputError(f"{text.where}: no records")
    return _checked(table, text, 0)


def _unreadable(text: Text, error: Exception) -> InputError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return InputError(f"{text.where}: cannot be read: {reason}")


def _checked(table: pa.Table, text: Text, row: int) -> pa.Table:
    """Return the published columns as int64; ``row`` is the number of the first one."""
    columns = {}
    for name in _COLUMNS:
        if name not in table.column_names:
            raise InputError(
                f"{text.where}: no column '{name}'; {did_you_mean(name, table.column_names)}"
            )
        try:
            columns[name] = _without_nan(table[name]).cast(pa.int64())
        except pa.ArrowException:
            raise InputError(
                f"{text.where}: column '{name}' is {table[name].type}; expected integers"
            ) from None
        if columns[name].null_count and name not in _NULLABLE:
            row += int(np.flatnonzero(pc.is_null(columns[name]).to_numpy())[0])
            raise InputError(f"{text.where}: row {row + 1}: '{name}' is empty")
    return pa.table(columns).combine_chunks()


def _without_nan(values: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pa.types.is_floating(values.type):
        return values
    return pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)


def _refuse(text: Text, bad: npt.NDArray[np.bool_], reason: str) -> None:
    rows = np.flatnonzero(bad)
    if not len(rows):
        return
    if ".csv" in PurePosixPath(text.where).suffixes:
        raise bad_row(text, int(rows[0]), reason, header=True)
    raise InputError(f"{text.where}: row {rows[0] + 1}: {reason}")
