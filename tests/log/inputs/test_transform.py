"""Transforms: hand formulas, fitted on training rows only, carried to other logs by raw value."""

from __future__ import annotations

import datetime as dt
import math
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prerank.batch import RequestBatch
from prerank.errors import InputError
from prerank.log import Log, Part, Transforms
from prerank.schema import Feature, Schema

Row = dict[str, Any]
MS_PER_DAY = 86_400_000


def _batch(part: Part, transforms: Transforms) -> RequestBatch:
    (batch,) = part.batches(transforms, 10**6, prefetch=0)
    return batch


def _with(schema: Schema, name: str, *transforms: Any) -> Schema:
    """The schema with one dense feature transformed."""
    features = tuple(
        msgspec.structs.replace(f, transforms=transforms) if f.name == name else f
        for f in schema.features
    )
    return msgspec.structs.replace(schema, features=features)


def _train_test(log_rows: list[Row]) -> dict[str, Any]:
    half = len(log_rows) // 2
    return {"train": np.arange(half), "test": np.arange(half, len(log_rows))}


def _affinities(rows: list[Row]) -> list[float]:
    return [v for row in rows for v in row["candidates.affinity"] if v is not None]


@pytest.mark.parametrize("chain", [("standard",), ("log1p", "standard"), ("log1p",), ()])
def test_dense_values_by_hand(
    make_log: Callable[..., Log], make_rows: Any, schema: Schema, chain: tuple[str, ...]
) -> None:
    rows = make_rows(40, seed=8)
    log = make_log(rows, schema=_with(schema, "affinity", *chain), splits=_train_test(rows))

    def before(value: float) -> float:
        return math.copysign(math.log1p(abs(value)), value) if "log1p" in chain else value

    train = [before(v) for v in _affinities(rows[:20])]
    mean, deviation = statistics.fmean(train), statistics.pstdev(train)
    expected = [
        0.0 if v is None else (before(v) - mean) / deviation if "standard" in chain else before(v)
        for row in rows
        for v in row["candidates.affinity"]
    ]
    dense = _batch(log.all(), Transforms.fit(log["train"])).inputs.candidate.dense
    np.testing.assert_allclose(dense[:, 1], expected, rtol=1e-5, atol=1e-6)
    missing = [v is None for row in rows for v in row["candidates.affinity"]]
    assert dense[:, 3].tolist() == missing


def test_quantile_is_the_share_of_training_values_below(
    make_log: Callable[..., Log], make_rows: Any, schema: Schema
) -> None:
    rows = make_rows(60, seed=9)
    log = make_log(rows, schema=_with(schema, "affinity", "quantile"), splits=_train_test(rows))
    dense = _batch(log.all(), Transforms.fit(log["train"])).inputs.candidate.dense[:, 1].tolist()
    train = _affinities(rows[:30])
    assert len(set(train)) == len(train) > 50
    values = [v for row in rows for v in row["candidates.affinity"]]
    for value, found in zip(values, dense, strict=True):
        if value is not None:
            below = sum(t < value for t in train) / (len(train) - 1)
            assert 0.0 <= found <= 1.0
            assert found == pytest.approx(min(below, 1.0), abs=1.0 / 254 + 1.0 / len(train))
    assert dense[values.index(min(train))] == 0.0
    assert dense[values.index(max(train))] == 1.0


@pytest.fixture(scope="module")
def rich_transforms(rich_log: Log) -> Transforms:
    """Fitted on the whole rich log."""
    return Transforms.fit(rich_log.all())


def test_hour_and_weekday_are_those_of_utc(rich_log: Log, rich_rows: list[Row]) -> None:
    clock = _batch(rich_log.all(), Transforms.fit(rich_log.all())).inputs.context.categorical
    for row, (hour, weekday) in zip(rich_rows, clock[:, :2].tolist(), strict=True):
        moment = dt.datetime.fromtimestamp(row["time"] / 1000, tz=dt.UTC)
        assert (hour, weekday) == (2 + moment.hour, 2 + moment.weekday())
    assert clock[:, 1].unique().numel() > 2


@given(time=st.integers(-(2**40), 2**42))
def test_clock_of_any_moment(rich_log: Log, rich_transforms: Transforms, time: int) -> None:
    moment = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(milliseconds=time)
    (columns,) = rich_log.read([0])
    columns.scalars["time"] = np.full(columns.num_requests, time)
    for group in columns.groups.values():
        if "time" in group.values:
            group.values["time"] = np.full(len(group.values["time"]), time - 1)
    clock = rich_transforms.batch(columns, rich_log).inputs.context.categorical
    assert clock[0, :2].tolist() == [2 + moment.hour, 2 + moment.weekday()]


def test_age_of_counts_days_from_the_items_time(
    rich_log: Log, rich_rows: list[Row], rich_items: list[Row]
) -> None:
    born = {item["item_id"]: item["born"] for item in rich_items}
    dense = _batch(rich_log.all(), Transforms.fit(rich_log.all())).inputs.candidate.dense
    pairs = [(row["time"], item) for row in rich_rows for item in row["candidates.item"]]
    unknown = 0
    for (time, item), (value, missing) in zip(pairs, dense[:, [0, 2]].tolist(), strict=True):
        if born.get(item) is None:
            assert (value, missing) == (0.0, 1.0)
            unknown += 1
        else:
            assert missing == 0.0
            assert value == pytest.approx((time - born[item]) / MS_PER_DAY, rel=1e-6)
    assert 0 < unknown < len(pairs)


def test_an_item_from_the_future_is_of_age_zero(
    make_log: Callable[..., Log], rich_rows: list[Row], rich_items: list[Row]
) -> None:
    items = [item | {"born": 1e13} for item in rich_items]
    log = make_log(rich_rows, items)
    dense = _batch(log.all(), Transforms.fit(log.all())).inputs.candidate.dense
    assert (dense[:, 0] == 0).all()
    assert (dense[:, 2] == 0).any()


def test_item_features_are_fitted_on_items_met_in_training(
    make_log: Callable[..., Log], rich_rows: list[Row], rich_items: list[Row], schema: Schema
) -> None:
    train = rich_rows[:4]
    log = make_log(
        rich_rows,
        rich_items,
        schema=_with(schema, "price", "standard"),
        splits={"train": np.arange(4)},
    )
    met = {i for row in train for k in row if k.endswith(".item") for i in row[k]}
    prices = [i["price"] for i in rich_items if i["item_id"] in met and i["price"] is not None]
    assert 2 <= len(prices) < 9
    fit = Transforms.fit(log["train"]).dense["price"]
    assert fit.mean == pytest.approx(statistics.fmean(prices))
    assert fit.std == pytest.approx(statistics.pstdev(prices))


def test_test_rows_change_nothing(
    make_log: Callable[..., Log], make_rows: Any, rich_items: list[Row], schema: Schema
) -> None:
    """Another test part with the same words in it: the same fit. Another training part: not."""
    transformed = _with(_with(schema, "affinity", "quantile"), "age", "standard")

    def fit(rows: list[Row]) -> Transforms:
        log = make_log(rows, rich_items, schema=transformed, splits=_train_test(rows), chunk=100)
        return Transforms.fit(log["train"])

    def change(row: Row) -> Row:
        affinities = [None if v is None else 10 * v + 3 for v in row["candidates.affinity"]]
        return row | {
            "age": 77.0,
            "candidates.affinity": affinities,
            "history.clicks.dwell": [5.0 for _ in row["history.clicks.dwell"]],
        }

    rows = make_rows(40, seed=21)
    plain = fit(rows)
    other = fit(rows[:20] + [change(row) for row in rows[20:]])
    assert other.dense == plain.dense
    for name, table in plain.rows.items():
        np.testing.assert_array_equal(other.rows[name], table)
    trained = fit([change(row) for row in rows[:20]] + rows[20:])
    assert trained.dense["age"] != plain.dense["age"]
    assert trained.dense["candidates.affinity"] != plain.dense["candidates.affinity"]


@pytest.mark.parametrize("min_count", [1, 2, 5, 9])
def test_ids_seen_too_rarely_in_training_are_unknown(
    make_log: Callable[..., Log], make_rows: Any, min_count: int
) -> None:
    rows = make_rows(30, seed=4)
    log = make_log(rows, splits=_train_test(rows))
    transforms = Transforms.fit(log["train"], min_count=min_count)
    seen: dict[str, Counter[Any]] = {n: Counter() for n in ("item", "user", "slot", "act")}
    for row in rows[:15]:
        seen["user"][row["user"]] += len(row["candidates.item"])  # impressions, as for items
        for name in row:
            if name.endswith(".item"):
                seen["item"].update(row[name])
        seen["slot"].update(row["candidates.slot"])
        seen["act"].update(row["history.clicks.act"])
    for name, counts in seen.items():
        raw = transforms.vocabularies[name].values.to_pylist()
        expected = [0, 1] + [k if counts[raw[k]] >= min_count else 1 for k in range(2, len(raw))]
        assert transforms.rows[name].tolist() == expected
    batch = _batch(log.all(), transforms)
    items = batch.inputs.items.categorical[:, 0][batch.inputs.item_of].tolist()
    raw_items = [i for row in rows for i in row["candidates.item"]]
    for found, item in zip(items, raw_items, strict=True):
        assert (found == 1) == (seen["item"][item] < min_count)


def test_only_the_last_events_of_a_history_are_kept_and_counted(
    rich_log: Log, rich_rows: list[Row]
) -> None:
    transforms = Transforms.fit(rich_log.all(), min_count=1, max_history=2)
    history = _batch(rich_log.all(), transforms).inputs.history["clicks"]
    ages = [row["time"] - t for row in rich_rows for t in row["history.clicks.time"][-2:]]
    assert history.age_ms.values.tolist() == ages
    assert int(history.item_of.lengths.max()) == 2


def _translate(batch: RequestBatch, transforms: Transforms) -> list[Any]:
    """A batch's item, user and slot columns as raw values of the training vocabulary."""
    names = {"item": batch.inputs.items.categorical[:, 0][batch.inputs.item_of]}
    names["user"] = batch.inputs.user.categorical[:, 0]
    names["slot"] = batch.inputs.candidate.categorical[:, 0]
    result = []
    for name, index in names.items():
        raw = transforms.vocabularies[name].values.to_pylist()
        result.append([(int(i) if i < 2 else raw[i]) for i in index.tolist()])
    return result


def test_another_log_is_mapped_by_raw_value(
    make_log: Callable[..., Log], make_rows: Any, rich_items: list[Row]
) -> None:
    trained_rows, other_rows = make_rows(25, seed=11), make_rows(25, seed=12)
    other_rows = [
        row | {"user": f"{row['user']}{'' if k % 3 else 'x'}"} for k, row in enumerate(other_rows)
    ]
    trained, other = make_log(trained_rows, rich_items), make_log(other_rows, rich_items[::-1])
    assert other.items.ids.values != trained.items.ids.values
    transforms = Transforms.fit(trained.all(), min_count=1)
    items, users, slots = _translate(_batch(other.all(), transforms), transforms)
    known_items = set(transforms.vocabularies["item"].values.to_pylist())
    known_users = {row["user"] for row in trained_rows}
    wanted = [i if i in known_items else 1 for row in other_rows for i in row["candidates.item"]]
    assert items == wanted
    assert users == [row["user"] if row["user"] in known_users else 1 for row in other_rows]
    assert 1 in users
    assert slots == [0 if s is None else s for row in other_rows for s in row["candidates.slot"]]
    # items keep their own features although they are numbered differently
    price = {item["item_id"]: item["price"] for item in rich_items}
    batch = _batch(other.all(), transforms)
    dense = batch.inputs.items.dense[batch.inputs.item_of].tolist()
    raw = [i for row in other_rows for i in row["candidates.item"]]
    for item, (value, missing) in zip(raw, dense, strict=True):
        assert (value, missing) == (price.get(item) or 0.0, float(price.get(item) is None))


def test_a_grown_vocabulary_keeps_its_rows(make_log: Callable[..., Log], make_rows: Any) -> None:
    rows = make_rows(40, seed=13)
    for row in rows[20:]:
        row["user"] = row["user"].replace("u4", "u9")
    short, long = make_log(rows[:20]), make_log(rows)
    transforms = Transforms.fit(short.all(), min_count=2)
    theirs, ours = long.vocabulary("user"), transforms.vocabularies["user"]
    assert len(theirs) > len(ours)
    assert theirs.digest(len(ours)) == ours.digest()
    first = _batch(short.all(), transforms)
    again = transforms.batch(next(long.all().columns(20)), long)
    assert torch.equal(first.inputs.user.categorical, again.inputs.user.categorical)
    assert _translate(first, transforms) == _translate(again, transforms)
    users = _translate(_batch(long.all(), transforms), transforms)[1]
    assert users[20:] == [1 if row["user"] == "u9" else row["user"] for row in rows[20:]]


def _schema_with(schema: Schema, *features: Feature) -> Schema:
    named = {f.name for f in features}
    kept = tuple(f for f in schema.features if f.name not in named)
    return msgspec.structs.replace(schema, features=kept + features)


def test_a_log_with_other_features_is_refused(
    make_log: Callable[..., Log], rich_log: Log, rich_rows: list[Row], schema: Schema
) -> None:
    transforms = Transforms.fit(rich_log.all())
    lacking = msgspec.structs.replace(
        schema, features=tuple(f for f in schema.features if f.name != "slot")
    )
    rows = [{k: v for k, v in row.items() if k != "candidates.slot"} for row in rich_rows]
    log = make_log(rows, schema=lacking)
    with pytest.raises(
        InputError, match="no candidate feature 'slot', which the model was trained"
    ):
        transforms.assembler(log)
    differing = _schema_with(
        schema, Feature(name="affinity", owner="candidate", kind="dense", transforms=("log1p",))
    )
    log = make_log(rich_rows, schema=differing)
    with pytest.raises(InputError, match="candidate feature 'affinity' is declared differently"):
        transforms.assembler(log)


def test_more_features_or_other_labels_are_no_hindrance(
    make_log: Callable[..., Log], rich_log: Log, rich_rows: list[Row], schema: Schema
) -> None:
    richer = _schema_with(schema, Feature(name="extra", owner="context", kind="dense"))
    rows = [row | {"extra": 1.0} for row in rich_rows]
    transforms = Transforms.fit(rich_log.all())
    found = _batch(make_log(rows, schema=richer).all(), transforms)
    plain = _batch(rich_log.all(), transforms)
    assert torch.equal(found.inputs.context.dense, plain.inputs.context.dense)


def test_save_and_load_give_equal_batches(rich_log: Log, tmp_path: Path) -> None:
    transforms = Transforms.fit(rich_log["train"], min_count=3, max_history=3)
    transforms.save(tmp_path)
    again = Transforms.load(tmp_path)
    assert again.dense == transforms.dense
    assert (again.schema, again.min_count, again.max_history) == (rich_log.schema, 3, 3)
    a, b = (_batch(rich_log["test"], t) for t in (transforms, again))
    for left, right in (
        (a.inputs.user.dense, b.inputs.user.dense),
        (a.inputs.candidate.dense, b.inputs.candidate.dense),
        (a.inputs.candidate.categorical, b.inputs.candidate.categorical),
        (a.inputs.items.categorical, b.inputs.items.categorical),
        (
            a.inputs.history["clicks"].categorical.values,
            b.inputs.history["clicks"].categorical.values,
        ),
    ):
        assert torch.equal(left, right)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.slice(1), "column 'index' is not 0, 1, 2"),
        (lambda t: t.slice(0, t.num_rows - 1), "column 'row' does not fit"),
        (lambda t: t.drop(["row"]), "no column 'row'"),
        (
            lambda t: t.set_column(2, "row", pa.array([99] * t.num_rows, pa.int32())),
            "column 'row' does not fit",
        ),
    ],
)
def test_damaged_transforms_are_refused(
    rich_log: Log, tmp_path: Path, change: Callable[[pa.Table], pa.Table], says: str
) -> None:
    Transforms.fit(rich_log["train"]).save(tmp_path)
    path = tmp_path / "vocab" / "user.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(InputError, match=says) as error:
        Transforms.load(tmp_path)
    assert str(path) in str(error.value)
    path.unlink()
    with pytest.raises(InputError, match="not found"):
        Transforms.load(tmp_path)
    (tmp_path / "transforms.json").write_text("{}")
    with pytest.raises(InputError, match="missing required field"):
        Transforms.load(tmp_path)
