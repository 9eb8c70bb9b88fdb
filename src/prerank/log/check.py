"""Checking a whole request log: collects what is wrong or odd instead of stopping at the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
import numpy as np
import pyarrow.parquet as pq

from prerank.errors import InputError
from prerank.log.feature_tally import FeatureTally
from prerank.log.format.columns import Columns, first_bad_row, goes_back
from prerank.log.format.decode import open_part
from prerank.log.format.files import (
    COLUMNS,
    DAMAGED,
    ITEM_STATS,
    ITEMS,
    MANIFEST,
    REQUESTS,
    SCHEMA,
    SPLITS,
    VOCAB,
    Manifest,
    check_size,
    digest,
    log_id_of,
    read_json,
)
from prerank.log.format.layout import request_columns
from prerank.log.log import Log
from prerank.log.split import RowRanges, Splits, check_parts, load_splits
from prerank.log.tally import Tally
from prerank.schema import Schema

__all__ = ["CheckReport", "Finding", "check_log"]

Level = Literal["error", "warning"]
T = TypeVar("T")
_CHANGED = "its SHA-256 is not the one of the manifest: the file was changed or damaged"


class Finding(msgspec.Struct, frozen=True):
    """Something wrong (``error``) or odd (``warning``) and the file it is in."""

    level: Level
    where: str
    message: str


class CheckReport(msgspec.Struct, frozen=True):
    """Outcome of a check: ``ok`` when no finding is an error.

    Parameters
    ----------
    ok : bool
        Whether the log can be trusted.
    findings : list of Finding
        In the order in which the log was read.
    counts : dict of str to int or float
        Sizes and rates; ``stage:NAME``, ``source:NAME``, ``label:NAME:observed``,
        ``part:NAME:requests``, ``part:NAME:cold_users`` (share of its users not in the first
        part), ``null_rate:OWNER.FEATURE`` and more.
    """

    ok: bool
    findings: list[Finding]
    counts: dict[str, int | float]


def check_log(
    log: str | Path | Log,
    *,
    deep: bool = True,
    progress: Callable[[int], None] | None = None,
) -> CheckReport:
    """Read a whole log, one row group at a time, and report what is wrong or odd.

    Parameters
    ----------
    log : path or Log
        The log; read anew from disk.
    deep : bool
        Also compare the SHA-256 of every file.
    progress : callable, optional
        Called with the number of requests just read.

    Raises
    ------
    InputError
        There is no such folder. A folder without a readable log gives a report that says so.

    Examples
    --------
    >>> import tempfile
    >>> report = check_log(tempfile.mkdtemp())
    >>> report.ok, report.findings[0].where
    (False, 'manifest.json')
    """
    path = log.path if isinstance(log, Log) else Path(log)
    if not path.is_dir():
        raise InputError(f"{path}: no such log; expected a folder with {SCHEMA}")
    check = _Check(path, deep, progress or (lambda num_requests: None))
    check.run()
    findings = list(dict.fromkeys(check.findings))
    return CheckReport(all(f.level != "error" for f in findings), findings, check.counts)


class _Check:
    def __init__(self, path: Path, deep: bool, progress: Callable[[int], None]) -> None:
        self.path = path
        self.deep = deep
        self.progress = progress
        self.findings: list[Finding] = []
        self.counts: dict[str, int | float] = {}
        self.last_time: int | None = None

    def error(self, where: str, message: str) -> None:
        self.findings.append(Finding("error", where, message))

    def attempt(self, where: str, action: Callable[[], T]) -> T | None:
        """Run an action; what it raises about the log becomes a finding."""
        try:
            return action()
        except InputError as error:
            self.error(where, self.strip(where, error))
        except OSError as error:
            self.error(where, f"cannot be read: {error.strerror or error}")
        return None

    def strip(self, where: str, error: InputError) -> str:
        """Return an error without the path that the finding names already."""
        return str(error).removeprefix(f"{self.path / where}: ").removeprefix(f"{self.path}: ")

    def run(self) -> None:
        manifest = self.attempt(MANIFEST, lambda: read_json(self.path / MANIFEST, Manifest))
        schema = self.attempt(SCHEMA, lambda: read_json(self.path / SCHEMA, Schema))
        if manifest is not None:
            self.files(manifest)
        if manifest is not None and schema is not None:
            if manifest.log_id != schema.lineage.log_id or manifest.content != log_id_of(
                manifest.files
            ):
                self.error(MANIFEST, f"'log_id' does not name these files; {DAMAGED}")
            log = self.attempt(MANIFEST, lambda: Log(self.path, verify=False))
            if log is not None:
                self.contents(log)

    def files(self, manifest: Manifest) -> None:
        for name, entry in manifest.files.items():
            path = self.path / name
            before = len(self.findings)
            if not (self.deep and name.endswith(".json") and path.is_file()):
                self.attempt(name, lambda path=path, entry=entry: check_size(path, entry))  # type: ignore[misc]
            if self.deep and len(self.findings) == before:
                found = self.attempt(name, lambda path=path: digest(path))  # type: ignore[misc]
                if found not in (None, entry.sha256):
                    self.error(name, f"{_CHANGED}; restore the file or write the log again")
        for folder in (REQUESTS, VOCAB, COLUMNS, ITEM_STATS):
            for path in sorted((self.path / folder).rglob("*.parquet")):
                name = str(path.relative_to(self.path))
                if name not in manifest.files:
                    self.findings.append(
                        Finding("warning", name, f"not in {MANIFEST}; readers ignore the file")
                    )
        for key, count in manifest.counts.items():
            if key.startswith("not_finite:"):
                column = key.removeprefix("not_finite:")
                message = f"{count} values of '{column}' were not finite; stored as missing"
                self.findings.append(Finding("warning", MANIFEST, message))
        self.counts |= {
            "requests": manifest.num_requests,
            "candidates": manifest.num_candidates,
            "files": len(manifest.files),
            "bytes": sum(entry.bytes for entry in manifest.files.values()),
        }

    def parts(self, log: Log) -> tuple[str, dict[str, RowRanges]]:
        splits = self.attempt(SPLITS, lambda: load_splits(self.path)) or Splits("unknown", {})
        parts = {name: RowRanges(np.array(p, np.int64)) for name, p in splits.parts.items()}
        before = len(self.findings)
        self.attempt(SPLITS, lambda: check_parts(parts, log.num_requests, str(self.path / SPLITS)))
        return splits.rule, parts if len(self.findings) == before else {}

    def contents(self, log: Log) -> None:
        rule, parts = self.parts(log)
        for name in log.schema.vocabularies:
            if name != "item":
                self.attempt(f"{VOCAB}/{name}.parquet", lambda name=name: log.vocabulary(name))  # type: ignore[misc]
        items = self.attempt(ITEMS, lambda: log.items)
        self.side_columns(log)
        tally = Tally(log.schema, parts, rule)
        features = FeatureTally(log.schema, items)
        num_bad = 0
        for group, columns in self.groups(log):
            name, index = log._groups[group]
            if columns is None:
                num_bad += 1
                continue
            for message in self.rows(columns):
                self.error(name, f"row group {index}: {message}")
            features.add(columns, tally.add(columns))
        counts = tally.counts()
        if not num_bad and counts["candidates"] != log.manifest.num_candidates:
            self.error(
                MANIFEST,
                f"'num_candidates' is {log.manifest.num_candidates}, but the parts hold "
                f"{counts['candidates']}; {DAMAGED}",
            )
        self.counts |= {"row_groups": log.num_groups, "row_groups_unreadable": num_bad}
        self.counts |= {**counts, **features.counts()}
        for where, message in (*tally.warnings(), *features.warnings()):
            self.findings.append(Finding("warning", where, message))

    def side_columns(self, log: Log) -> None:
        """Compare the row groups of side columns with those of the requests they stand beside."""
        declared = {column.name for column in request_columns(log.schema)}
        for name in log.manifest.files:
            folder, _, rest = name.partition("/")
            column, _, file = rest.partition("/")
            part = f"{REQUESTS}/{file}"
            if folder != COLUMNS:
                continue
            if column not in declared or part not in log.manifest.files:
                what = f"column '{column}' of {SCHEMA}" if column not in declared else part
                self.error(name, f"stands beside no {what}; {DAMAGED}")
                continue
            mine, theirs = (
                self.attempt(n, lambda n=n: open_part(self.path / n))  # type: ignore[misc]
                for n in (name, part)
            )
            if mine is not None and theirs is not None and _sizes(mine) != _sizes(theirs):
                self.error(name, f"its row groups are not those of {part}; {DAMAGED}")

    def groups(self, log: Log) -> Iterator[tuple[int, Columns | None]]:
        """Yield every row group; None for one that cannot be read."""
        group = 0
        while group < log.num_groups:
            try:
                for columns in log.read(range(group, log.num_groups), with_ids=True):
                    yield group, columns
                    group += 1
                    self.progress(columns.num_requests)
            except InputError as error:
                name, _ = log._groups[group]
                self.error(name, self.strip(name, error))
                yield group, None
                group += 1

    def rows(self, columns: Columns) -> Iterator[str]:
        """Say what the writer would have refused in the rows of one group."""
        row, time = columns.scalars["row"], columns.scalars["time"]
        before = time[0] if self.last_time is None else self.last_time
        back = np.flatnonzero(np.diff(time, prepend=before) < 0)
        self.last_time = int(time[-1])
        if len(back):
            yield f"time goes back at request row {row[back[0]]}; sort the requests by time"
        for name, group in columns.groups.items():
            if name.startswith("history."):
                bad = first_bad_row(goes_back(group.values["time"], group.offsets), group.offsets)
                if bad is not None:
                    yield f"'{name}' of request row {row[bad]} is not sorted; oldest events first"
        candidates = columns.candidates
        request = np.repeat(np.arange(len(row)), np.diff(candidates.offsets))
        bad = _repeated(request, candidates.values["item"])
        if bad is not None:
            yield f"request row {row[bad]} lists a candidate twice; merge repeated exposures"
        for name, ranks in candidates.values.items():
            if not name.startswith("rank."):
                continue
            known = ranks >= 0
            bad = _repeated(request[known], ranks[known])
            if bad is not None:
                yield (
                    f"'candidates.{name}' of request row {row[bad]} gives one position to two "
                    "candidates; expected the place in one list"
                )
            bad = first_bad_row(ranks < -1, candidates.offsets)
            if bad is not None:
                yield f"'candidates.{name}' of request row {row[bad]} is negative; lists begin at 0"


def _sizes(file: pq.ParquetFile) -> list[int]:
    meta = file.metadata
    return [meta.row_group(k).num_rows for k in range(meta.num_row_groups)]


def _repeated(
    request: np.ndarray[tuple[int], np.dtype[np.int64]],
    value: np.ndarray[tuple[int], np.dtype[np.int64]],
) -> int | None:
    """Return the first request that holds a value twice."""
    order = np.lexsort((value, request))
    request, value = request[order], value[order]
    twice = (request[1:] == request[:-1]) & (value[1:] == value[:-1])
    return int(request[1:][twice.argmax()]) if twice.any() else None
