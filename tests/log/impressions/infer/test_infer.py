"""Drafts of maps: right for tables as users have them, loadable for any table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prerank.errors import InputError
from prerank.log import open_log
from prerank.log.impressions import from_impressions
from prerank.log.impressions.infer import infer_map, load_map

Write = Callable[..., None]


def test_a_shop_is_understood(tmp_path: Path, write_shop: Write) -> None:
    write_shop(tmp_path / "shop.csv")
    draft = infer_map(tmp_path / "shop.csv")
    m = draft.mapping
    assert m is not None
    assert draft.questions == ()
    assert (m.user, m.item, m.time) == ("Shopper Ref", "SKU Code", "Seen At")
    assert (m.request_id, m.window_ms) == (None, 1_800_000)
    # Seconds on the page are there only where something was bought: an outcome, never a feature.
    assert m.labels == {"did_buy": "did_buy", "secs_on_page": "secs on page"}
    assert m.engaged == "did_buy"
    assert (m.position, m.first_position) == ("slot no", 1)
    kinds = {
        (owner, name): spec.kind
        for owner, specs in m.features.items()
        for name, spec in specs.items()
    }
    assert kinds == {
        ("user", "platform"): "categorical",
        ("user", "country"): "categorical",
        ("item", "dept"): "categorical",
        ("item", "labels"): "multi",
        ("item", "list_price"): "dense",
    }
    assert m.features["item"]["labels"].separator == "|"
    assert "page token: " in draft.text  # left out, and said so
    assert {*draft.evidence} == {
        *("Shopper Ref", "SKU Code", "Seen At", "dept", "labels", "list price", "platform"),
        *("country", "slot no", "did_buy", "secs on page", "page token"),
    }


def test_the_draft_is_used_as_it_is(tmp_path: Path, write_shop: Write) -> None:
    write_shop(tmp_path / "shop.csv", 40)
    draft = infer_map(tmp_path / "shop.csv")
    (tmp_path / "map.yaml").write_text(draft.text)
    mapping = load_map(tmp_path / "map.yaml")
    assert mapping == draft.mapping
    report = from_impressions(tmp_path / "shop.csv", mapping, tmp_path / "log")
    assert report.num_rows == report.num_candidates == draft.num_rows
    assert report.conflicts == {}
    schema = open_log(tmp_path / "log").schema
    assert schema.streams == ("engaged", "shown")


def test_events_without_header_become_labels(tmp_path: Path, write_events: Write) -> None:
    write_events(tmp_path / "e.csv")
    draft = infer_map(tmp_path / "e.csv")
    m = draft.mapping
    assert m is not None
    assert m.header == ("c1", "c2", "c3", "c4", "c5")
    assert (m.user, m.item, m.time, m.time_unit) == ("c1", "c2", "c5", "s")
    assert {name: spec.values for name, spec in m.labels.items() if not isinstance(spec, str)} == {
        name: (name,) for name in ("cart", "fav", "buy")
    }
    assert set(m.engaged.split(" or ")) == {"cart", "fav", "buy"}
    assert set(m.features["item"]) == {"c3"}


def _requests(num: int = 400) -> dict[str, Any]:
    """Rows of ``num`` requests under names that say nothing."""
    draw = np.random.default_rng(3)
    request = np.repeat(np.arange(num), 8)
    item = draw.integers(90, size=num * 8)
    user = (request * 7919) % 61
    return {
        "a": [f"q{k}" for k in request],
        "b": user,
        "c": item,
        "d": 1.7e12 + request * 600_000.0 + np.tile(np.arange(8), num),
        "e": (user * 31) % 5,
        "f": [[int(k) % 7, int(k) % 3] for k in item],
        "g": [[float(k), float(k) / 3, 1.0] for k in item],
        "h": draw.random(num * 8) < 0.2,
        "i": draw.normal(size=num * 8),
        "j": np.repeat(draw.integers(3, size=num), 8),
        "k": [None] * (num * 8),
        "l": ["same"] * (num * 8),
    }


def test_names_are_not_needed_when_values_tell() -> None:
    draft = infer_map(pa.table(_requests()))
    m = draft.mapping
    assert m is not None
    assert (m.request_id, m.user, m.item, m.time, m.time_unit) == ("a", "b", "c", "d", "ms")
    found = {
        name: (owner, spec.kind)
        for owner, specs in m.features.items()
        for name, spec in specs.items()
    }
    assert found == {
        "e": ("user", "categorical"),
        "f": ("item", "multi"),
        "g": ("item", "vector"),
        "i": ("candidate", "dense"),
        "j": ("context", "categorical"),
    }
    assert m.labels == {"h": "h"}
    # A nameless 0/1 column may be a feature: the draft uses it as the label, and asks.
    assert any(question.startswith("h: ") for question in draft.questions)
    assert "k: null in every row" in draft.text
    assert "l: only one value: same" in draft.text


@pytest.mark.parametrize("rate", [0.002, 0.3])
def test_a_rare_label_is_not_taken_for_constant(rate: float) -> None:
    """One purchase in hundreds of rows is the same within nearly every user, and still no trait."""
    columns = _requests(2000)
    draw = np.random.default_rng(1)
    columns["h"] = draw.random(16_000) < rate
    columns["rare trait"] = columns["b"] == 17  # of one user in 61
    draft = infer_map(pa.table(columns))
    assert draft.mapping is not None
    assert draft.mapping.labels == {"h": "h"}
    assert "rare_trait" in draft.mapping.features["user"]


def test_roles_that_nothing_fits_are_asked_for() -> None:
    table = pa.table({"x": [0.5, 1.5, 2.5] * 30, "name": ["a b", "c d", "e f"] * 30})
    draft = infer_map(table)
    assert draft.mapping is None
    asked = " ".join(draft.questions)
    for role in ("user", "item", "time", "label"):
        assert role in asked


def test_a_table_without_labels_asks_for_one(write_shop: Write, tmp_path: Path) -> None:
    columns = _requests()
    del columns["h"]
    draft = infer_map(pa.table(columns))
    assert draft.mapping is None
    assert any("no label found" in question for question in draft.questions)
    # Filling in the commented lines is enough.
    text = draft.text.replace("labels: {}", "labels:\n  fond: {column: e, values: [1]}")
    (tmp_path / "map.yaml").write_text(text.replace("# engaged: click", "engaged: fond"))
    mapping = load_map(tmp_path / "map.yaml")
    assert mapping.engaged == "fond"
    assert from_impressions(pa.table(columns), mapping, tmp_path / "log").num_requests == 400


def test_only_the_first_rows_are_looked_at(tmp_path: Path) -> None:
    table = pa.table(_requests())
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    draft = infer_map(tmp_path / "a.parquet", max_rows=250)
    assert draft.num_rows == 250
    assert "the first 250 rows" in draft.text
    with pytest.raises(InputError, match="no rows; nothing to infer from"):
        infer_map(table.slice(0, 0))


@given(
    st.lists(
        st.text(
            st.characters(min_codepoint=32, blacklist_categories=("Cs", "Cc")),
            min_size=1,
            max_size=12,
        ),
        min_size=12,
        max_size=12,
        unique=True,
    ),
    st.randoms(use_true_random=False),
)
@settings(max_examples=15, deadline=None)
def test_any_names_give_a_draft_that_loads(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], random: Any
) -> None:
    columns = list(_requests(60).values())
    random.shuffle(columns)
    table = pa.table(dict(zip(names, columns, strict=True)))
    draft = infer_map(table)
    path = tmp_path_factory.mktemp("draft") / "map.yaml"
    path.write_text(draft.text, encoding="utf-8")
    if draft.mapping is None:
        assert draft.questions
    else:
        mapping = load_map(path)
        assert mapping == draft.mapping
        assert set(mapping.columns()) <= set(names)
        from_impressions(table, mapping, path.parent / "log")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user: u\nitm: i\n", r"map\.yaml: unknown key 'itm'; did you mean 'item'"),
        (
            "user: u\nitem: i\ntime: t\nwindow_ms: 5\nfeatures: {item: {a: {colum: x}}}\n",
            r"unknown key 'features\.item\.a\.colum'; did you mean 'column'",
        ),
        (
            "user: u\nitem: i\ntime: t\nwindow_ms: 5\nfeatures: {itm: {a: {column: x}}}\n",
            r"'itm'|features",
        ),
        ("user: u\nitem: i\ntime: t\n", r"give either request_id .* or window_ms"),
        ("user: [\n", r"map\.yaml:\d: "),
        ("- a\n", r"map\.yaml: expected keys and values"),
    ],
)
def test_a_bad_map_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        load_map(tmp_path / "map.yaml")
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"no\.yaml: cannot be read"):
        load_map(tmp_path / "no.yaml")


def test_the_real_taobao_file(real_data: Path, tmp_path: Path) -> None:
    path = real_data / "taobao_ub84k" / "UserBehavior_84k.csv.zst"
    if not path.exists():
        pytest.skip("no Taobao sample in the real data")
    draft = infer_map(path)
    m = draft.mapping
    assert m is not None
    assert (m.user, m.item, m.time, m.time_unit) == ("c1", "c2", "c5", "s")
    assert set(m.labels) == {"cart", "fav", "buy"}
    report = from_impressions(path, m, tmp_path / "log")
    assert (report.num_rows, report.num_users) == (84_475, 815)
