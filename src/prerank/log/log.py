"""An open request log and its named parts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prerank.batch import RequestBatch
from prerank.errors import InputError, did_you_mean
from prerank.log.format.columns import Columns
from prerank.log.format.decode import decode, open_part, read_row_group
from prerank.log.format.files import (
    COLUMNS,
    DAMAGED,
    ITEMS,
    MANIFEST,
    REQUESTS,
    SCHEMA,
    SPLITS,
    VOCAB,
    Manifest,
    check_size,
    read_json,
)
from prerank.log.format.items import ItemTable
from prerank.log.format.layout import Column, is_wanted, request_columns
from prerank.log.format.vocab import Vocabulary
from prerank.log.order import plan_windows, shuffled, skip_windows
from prerank.log.prefetch import prefetch as run_ahead
from prerank.log.split import RowRanges, check_parts, load_splits
from prerank.schema import Schema

if TYPE_CHECKING:
    from prerank.log.inputs.transform import Transforms
    from prerank.sampling.base import Sampler

__all__ = ["Log", "Part", "open_log"]

GROUPS_PER_WINDOW = 16


def open_log(path: str | Path) -> Log:
    """Open a request log.

    Raises
    ------
    InputError
        No log there, a half-written or damaged one (files missing or of another size).
    """
    return Log(Path(path))


class Log:
    """A request log on disk; opening reads JSON only.

    Parameters
    ----------
    path : Path
        The folder.
    verify : bool
        False leaves out the sizes of files and the parts, which ``check_log`` reports one by one.
    """

    def __init__(self, path: Path, *, verify: bool = True) -> None:
        if not path.is_dir():
            raise InputError(f"{path}: no such log; expected a folder with {SCHEMA}")
        if not (path / MANIFEST).exists():
            raise InputError(
                f"{path}: not a whole request log ({MANIFEST} is missing); import it again"
            )
        self.path = path
        self.manifest = read_json(path / MANIFEST, Manifest)
        self.schema = read_json(path / SCHEMA, Schema)
        files = self.manifest.files
        if verify:
            for name, entry in files.items():
                if not name.endswith(".json"):  # a schema may be edited on purpose
                    check_size(path / name, entry)
        total = sum(entry.rows for entry in files.values())
        if total != self.manifest.num_requests:
            raise InputError(
                f"{path / MANIFEST}: its files hold {total} requests, expected "
                f"{self.manifest.num_requests}; {DAMAGED}"
            )
        parts: list[tuple[str, int]] = []
        starts = [0]
        for name, entry in files.items():
            for index, first in enumerate(range(0, entry.rows, max(entry.row_group, 1))):
                parts.append((name, index))
                starts.append(starts[-1] + min(max(entry.row_group, 1), entry.rows - first))
        self._groups = parts
        self._side = {name for name in files if name.startswith(f"{COLUMNS}/")}
        self._starts = np.array(starts, dtype=np.int64)
        self._ranges: dict[str, RowRanges] = {}
        if verify:
            pairs = load_splits(path).parts
            self._ranges = {name: RowRanges(np.array(p, np.int64)) for name, p in pairs.items()}
            check_parts(self._ranges, self.num_requests, str(path / SPLITS))

    @property
    def num_requests(self) -> int:
        """Number of requests."""
        return self.manifest.num_requests

    @property
    def num_groups(self) -> int:
        """Number of row groups."""
        return len(self._groups)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts in ``splits.json``."""
        return tuple(self._ranges)

    def __getitem__(self, name: str) -> Part:
        if name not in self._ranges:
            hint = did_you_mean(name, self._ranges)
            if not self._ranges:
                hint = f"the log has none; run: prerank data split {self.path}"
            raise InputError(f"{self.path}: no part '{name}'; {hint}")
        return Part(self, self._ranges[name], name)

    def all(self) -> Part:
        """Return all requests as one part."""
        return Part(self, RowRanges([[0, self.num_requests]]), "all")

    @cached_property
    def items(self) -> ItemTable:
        """The item table (read at first use)."""
        return ItemTable.load(self.path / ITEMS, self.schema, has_grown=self._has_grown)

    def _has_grown(self) -> bool:
        """Whether the log has grown since it was opened; what it held then has not moved."""
        now, mine = read_json(self.path / SCHEMA, Schema).lineage, self.schema.lineage
        return now.log_id == mine.log_id and now.revision > mine.revision

    def vocabulary(self, name: str) -> Vocabulary:
        """Read a vocabulary; ``item`` comes from the item table."""
        if name == "item":
            return self.items.ids
        if name not in self.schema.vocabularies:
            known = did_you_mean(name, self.schema.vocabularies)
            raise InputError(f"{self.path}: no vocabulary '{name}'; {known}")
        path = self.path / VOCAB / f"{name}.parquet"
        vocab, size = Vocabulary.load(path, name), self.schema.vocabularies[name]
        if len(vocab) > size and self._has_grown():
            return Vocabulary.of(vocab.values[:size], name, where=str(path))
        if len(vocab) != size:
            raise InputError(f"{path}: {len(vocab)} rows, but {SCHEMA} counts {size}; {DAMAGED}")
        return vocab

    def request_times(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return time (ms) and user index of every request, ``[num_requests]`` each."""
        times, users = [], []
        for columns in self.read(range(self.num_groups), ["user", "time"]):
            times.append(columns.scalars["time"])
            users.append(columns.scalars["user"].astype(np.int64))
        return np.concatenate(times), np.concatenate(users)

    def read(
        self,
        groups: Any,
        only: list[str] | None = None,
        *,
        with_ids: bool = False,
        logged: frozenset[str] | None = None,
    ) -> Iterator[Columns]:
        """Read row groups by number, one ``Columns`` each, checked.

        Parameters
        ----------
        groups : iterable of int
            Row groups, in the order wanted.
        only : list of str, optional
            Columns to read; default all but ``request_id``.
        with_ids : bool
            Read ``request_id`` too.
        logged : frozenset of str, optional
            Ranks and scores to read (``rank.STAGE``, ``score.NAME``); None reads all.
        """
        columns = [
            c
            for c in request_columns(self.schema)
            if (c.name in only if only is not None else c.name != "request_id" or with_ids)
            and (logged is None or is_wanted(c, logged))
        ]
        for first, where, table in self.tables(groups, columns):
            yield decode(table, columns, self.schema, first, where)

    def file_of(self, group: int) -> str:
        """Return the part file of a row group, by its path inside the log."""
        return self._groups[group][0]

    def tables(self, groups: Any, columns: list[Column]) -> Iterator[tuple[int, str, pa.Table]]:
        """Yield first request row, place for errors, and encoded table of row groups.

        A side column stands in for the column of its name.
        """
        opened: dict[str, tuple[str, Any]] = {}
        for group in groups:
            name, index = self._groups[group]
            first, stop = int(self._starts[group]), int(self._starts[group + 1])
            sources: dict[str, list[Column]] = {}
            for column in columns:
                side = name.replace(REQUESTS, f"{COLUMNS}/{column.name}", 1)
                sources.setdefault(side if side in self._side else name, []).append(column)
            arrays: dict[str, pa.ChunkedArray] = {}
            for source, wanted in sources.items():
                path = self.path / source
                slot = source.rpartition("/")[0]
                if slot not in opened or opened[slot][0] != source:
                    opened[slot] = (source, open_part(path))
                table = read_row_group(opened[slot][1], path, index, wanted, stop - first)
                arrays |= {c.name: table[c.name] for c in wanted}
            table = pa.table({c.name: arrays[c.name] for c in columns})
            yield first, f"{self.path / name}: row group {index}", table


class Part:
    """Named requests of a log.

    Parameters
    ----------
    log : Log
        The log.
    rows : RowRanges
        Which requests.
    name : str
        What to call the part in reports.
    """

    def __init__(self, log: Log, rows: RowRanges, name: str) -> None:
        self.log = log
        self.rows = rows
        self.name = name

    @property
    def num_requests(self) -> int:
        """Number of requests."""
        return len(self.rows)

    def num_batches(self, batch_size: int) -> int:
        """Return how many batches of ``batch_size`` requests one epoch has."""
        return -(-self.num_requests // batch_size)

    def columns(
        self,
        batch_size: int,
        *,
        seed: int = 0,
        epoch: int = 0,
        shuffle: bool = False,
        start: int = 0,
        with_ids: bool = False,
        logged: frozenset[str] | None = None,
    ) -> Iterator[Columns]:
        """Yield the requests in batches, as numpy columns, in one epoch's order.

        Parameters
        ----------
        batch_size : int
            Requests per batch; the last one may be smaller.
        seed, epoch : int
            Keys of the shuffled order.
        shuffle : bool
            False reads in log order.
        start : int
            Number of batches to skip, without reading them.
        with_ids : bool
            Also read ``request_id``.
        logged : frozenset of str, optional
            Ranks and scores to read (``rank.STAGE``, ``score.NAME``); None reads all.
        """
        starts = self.log._starts
        windows = plan_windows(
            self.rows,
            starts,
            seed,
            epoch,
            shuffle=shuffle,
            groups_per_window=GROUPS_PER_WINDOW if shuffle else 1,
        )
        index, skip = skip_windows(windows, start * batch_size)
        rest: Columns | None = None
        for window in windows[index:]:
            pieces = []
            read = self.log.read(window.groups, with_ids=with_ids, logged=logged)
            for group, columns in zip(window.groups, read, strict=True):
                first, stop = int(starts[group]), int(starts[group + 1])
                rows = self.rows.within(first, stop) - first
                pieces.append(columns if len(rows) == stop - first else columns.take(rows))
            whole = Columns.cat(pieces)
            # a window is as large as memory gets: nothing may hold a second copy of one
            pieces, columns = [], whole
            at, stop = skip, whole.num_requests
            order = np.arange(stop)
            if shuffle:
                order = shuffled(whole.scalars["row"], seed, epoch)
            skip = 0
            if rest is not None:  # fill up the batch that the window before began
                at = min(batch_size - rest.num_requests, stop)
                rest = Columns.cat([rest, whole.take(order[:at])])
                if rest.num_requests < batch_size:
                    continue
                yield rest
            stop -= (stop - at) % batch_size
            for first in range(at, stop, batch_size):
                last = first + batch_size
                yield whole.take(order[first:last]) if shuffle else whole.slice(first, last)
            rest = whole.take(order[stop:]) if stop < len(order) else None
        if rest is not None:
            yield rest

    def deduplicated(self) -> Part:
        """Return the same requests, equal ones of a batch merged: for logs of single impressions.

        A batch still counts stored rows, so it holds as many candidates of fewer requests. Rows of
        one user and time stay together when shuffled, as far as they lie within the 16 row groups
        that are read together. See :mod:`prerank.log.deduped`.
        """
        from prerank.log.deduped import DedupedPart

        return DedupedPart(self.log, self.rows, self.name)

    def batches(
        self,
        transforms: Transforms,
        batch_size: int,
        *,
        seed: int = 0,
        epoch: int = 0,
        shuffle: bool = False,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        prefetch: int = 2,
        sampler: Sampler | None = None,
        logged: frozenset[str] | None = None,
    ) -> Iterator[RequestBatch]:
        """Yield ``RequestBatch`` es of one epoch, prepared ahead in a thread.

        Parameters
        ----------
        transforms : Transforms
            Fitted transforms that turn columns into tensors.
        batch_size : int
            Requests per batch over all ranks.
        seed, epoch, shuffle, start
            As in :meth:`columns`; the order depends on nothing else.
        rank, world_size : int
            Every rank takes every ``world_size``-th request of each batch, possibly none.
        prefetch : int
            Batches held ready; 0 reads in the calling thread.
        sampler : Sampler, optional
            Chooses and draws candidates before tensors are made, in the reading thread.
        logged : frozenset of str, optional
            As in :meth:`columns`; ``evidence.ranks`` and ``scores`` hold these alone, and without
            a score ``scored_online`` is all true.
        """
        assembler = transforms.assembler(self.log)

        def make() -> Iterator[RequestBatch]:
            for columns in self.columns(
                batch_size, seed=seed, epoch=epoch, shuffle=shuffle, start=start, logged=logged
            ):
                mine = columns
                if world_size > 1:
                    mine = columns.take(np.arange(rank, columns.num_requests, world_size))
                if sampler is not None:
                    first = int(columns.scalars["row"][0])
                    mine = sampler.sample(mine, seed=seed, epoch=epoch, key=first)
                yield assembler.batch(mine)

        return run_ahead(make(), prefetch)
