"""Transforms: what was fitted on training rows, and the vocabulary a model was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prerank.batch import RequestBatch
from prerank.errors import InputError
from prerank.log.format.columns import CANDIDATES, Columns, history_key
from prerank.log.format.files import VOCAB, read_json, read_table, write_json, write_table
from prerank.log.format.items import ItemTable
from prerank.log.format.vocab import UNKNOWN_ROW, Vocabulary, check_index
from prerank.log.inputs.assemble import Assembler
from prerank.log.inputs.dense import DenseFit, DenseStatistics, dense_features, raw_dense
from prerank.schema import NUM_RESERVED, Feature, Schema

if TYPE_CHECKING:
    from prerank.log.log import Log, Part

__all__ = ["Transforms"]

_FILE = "transforms.json"
Map = npt.NDArray[np.int32]


class _Stored(msgspec.Struct, frozen=True):
    schema: Schema
    dense: dict[str, DenseFit]
    min_count: int
    max_history: int


class Transforms:
    """Everything that turns stored values into model inputs.

    Parameters
    ----------
    schema : Schema
        Of the log it was fitted on.
    dense : dict of str to DenseFit
        By column.
    vocabularies : dict of str to Vocabulary
        As they were when training ended.
    rows : dict of str to ndarray ``[vocabulary rows]`` int32
        Table row of each vocabulary row: itself, or 1 (unknown) for ids seen too rarely.
    min_count : int
        Ids with fewer training occurrences train and score as unknown.
    max_history : int
        Most recent events kept of each history stream.

    Attributes
    ----------
    counts : dict of str to ndarray ``[vocabulary rows]`` int64
        Occurrences in the part it was fitted on; empty once stored and loaded.
    """

    def __init__(
        self,
        schema: Schema,
        dense: dict[str, DenseFit],
        vocabularies: dict[str, Vocabulary],
        rows: dict[str, Map],
        *,
        min_count: int,
        max_history: int,
    ) -> None:
        self.schema = schema
        self.dense = dense
        self.vocabularies = vocabularies
        self.rows = rows
        self.min_count = min_count
        self.max_history = max_history
        self.counts: dict[str, npt.NDArray[np.int64]] = {}
        self._assemblers: dict[str, Assembler] = {}

    @classmethod
    def fit(cls, part: Part, *, min_count: int = 2, max_history: int = 100) -> Transforms:
        """Fit on the requests of a part (the training part).

        Reads the part once. Occurrences of an item count candidates and history events.
        """
        log, schema = part.log, part.log.schema
        vocabularies = {name: log.vocabulary(name) for name in schema.vocabularies}
        counts = {
            name: np.zeros(size, dtype=np.int64) for name, size in schema.vocabularies.items()
        }
        statistics = {f.column: DenseStatistics(f) for f in dense_features(schema)}
        for columns in part.columns(4096):
            _count(columns, schema, counts, max_history)
            for feature in dense_features(schema):
                if feature.owner != "item":
                    statistics[feature.column].add(raw_dense(feature, columns, log.items))
        seen = counts["item"] if "item" in counts else np.zeros(log.items.num_items, np.int64)
        _count_item_features(log.items, schema, counts, seen)
        for feature in schema.of("item", "dense"):
            values = log.items.scalars[feature.column].astype(np.float64)
            statistics[feature.column].add(values[seen > 0])
        rows = {}
        for name, count in counts.items():
            index = np.arange(len(count), dtype=np.int32)
            rare = (count < min_count) & (index >= NUM_RESERVED)
            rows[name] = np.where(rare, np.int32(UNKNOWN_ROW), index)
        fitted = cls(
            schema,
            {name: s.result() for name, s in statistics.items()},
            vocabularies,
            rows,
            min_count=min_count,
            max_history=max_history,
        )
        fitted.counts = counts
        return fitted

    def save(self, folder: str | Path) -> None:
        """Write ``transforms.json`` and ``vocab/NAME.parquet`` (raw value, index, table row)."""
        folder = Path(folder)
        (folder / VOCAB).mkdir(parents=True, exist_ok=True)
        for name, vocab in self.vocabularies.items():
            index = pa.array(np.arange(len(vocab), dtype=np.int32))
            columns = {"value": vocab.values, "index": index, "row": pa.array(self.rows[name])}
            write_table(pa.table(columns), folder / VOCAB / f"{name}.parquet")
        stored = _Stored(self.schema, self.dense, self.min_count, self.max_history)
        write_json(stored, folder / _FILE)

    @classmethod
    def load(cls, folder: str | Path) -> Transforms:
        """Read what ``save`` wrote.

        Raises
        ------
        InputError
            A file is missing or damaged.
        """
        folder = Path(folder)
        stored = read_json(folder / _FILE, _Stored)
        vocabularies, rows = {}, {}
        for name, size in stored.schema.vocabularies.items():
            path = folder / VOCAB / f"{name}.parquet"
            table = read_table(path, ("value", "index", "row"))
            check_index(table["index"], path)
            row = table["row"].to_numpy()
            fits = row.dtype == np.int32 and len(row) == size >= NUM_RESERVED
            if not (fits and 0 <= row.min() <= row.max() < size):
                raise InputError(
                    f"{path}: column 'row' does not fit the {size} rows that {_FILE} counts; "
                    "restore the file or train again"
                )
            vocabularies[name] = Vocabulary.of(
                table["value"].combine_chunks(), name, where=str(path)
            )
            rows[name] = row
        return cls(
            stored.schema,
            stored.dense,
            vocabularies,
            rows,
            min_count=stored.min_count,
            max_history=stored.max_history,
        )

    def assembler(self, log: Log) -> Assembler:
        """Return what turns columns of this log into batches (made once per log).

        Raises
        ------
        InputError
            The log lacks a feature or label that the model was trained with, or has it in
            another kind.
        """
        key = f"{log.schema.lineage.log_id}/{log.manifest.content}"
        if key not in self._assemblers:
            _check_same_features(self.schema, log)
            maps = {name: self._map(log, name) for name in self.schema.vocabularies}
            self._assemblers[key] = Assembler(
                self.schema, log.schema, self.dense, maps, log.items, max_history=self.max_history
            )
        return self._assemblers[key]

    def batch(self, columns: Columns, log: Log) -> RequestBatch:
        """Turn columns of a log into a batch."""
        return self.assembler(log).batch(columns)

    def knows(self, log: Log, name: str = "item") -> npt.NDArray[np.bool_]:
        """Return which rows ``[size]`` of a log's vocabulary have a row of their own in training.

        The others share the row of unknown ids. All, where ``name`` is no feature of the log.
        """
        if name not in self.vocabularies:
            return np.ones(log.schema.size(name), dtype=np.bool_)
        known: npt.NDArray[np.bool_] = self._map(log, name) != UNKNOWN_ROW
        return known

    def _map(self, log: Log, name: str) -> Map:
        """Return the table row of each row of the log's vocabulary."""
        trained, rows = self.vocabularies[name], self.rows[name]
        size = log.schema.size(name)
        ours, lineage = self.schema.lineage, log.schema.lineage
        # A log that never grew is what its id says; copies of one may have grown apart.
        if lineage.log_id == ours.log_id and not lineage.revision and not ours.revision:
            return _grown(rows, size)
        theirs = log.vocabulary(name)
        common = min(size, len(trained))
        if lineage.log_id == ours.log_id and theirs.values[:common].equals(trained.values[:common]):
            return _grown(rows, size)
        if size >= len(trained) and theirs.digest(len(trained)) == trained.digest():
            return _grown(rows, size)
        mapped = rows[trained.encode(theirs.values)]
        mapped[UNKNOWN_ROW] = UNKNOWN_ROW
        return mapped


def _grown(rows: Map, size: int) -> Map:
    """Return rows of a vocabulary that has grown: later values are unknown."""
    grown = np.full(max(size, len(rows)), UNKNOWN_ROW, dtype=np.int32)
    grown[: len(rows)] = rows
    return grown


def _count(
    columns: Columns, schema: Schema, counts: dict[str, npt.NDArray[np.int64]], max_history: int
) -> None:
    def add(feature: Feature, values: npt.NDArray[Any]) -> None:
        counts[feature.vocab] += np.bincount(values, minlength=len(counts[feature.vocab]))

    candidates = columns.groups[CANDIDATES]
    histories = {s: columns.groups[history_key(s)].tail(max_history) for s in schema.streams}
    size = len(counts["item"])
    for group in (candidates, *histories.values()):
        counts["item"] += np.bincount(group.values["item"], minlength=size)
    lengths = np.diff(candidates.offsets)
    for feature in schema.stored("user", "context", "candidate", "history"):
        if feature.kind == "categorical":
            match feature.owner:
                case "candidate":
                    add(feature, candidates.values[feature.name])
                case "history":
                    add(feature, histories[feature.stream].values[feature.name])
                case _:
                    add(feature, columns.scalars[feature.column])
        elif feature.kind == "multi":
            add(feature, columns.groups[feature.column].values[""])
    weights = np.bincount(columns.scalars["user"], weights=lengths, minlength=len(counts["user"]))
    counts["user"] += weights.astype(np.int64)


def _count_item_features(
    items: ItemTable,
    schema: Schema,
    counts: dict[str, npt.NDArray[np.int64]],
    seen: npt.NDArray[np.int64],
) -> None:
    for feature in schema.stored("item"):
        size = len(counts[feature.vocab]) if feature.vocab in counts else 0
        if feature.kind == "categorical":
            values, weights = items.scalars[feature.column], seen
        elif feature.kind == "multi":
            group = items.groups[feature.column]
            values, weights = group.values[""], np.repeat(seen, np.diff(group.offsets))
        else:
            continue
        counts[feature.vocab] += np.bincount(values, weights, minlength=size).astype(np.int64)


def _check_same_features(trained: Schema, log: Log) -> None:
    theirs = {(f.owner, f.stream, f.name): f for f in log.schema.features}
    for f in trained.features:
        other = theirs.get((f.owner, f.stream, f.name))
        if other is None:
            raise InputError(
                f"{log.path}: no {f.owner} feature '{f.name}', which the model was trained with"
            )
        if other != f:
            raise InputError(
                f"{log.path}: {f.owner} feature '{f.name}' is declared differently from the "
                f"training log ({other} instead of {f})"
            )
