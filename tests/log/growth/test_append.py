"""Appending: what was written comes back, nothing that was there moves."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prerank.errors import InputError
from prerank.log import Log, Transforms, check_log, open_log, split_log
from prerank.log.format.raw import raw_items, raw_requests
from prerank.log.growth import append_log, compute_stats, join_labels
from prerank.log.growth.append import compatible
from prerank.schema import Feature, Label

Row = dict[str, Any]


def test_grown_log_holds_the_rows_of_both(
    grown_log: Log, many_rows: list[Row], stored_rows: Callable[[Log], list[Row]]
) -> None:
    assert stored_rows(grown_log) == many_rows
    assert grown_log.num_requests == 50
    assert grown_log.manifest.num_candidates == sum(len(r["candidates.item"]) for r in many_rows)
    assert grown_log.parts == ("train", "valid", "test", "day2")
    assert grown_log["day2"].rows.pairs.tolist() == [[30, 50]]
    assert grown_log.schema.lineage.revision == 1
    report = check_log(grown_log)
    assert report.ok, report.findings


def test_vocabularies_grow_and_indices_never_move(
    base_log: Log, later: pa.Table, small_groups: Callable[..., Any]
) -> None:
    names = list(base_log.schema.vocabularies)
    before = {name: base_log.vocabulary(name).values.to_pylist() for name in names}
    with small_groups():
        report = append_log(base_log.path, [later])
    grown = open_log(base_log.path)
    for name in names:
        after = grown.vocabulary(name).values.to_pylist()
        assert after[: len(before[name])] == before[name]
        assert len(after) - len(before[name]) == report.counts.get(f"new:{name}", 0)
    assert set(grown.vocabulary("user").values.to_pylist()) > {"new0", "new1", "new2"}
    assert report.counts["new:device"] == 1
    assert report.num_requests == 20
    assert report.num_items == report.counts["new:item"] > 0


def test_old_batches_stay_bit_for_bit(
    base_log: Log,
    later: pa.Table,
    tensors_of: Callable[..., Any],
    same: Callable[..., bool],
    tmp_path: Path,
) -> None:
    transforms = Transforms.fit(base_log["train"], min_count=1)
    transforms.save(tmp_path / "run")
    before = {name: tensors_of(base_log[name], transforms) for name in base_log.parts}
    append_log(base_log.path, [later], part="day2")
    grown = open_log(base_log.path)
    for fitted in (transforms, Transforms.load(tmp_path / "run")):
        for name, tensors in before.items():
            assert same(tensors_of(grown[name], fitted), tensors)
        batch = next(grown["day2"].batches(fitted, 20, prefetch=0))
        user = batch.inputs.user.categorical[:, 0]
        fresh = np.char.startswith(np.array(later["user"].to_pylist()), "new")
        assert (user.numpy()[fresh] == 1).all()  # ids met later are unknown
        assert (user.numpy()[~fresh] > 1).any()


def test_known_items_keep_their_features_and_new_ones_bring_theirs(
    base_log: Log, later: pa.Table, to_table: Callable[..., pa.Table], rich_items: list[Row]
) -> None:
    before = raw_items(base_log).to_pylist()
    changed = [{**row, "genre": "changed", "price": 9.0} for row in rich_items]
    fresh = {**rich_items[0], "item_id": 1070, "genre": "brand new", "price": 7.0}
    append_log(base_log.path, [later], to_table([*changed, fresh]))
    after = raw_items(open_log(base_log.path)).to_pylist()
    assert after[: len(before)] == before
    assert after[len(before)] == fresh
    assert all(row["price"] is None for row in after[len(before) + 1 :])


def test_first_seen_is_the_earliest_request(grown_log: Log, many_rows: list[Row]) -> None:
    def first(values: Callable[[Row], list[tuple[Any, int]]]) -> dict[Any, int]:
        seen: dict[Any, int] = {}
        for row in many_rows:
            for value, time in values(row):
                seen[value] = min(time, seen.get(value, time))
        return seen

    def items(row: Row) -> list[tuple[Any, int]]:
        names = ("candidates.item", "history.clicks.item", "history.likes.item")
        return [(item, row["time"]) for name in names for item in row[name]]

    users = pq.read_table(grown_log.path / "vocab" / "user.parquet")
    found = zip(users["value"].to_pylist(), users["first_seen_ms"].to_pylist(), strict=True)
    assert dict(list(found)[2:]) == first(lambda row: [(row["user"], row["time"])])
    table = pq.read_table(grown_log.path / "items.parquet")
    seen = first(items)
    for item, time in zip(
        table["item_id"].to_pylist()[2:], table["first_seen_ms"].to_pylist()[2:], strict=True
    ):
        assert time == seen.get(item)


def test_append_after_side_columns_and_statistics(
    base_log: Log,
    later: pa.Table,
    many_rows: list[Row],
    stored_rows: Callable[[Log], list[Row]],
    small_groups: Callable[..., Any],
) -> None:
    late = pa.table(
        {"request_id": ["r0", "r1"], "item": [0, 0], "click": [1.0, 1.0], "rated": [3.0, None]}
    )
    join_labels(base_log.path, late, observed_until=many_rows[29]["time"] + 10**7)
    compute_stats(base_log.path, ("1d",))
    before = stored_rows(open_log(base_log.path))
    with small_groups():
        append_log(base_log.path, [later])  # the table has no label 'rated': null there
    grown = open_log(base_log.path)
    after = stored_rows(grown)
    assert after[:30] == before
    for row, expected in zip(after[30:], many_rows[30:], strict=True):
        assert row.pop("labels.rated") == [None] * len(expected["candidates.item"])
        assert row == expected
    report = check_log(grown)
    assert report.ok, report.findings
    next(grown.all().batches(Transforms.fit(grown.all()), 50, prefetch=0))


def test_reader_opened_before_goes_on(
    base_log: Log, later: pa.Table, tensors_of: Callable[..., Any], same: Callable[..., bool]
) -> None:
    transforms = Transforms.fit(base_log["train"], min_count=1)
    expected = tensors_of(base_log.all(), transforms)
    fresh, started = open_log(base_log.path), open_log(base_log.path)
    running = started.all().columns(4)
    next(running)
    append_log(base_log.path, [later])
    join_labels(base_log.path, pa.table({"request_id": ["r1"], "item": [0], "rated": [1.0]}))
    assert fresh.num_requests == 30
    assert sum(columns.num_requests for columns in running) == 26
    again = Transforms.fit(fresh["train"], min_count=1)  # reads vocabularies and items only now
    assert same(tensors_of(fresh.all(), again), expected)


def test_split_of_a_grown_log(grown_log: Log, many_rows: list[Row]) -> None:
    sizes = split_log(grown_log, fractions=(0.8, 0.2), names=("train", "test"))
    assert sum(sizes.values()) == 50
    log = open_log(grown_log.path)
    times = [row["time"] for row in many_rows]
    cut = log["train"].num_requests
    assert times[cut - 1] < times[cut]
    assert check_log(log).ok


def test_copies_that_grew_apart_are_told_apart(
    base_log: Log, later: pa.Table, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(base_log.path, tmp_path / "copy"))
    append_log(base_log.path, [later])
    users = later["user"].to_pylist()
    renamed = pa.array([f"{u}x" if u.startswith("new") else u for u in users[::-1]])
    append_log(other, [later.set_column(later.column_names.index("user"), "user", renamed)])
    mine, theirs = open_log(base_log.path), open_log(other)
    assert mine.schema.lineage == theirs.schema.lineage  # the names alone do not tell
    transforms = Transforms.fit(mine.all(), min_count=1)
    for log in (mine, theirs, mine):
        columns = next(log.all().columns(50))
        seen = transforms.batch(columns, log).inputs.user.categorical[:, 0].numpy()
        raw = log.vocabulary("user").decode(columns.scalars["user"])
        assert (seen == transforms.vocabularies["user"].encode(raw)).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.slice(0, 0), "no request to append"),
        (lambda t: t.set_column(0, "request_id", pa.array(range(20))), "earlier tables had string"),
        (lambda t: t.set_column(1, "user", pa.array(range(20))), "use one type everywhere"),
        (
            lambda t: t.set_column(2, "time", pa.array([1_500_000_000_000] * 20)),
            r"request r30 is of 2017-07-14 02:40:00 UTC, but the log reaches to 2020",
        ),
        (lambda t: t.append_column("colour", pa.array([1] * 20)), "'colour' is not in the schema"),
        (lambda t: t.drop_columns(["candidates.stage"]), "no column 'candidates.stage'"),
    ],
)
def test_bad_requests_leave_the_log_as_it_was(
    base_log: Log,
    later: pa.Table,
    snapshot: Callable[[Path], dict[str, bytes]],
    change: Callable[[pa.Table], pa.Table],
    says: str,
) -> None:
    before = snapshot(base_log.path.parent)
    with pytest.raises(InputError, match=says) as caught:
        append_log(base_log.path, [change(later)], part="day2")
    assert "\n" not in str(caught.value)
    assert snapshot(base_log.path.parent) == before


def test_part_names_are_new(grown_log: Log, later: pa.Table) -> None:
    with pytest.raises(InputError, match="part 'day2' exists already"):
        append_log(grown_log.path, [later], part="day2")


def test_schemas_may_differ_only_by_what_a_log_gains(base_log: Log, later: pa.Table) -> None:
    source = base_log.schema
    late = pa.table({"request_id": ["r1"], "item": [0], "rated": [1.0]})
    join_labels(base_log.path, late)
    compute_stats(base_log.path, ("1d",))
    target = open_log(base_log.path).schema
    assert compatible(source, target) is None
    assert compatible(source, source) is None
    says = compatible(target, source)
    assert says is not None
    assert "'rated'" in says
    replace = msgspec.structs.replace
    more = (*source.features, Feature(name="mood", owner="user", kind="dense"))
    for changed, names in (
        (replace(source, features=more), "user feature 'mood'"),
        (replace(source, features=source.features[:-1]), "'dwell' of 'clicks'"),
        (replace(source, engaged="click"), "'engaged' is click, in the log click or watch >= 10"),
        (replace(source, labels=(*source.labels[:2], Label(name="buy"))), "'buy'"),
        (replace(source, channels=("trend", "ann", "new")), "'new'"),
        (replace(source, has_weight=False), "'has_weight' is False"),
    ):
        says = compatible(changed, target)
        assert says is not None
        assert names in says


def test_requests_of_another_log_come_over(
    base_log: Log,
    make_log: Callable[..., Log],
    many_rows: list[Row],
    rich_items: list[Row],
    stored_rows: Callable[[Log], list[Row]],
) -> None:
    other = make_log(many_rows[30:], rich_items)
    append_log(base_log.path, raw_requests(other), raw_items(other), part="day2")
    assert stored_rows(open_log(base_log.path)) == many_rows
