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

from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather as pf
import pyarrow.parquet as pq

from prerank.adapters.files import Files, Text, bad_row, open_files
from prerank.adapters.grouped import Sides, write_grouped
from prerank.adapters.report import ImportReport
from prerank.errors import InputError, did_you_mean
from prerank.log.impressions import ColumnMap, HistoryRule, ImpressionMap
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
    progress: Callable[[int], None] | None = None,
) -> ImportReport:
    """Import RecFlow.

    Features: ids of user and video; age, gender, province; device, hour, weekday; author, both
    category levels, upload type and duration of the video, its age in days. Labels are known for
    shown videos only; engaged is ``effective_view``. ``rank.rank`` and ``rank.rerank`` are stored
    where the video reached that stage. Source ``coarse`` stands beside the usual ones. The rows of
    the chosen days must fit in memory. Split by time.

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
    read = [_read(text, first_rank) for text in _daily(files, folder, str(days))]
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
    )
    return write_grouped(
        out,
        pa.concat_tables(read),
        mapping,
        Sides(),
        made_by="import recflow",
        notes=_NOTES,
        counts={
            "days": len(read),
            "pickles_skipped": sum(_is_pickle(name) for name in files.names),
        },
        progress=progress,
    )


def _is_pickle(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix == ".pkl" and (len(path.parts) == 2 or path.name == "id_cnt.pkl")


def _daily(files: Files, folder: str, days: str) -> list[Text]:
    patterns = [f"{folder}/{days}.{kind}" for kind in _KINDS]
    texts = list(files.read_all(*patterns))
    seen: dict[str, str] = {}
    for text in texts:
        day = PurePosixPath(text.where).name.split(".", 1)[0]
        if day in seen:
            raise InputError(f"{text.where}: {seen[day]} holds that day already; remove one")
        seen[day] = text.where
    return texts


def _read(text: Text, first_rank: int) -> pa.Table:
    table = _parse(text)
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
    return pa.table(out).drop_columns(["upload_timestamp"])


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
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{text.where}: cannot be read: {reason}") from None
    columns = {}
    for name, kind in kinds.items():
        if name not in table.column_names:
            raise InputError(
                f"{text.where}: no column '{name}'; {did_you_mean(name, table.column_names)}"
            )
        try:
            columns[name] = _without_nan(table[name]).cast(kind)
        except pa.ArrowException:
            raise InputError(
                f"{text.where}: column '{name}' is {table[name].type}; expected integers"
            ) from None
        if columns[name].null_count and name not in _NULLABLE:
            row = int(np.flatnonzero(pc.is_null(columns[name]).to_numpy())[0])
            raise InputError(f"{text.where}: row {row + 1}: '{name}' is empty")
    if not table.num_rows:
        raise InputError(f"{text.where}: no records")
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
