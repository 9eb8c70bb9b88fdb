"""Vocabularies: first come, first numbered; append-only; never silently wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prerank.errors import InputError
from prerank.log.format.vocab import MISSING_ROW, UNKNOWN_ROW, Vocabulary
from prerank.schema import NUM_RESERVED

INTS = st.lists(st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(0, 5))
TEXTS = st.lists(st.none() | st.text(max_size=3))
BATCHES = st.lists(INTS, max_size=4) | st.lists(TEXTS, max_size=4)


def _array(values: list[Any]) -> pa.Array:
    kind = pa.string() if any(isinstance(v, str) for v in values) else pa.int64()
    return pa.array(values, type=pa.null() if set(values) <= {None} else kind)


@given(BATCHES)
def test_growing_numbers_values_in_order_of_appearance(batches: list[list[Any]]) -> None:
    vocab, expected = Vocabulary("v"), {None: MISSING_ROW}
    for values in batches:
        for value in values:
            expected.setdefault(value, NUM_RESERVED + len(expected) - 1)
        index = vocab.encode(_array(values), grow=True)
        assert index.dtype == np.int32
        assert index.tolist() == [expected[v] for v in values]
    assert len(vocab) == NUM_RESERVED + len(expected) - 1
    for values in batches:  # numbers given once stay
        assert vocab.encode(_array(values)).tolist() == [expected[v] for v in values]
        assert vocab.decode(vocab.encode(_array(values))).to_pylist() == values


def test_a_value_not_known_is_unknown_and_does_not_grow() -> None:
    vocab = Vocabulary("v")
    vocab.encode(pa.array([4, 5]), grow=True)
    assert vocab.encode(pa.array([5, 6, None])).tolist() == [3, UNKNOWN_ROW, MISSING_ROW]
    assert len(vocab) == 4
    assert vocab.decode(np.array([1, 99])).to_pylist() == [None, None]


@given(st.lists(st.tuples(st.none() | st.integers(0, 4), st.integers(-9, 9)), max_size=30))
def test_first_seen_is_the_earliest_time(seen: list[tuple[int | None, int]]) -> None:
    vocab = Vocabulary("v")
    vocab.encode(pa.array([4]), grow=True)  # known, not seen
    for start in range(0, len(seen), 7):
        values, times = zip(*seen[start : start + 7], strict=True)
        vocab.encode(pa.array(values, pa.int64()), grow=True, times=np.array(times))
    expected = {v: min(t for w, t in seen if w == v) for v, _ in seen if v is not None}
    found = dict(
        zip(vocab.values.to_pylist()[2:], vocab.first_seen_ms.to_pylist()[2:], strict=True)
    )
    assert found == {4: None} | expected


@pytest.mark.parametrize(
    "values",
    [
        pa.chunked_array([["b"], ["a", None]]),
        pa.chunked_array([["b", "a", None]], pa.large_string()),
        pa.array(["b", "a", None], pa.string_view()),
        pa.array(["b", "a", None]).dictionary_encode(),
        pa.array(["z", "b", "a", None]).slice(1),
    ],
    ids=str,
)
def test_every_arrow_form_of_the_same_strings_is_the_same(values: Any) -> None:
    vocab = Vocabulary("v")
    assert vocab.encode(values, grow=True).tolist() == [2, 3, 0]
    assert vocab.values.type == pa.string()


def test_small_integers_are_kept_as_int64() -> None:
    vocab = Vocabulary("v")
    vocab.encode(pa.array([3], pa.uint8()), grow=True)
    assert vocab.values.type == pa.int64()
    assert vocab.encode(pa.array([3], pa.int32())).tolist() == [2]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (pa.array([1.5]), "raw values are double; expected integers or strings"),
        (pa.array([True]), "raw values are bool"),
        (pa.array(["x"]), "raw values are string, but earlier ones were int64"),
        (pa.array([2**63], pa.uint64()), "raw values do not fit int64"),
    ],
)
def test_other_types_are_refused_by_name(values: pa.Array, says: str) -> None:
    vocab = Vocabulary("colour")
    vocab.encode(pa.array([1]), grow=True)
    with pytest.raises(InputError, match=f"vocabulary 'colour': {says}"):
        vocab.encode(values, grow=True)


def test_save_and_load(tmp_path: Path) -> None:
    vocab = Vocabulary("v")
    vocab.encode(pa.array(["b", "a"]), grow=True, times=np.array([5, 3]))
    vocab.save(tmp_path / "v.parquet")
    again = Vocabulary.load(tmp_path / "v.parquet", "v")
    assert again.values == vocab.values
    assert again.first_seen_ms == vocab.first_seen_ms
    assert again.encode(pa.array(["c", "a"]), grow=True).tolist() == [4, 3]


def test_a_digest_tells_prefixes_apart() -> None:
    def make(values: list[Any]) -> Vocabulary:
        vocab = Vocabulary("v")
        vocab.encode(pa.array(values), grow=True)
        return vocab

    short, long = make(["a", "b"]), make(["a", "b", "c"])
    assert short.digest() == long.digest(len(short)) != long.digest()
    assert make(["b", "a"]).digest() != short.digest()
    assert make([1, 2]).digest() != make(["1", "2"]).digest()
    assert make(["a\nb"]).digest() != short.digest()


GOOD = {"value": [None, None, "a", "b"], "index": pa.array([0, 1, 2, 3], pa.int32())}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"index": pa.array([0, 1, 3, 2], pa.int32())}, "column 'index' is not 0, 1, 2"),
        ({"index": ["0", "1", "2", "3"]}, "column 'index' is not 0, 1, 2"),
        ({"value": [None, None, "a", "a"]}, "stands twice"),
        ({"value": [None, None, "a", None]}, "is null or stands twice"),
        ({"value": [None, "x", "a", "b"]}, "rows 0 and 1 are reserved"),
        ({"value": [0.5, 1.5, 2.5, 3.5]}, "raw values are double, expected int64 or string"),
        ({"first_seen_ms": ["a"] * 4}, "column 'first_seen_ms' holds string, expected int64"),
        ({"first_seen_ms": None}, "no column 'first_seen_ms'; it has value, index"),
    ],
)
def test_a_damaged_file_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    columns = GOOD | {"first_seen_ms": pa.array([None] * 4, pa.int64())} | change
    path = tmp_path / "v.parquet"
    pq.write_table(pa.table({k: v for k, v in columns.items() if v is not None}), path)
    with pytest.raises(InputError, match=says) as error:
        Vocabulary.load(path, "v")
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
