"""Raw rows to log to batch and back: equal to a plain Python decode of the files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prerank.errors import InputError
from prerank.log import Columns, Log, Transforms, open_log
from prerank.schema import Schema

Row = dict[str, Any]


def _plain(value: Any) -> Any:
    """Floats with NaN as None, recursively."""
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _raw_values(log: Log, vocab: str) -> list[Any]:
    path = log.path / ("items.parquet" if vocab == "item" else f"vocab/{vocab}.parquet")
    return pq.read_table(path)["item_id" if vocab == "item" else "value"].to_pylist()


class Decoder:
    """Turns ``Columns`` back into raw rows with nothing but Python lists."""

    def __init__(self, log: Log) -> None:
        self.schema = log.schema
        self.values = {name: _raw_values(log, name) for name in log.schema.vocabularies}

    def rows(self, columns: Columns) -> Iterator[Row]:
        for r in range(columns.num_requests):
            row = {
                "request_id": columns.scalars["request_id"][r],
                "user": self.values["user"][columns.scalars["user"][r]],
                "time": int(columns.scalars["time"][r]),
                "observed_until": self._whole(columns.scalars["observed_until"][r]),
            }
            for f in self.schema.stored("user", "context"):
                if f.kind == "multi":
                    group = columns.groups[f.column]
                    row[f.name] = [self.values[f.vocab][i] for i in self._cut(group, "", r)]
                else:
                    value = columns.scalars[f.column][r].tolist()
                    row[f.name] = self.values[f.vocab][value] if f.kind == "categorical" else value
            for name, group in columns.groups.items():
                if name == "candidates" or name.startswith("history."):
                    for key in group.values:
                        column = key if key.startswith("labels.") else f"{name}.{key}"
                        row[column] = self._list(name, key, self._cut(group, key, r))
            yield {name: _plain(value) for name, value in row.items()}

    @staticmethod
    def _cut(group: Any, key: str, r: int) -> list[Any]:
        return group.values[key][group.offsets[r] : group.offsets[r + 1]].tolist()

    @staticmethod
    def _whole(value: Any) -> int | None:
        return None if value < 0 else int(value)

    def _list(self, group: str, key: str, values: list[Any]) -> list[Any]:
        if key == "item":
            return [self.values["item"][i] for i in values]
        if key == "stage":
            return [self.schema.stages[i] for i in values]
        if key == "channel":
            return [None if i < 0 else self.schema.channels[i] for i in values]
        if key.startswith("rank."):
            return [self._whole(i) for i in values]
        owner = "candidate" if group == "candidates" else "history"
        for f in self.schema.of(owner, "categorical", group.removeprefix("history.")):
            if f.name == key:
                return [self.values[f.vocab][i] for i in values]
        return values


def test_a_round_trip_gives_the_raw_rows(rich_log: Log, rich_rows: list[Row]) -> None:
    decoder = Decoder(rich_log)
    for size in (1, 4, 7, 100):
        found = [
            row
            for columns in rich_log.all().columns(size, with_ids=True)
            for row in decoder.rows(columns)
        ]
        assert found == rich_rows


def test_items_hold_the_raw_features_and_those_met_in_requests_none(
    rich_log: Log, rich_items: list[Row]
) -> None:
    items = rich_log.items
    assert items.ids.values.to_pylist()[2:12] == [item["item_id"] for item in rich_items]
    assert sorted(items.ids.values.to_pylist()[12:]) == [100, 110]
    genres, tags = _raw_values(rich_log, "genre"), _raw_values(rich_log, "tags")
    blank = {"genre": None, "tags": [], "emb": [None] * 3, "born": None, "price": None}
    for index in range(items.num_items):
        listed = 2 <= index < 12
        expected = rich_items[index - 2] if listed else blank
        ends = items.groups["tags"].offsets
        found = {
            "genre": genres[items.scalars["genre"][index]],
            "tags": [
                tags[i] for i in items.groups["tags"].values[""][ends[index] : ends[index + 1]]
            ],
            **{n: items.scalars[n][index].tolist() for n in ("emb", "born", "price")},
        }
        assert {k: _plain(v) for k, v in found.items()} == {k: expected[k] for k in blank}
    assert items.scalars["born"].dtype == np.float64  # milliseconds stay exact


def test_a_batch_holds_the_raw_values(rich_log: Log, rich_rows: list[Row]) -> None:
    log, schema = rich_log, rich_log.schema
    transforms = Transforms.fit(log.all(), min_count=1)
    (batch,) = log.all().batches(transforms, 100, prefetch=0)
    inputs, evidence = batch.inputs, batch.evidence
    raw = {name: _raw_values(log, name) for name in schema.vocabularies}
    flat = [
        (r, {k: row[k][i] for k in row if k.startswith(("candidates.", "labels."))})
        for r, row in enumerate(rich_rows)
        for i in range(len(row["candidates.item"]))
    ]
    assert inputs.request_of.tolist() == [r for r, _ in flat]
    assert inputs.offsets.tolist()[0] == 0
    assert inputs.offsets.diff().tolist() == [len(row["candidates.item"]) for row in rich_rows]
    assert batch.evidence.row.tolist() == list(range(len(rich_rows)))

    unique = [raw["item"][i] for i in inputs.items.categorical[:, 0].tolist()]
    assert len(set(unique)) == len(unique)
    assert [unique[i] for i in inputs.item_of.tolist()] == [c["candidates.item"] for _, c in flat]
    met = {i for row in rich_rows for k in row if k.endswith(".item") for i in row[k]}
    assert set(unique) == met

    user = [[raw["user"][a], raw["segment"][b]] for a, b in inputs.user.categorical.tolist()]
    assert user == [[row["user"], row["segment"]] for row in rich_rows]
    _same_dense(inputs.user.dense, [[row["age"]] for row in rich_rows])
    (interests,) = inputs.user.multi
    assert [raw["interests"][i] for i in interests.values.tolist()] == [
        x for row in rich_rows for x in row["interests"]
    ]
    assert interests.lengths.tolist() == [len(row["interests"]) for row in rich_rows]
    assert inputs.user.vectors[0].tolist() == [row["profile"] for row in rich_rows]
    device = [raw["device"][i] for i in inputs.context.categorical[:, 2].tolist()]
    assert device == [row["device"] for row in rich_rows]

    columns = ["candidates.slot", "candidates.affinity"]
    slots = [raw["slot"][i] for i in inputs.candidate.categorical[:, 0].tolist()]
    assert slots == [c[columns[0]] for _, c in flat]
    _same_dense(inputs.candidate.dense[:, [1, 3]], [[c[columns[1]]] for _, c in flat])

    for stream in schema.streams:
        history = inputs.history[stream]
        events = [
            (row["time"] - time, item)
            for row in rich_rows
            for time, item in zip(
                row[f"history.{stream}.time"], row[f"history.{stream}.item"], strict=True
            )
        ]
        assert history.age_ms.values.tolist() == [age for age, _ in events]
        assert [unique[i] for i in history.item_of.values.tolist()] == [item for _, item in events]
        lengths = [len(row[f"history.{stream}.item"]) for row in rich_rows]
        assert history.item_of.lengths.tolist() == lengths
    acts = [raw["act"][i] for i in inputs.history["clicks"].categorical.values[:, 0].tolist()]
    assert acts == [a for row in rich_rows for a in row["history.clicks.act"]]
    dwell = [[d] for row in rich_rows for d in row["history.clicks.dwell"]]
    _same_dense(inputs.history["clicks"].dense.values, dwell)

    assert [schema.stages[s] for s in evidence.stage.tolist()] == [
        c["candidates.stage"] for _, c in flat
    ]
    assert [raw["item"][i] for i in evidence.item.tolist()] == [
        c["candidates.item"] for _, c in flat
    ]
    for name in ("weight", "propensity", "sample_prob", "scored_online"):
        found = getattr(evidence, name).tolist()
        assert found == [c[f"candidates.{name}"] for _, c in flat]
    for name in schema.ranks:
        wanted = [c[f"candidates.rank.{name}"] for _, c in flat]
        assert evidence.ranks[name].tolist() == [-1 if w is None else w for w in wanted]
    assert _plain(evidence.scores["ranker"].tolist()) == [
        c["candidates.score.ranker"] for _, c in flat
    ]
    channels = [None if i < 0 else schema.channels[i] for i in evidence.channel.tolist()]
    assert channels == [c["candidates.channel"] for _, c in flat]


def _same_dense(found: torch.Tensor, expected: list[list[float | None]]) -> None:
    wanted = [[0.0 if v is None else v, float(v is None)] for (v,) in expected]
    assert found.dtype == torch.float32
    assert found.tolist() == wanted


IDS = st.integers(-3, 30)
TEXT = st.text(alphabet="abé ", max_size=3)


@st.composite
def _ragged(draw: st.DrawFn) -> list[Row]:
    raw = draw(st.sampled_from([IDS, TEXT]))
    floats = st.none() | st.floats(-1e6, 1e6, width=32)
    rows = []
    for k in range(draw(st.integers(1, 9))):
        items = draw(st.lists(raw, max_size=5, unique=True))
        events = draw(st.lists(st.tuples(raw, st.integers(1, 99)), max_size=4))
        ages = sorted((age for _, age in events), reverse=True)

        def each(values: st.SearchStrategy[Any], items: list[Any] = items) -> list[Any]:
            return [draw(values) for _ in items]

        rows.append(
            {
                "request_id": f"r{k}",
                "user": draw(raw),
                "time": 1000 + k // 2,
                "segment": draw(st.none() | TEXT),
                "interests": draw(st.lists(TEXT, max_size=3)),
                "history.clicks.item": [item for item, _ in events],
                "history.clicks.time": [1000 + k // 2 - age for age in ages],
                "candidates.item": items,
                "candidates.stage": each(st.sampled_from(["pool", "rank", "exposed"])),
                "candidates.affinity": each(floats),
                "labels.click": each(st.sampled_from([None, 0.0, 1.0])),
            }
        )
    return rows


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(rows=_ragged())
def test_any_ragged_rows_come_back(
    rows: list[Row], make_log: Callable[..., Log], schema: Schema
) -> None:
    plain = msgspec.structs.replace(
        schema,
        streams=("clicks",),
        features=tuple(f for f in schema.features if f.owner != "history"),
        has_weight=False,
        has_propensity=False,
        has_sample_prob=False,
        has_scored_online=False,
    )
    log = make_log(rows, schema=plain, group=2, groups_per_part=2, chunk=3)
    decoder = Decoder(log)
    found = [row for c in log.all().columns(4, with_ids=True) for row in decoder.rows(c)]
    assert [{k: row[k] for k in rows[0]} for row in found] == rows
    assert all(set(row["labels.buy"]) <= {None} for row in found)  # never given: all missing


def test_parts_read_their_rows_only(rich_log: Log) -> None:
    assert rich_log.parts == ("train", "valid", "test")
    for name, rows in (("train", range(20)), ("valid", range(20, 25)), ("test", range(25, 30))):
        part = rich_log[name]
        assert part.num_requests == len(rows)
        assert part.num_batches(3) == math.ceil(len(rows) / 3)
        found = [r for columns in part.columns(3) for r in columns.scalars["row"].tolist()]
        assert found == list(rows)
    with pytest.raises(InputError, match=r"no part 'tests'; did you mean 'test'\?"):
        rich_log["tests"]


def test_a_log_without_parts_says_so(make_log: Callable[..., Log], rich_rows: list[Row]) -> None:
    log = make_log(rich_rows)
    assert log.parts == ()
    with pytest.raises(
        InputError, match="no part 'train'; the log has none; run: prerank data split"
    ):
        log["train"]


def test_request_times_and_single_columns(rich_log: Log, rich_rows: list[Row]) -> None:
    times, users = rich_log.request_times()
    assert times.tolist() == [row["time"] for row in rich_rows]
    names = rich_log.vocabulary("user").decode(users).to_pylist()
    assert names == [row["user"] for row in rich_rows]
    (columns,) = rich_log.read([0], ["time"])
    assert set(columns.scalars) == {"row", "time"}
    assert columns.groups == {}


def test_row_groups_can_be_read_in_any_order(rich_log: Log) -> None:
    order = [7, 0, 3, 3]
    found = [columns.scalars["row"].tolist() for columns in rich_log.read(order)]
    assert found == [[28, 29], [0, 1, 2, 3], [12, 13, 14, 15], [12, 13, 14, 15]]


def test_vocabularies_by_name(rich_log: Log) -> None:
    assert rich_log.vocabulary("item") is rich_log.items.ids
    with pytest.raises(InputError, match=r"no vocabulary 'genres'; did you mean 'genre'\?"):
        rich_log.vocabulary("genres")


def test_opening_what_is_no_log_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such log; expected a folder with schema"):
        open_log(tmp_path / "nothing")
    with pytest.raises(InputError, match="not a whole request log"):
        open_log(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="no such log"):
        open_log(tmp_path / "file")


@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_and_scores_that_nobody_wants_are_not_read(rich_log: Log, shuffle: bool) -> None:
    ranks, scores = rich_log.schema.ranks, rich_log.schema.scores
    assert ranks
    assert scores
    part = rich_log["train"]
    transforms = Transforms.fit(part)
    wanted = frozenset({f"rank.{ranks[0]}"})
    every = part.batches(transforms, 7, shuffle=shuffle)
    fewer = part.batches(transforms, 7, shuffle=shuffle, logged=wanted)
    none = part.batches(transforms, 7, shuffle=shuffle, logged=frozenset())
    for whole, cut, bare in zip(every, fewer, none, strict=True):
        assert list(cut.evidence.ranks) == [ranks[0]]
        assert not cut.evidence.scores
        assert not bare.evidence.ranks
        assert set(whole.evidence.scores) == set(scores)
        torch.testing.assert_close(
            cut.evidence.ranks[ranks[0]], whole.evidence.ranks[ranks[0]], rtol=0, atol=0
        )
        for other in (cut, bare):
            for name in ("row", "source", "targets", "item", "sample_prob", "weight"):
                torch.testing.assert_close(
                    getattr(other.evidence, name),
                    getattr(whole.evidence, name),
                    rtol=0,
                    atol=0,
                    equal_nan=True,
                )
            assert torch.equal(other.inputs.item_of, whole.inputs.item_of)


def test_a_file_that_is_replaced_is_read_anew(rich_log: Log, copy_of: Callable[..., Path]) -> None:
    path = copy_of(rich_log)
    log = open_log(path)
    before = [c.scalars["time"] for c in log.all().columns(7)]
    file = next((path / "requests").iterdir())
    table = pq.read_table(file)
    pq.write_table(table.slice(0, 0), file)  # its footer, once read, is not believed any more
    with pytest.raises(InputError):
        list(log.all().columns(7))
    assert before
