from __future__ import annotations

from typing import Any

import msgspec
import pytest

from prerank.config import from_values, to_values
from prerank.errors import InputError
from prerank.schema import NUM_RESERVED, Feature, Label, Lineage, Schema, Task

CLICK = (Label(name="click"),)


def schema(*features: Feature, **options: Any) -> Schema:
    return Schema(**{"features": features, "labels": CLICK, **options})


def feature(name: str, owner: Any, kind: Any, **options: Any) -> Feature:
    return Feature(name=name, owner=owner, kind=kind, **options)


PUBLISHED = feature("published_ms", "item", "dense")
FULL = schema(
    feature("item", "item", "categorical"),
    feature("category", "item", "categorical"),
    feature("tags", "item", "multi", vocabulary="words"),
    feature("image", "item", "vector", dim=4),
    PUBLISHED,
    feature("user", "user", "categorical"),
    feature("words", "user", "multi"),
    feature("hour", "context", "categorical", transforms=("hour",)),
    feature("weekday", "context", "categorical", transforms=("weekday",), vocabulary="day"),
    feature("age", "candidate", "dense", transforms=("age_of", "log1p"), of="published_ms"),
    feature("price", "candidate", "dense", transforms=("log1p", "standard")),
    feature("watch", "history", "dense", stream="views"),
    feature("action", "history", "categorical", stream="buys"),
    streams=("views", "buys"),
    labels=(Label(name="click"), Label(name="buy", window_ms=1000)),
    tasks=(Task(name="ctr", positive="click"), Task(name="cvr", positive="click and buy")),
    ranks=("rank", "exposed"),
    vocabularies={"item": 50},
    lineage=Lineage(log_id="x", notes=("made up",)),
)


def test_schema_round_trips_through_json() -> None:
    text = msgspec.json.encode(FULL)
    assert msgspec.json.decode(text, type=Schema) == FULL
    assert from_values(Schema, to_values(FULL), where="schema.json") == FULL


def test_features_are_found_by_owner_kind_and_stream() -> None:
    assert [f.name for f in FULL.of("item", "categorical")] == ["item", "category"]
    assert [f.name for f in FULL.of("history", "dense", "views")] == ["watch"]
    assert FULL.of("history", "dense", "buys") == ()
    assert [f.name for f in FULL.of("candidate", "dense")] == ["age", "price"]


def test_an_item_time_that_only_carries_an_age_is_not_visible() -> None:
    assert FULL.of("item", "dense") == ()
    assert schema(PUBLISHED).of("item", "dense") == (PUBLISHED,)


def test_ids_clocks_and_ages_have_no_column() -> None:
    without = {f.name for f in FULL.features if not f.stored}
    assert without == {"item", "user", "hour", "weekday", "age"}
    columns = {f.name: f.column for f in FULL.features if f.stored}
    assert columns["watch"] == "history.views.watch"
    assert columns["price"] == "candidates.price"
    assert columns["category"] == "category"
    assert [f.name for f in FULL.stored("user", "candidate")] == ["words", "price"]


def test_vocabularies_may_be_shared_and_clocks_have_their_own_size() -> None:
    assert [f.vocab for f in FULL.of("item", "multi")] == ["words"]
    assert FULL.size("item") == 50
    assert FULL.size("hour") == 24 + NUM_RESERVED
    assert FULL.size("day") == 7 + NUM_RESERVED
    assert FULL.size("category") == NUM_RESERVED


def test_without_tasks_the_one_output_is_engaged() -> None:
    assert schema(engaged="click > 1").task_names == ("engaged",)
    assert schema(engaged="click > 1").task_expressions == ("click > 1",)
    assert FULL.task_names == ("ctr", "cvr")
    assert FULL.task_expressions == ("click", "click and buy")


def test_sources_run_from_easy_to_hard() -> None:
    assert FULL.source_names == ("random", "prerank", "rank", "exposed")
    assert [s for stages in FULL.sources.values() for s in stages] == list(FULL.stages)
    schema().sources.clear()
    assert schema().sources, "the default is not shared"


NOW = feature("age", "candidate", "dense", transforms=("age_of",), of="published_ms")


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        ([PUBLISHED, PUBLISHED], {}, r"2 item features are named 'published_ms'; rename one"),
        (
            [feature("w", "history", "dense", stream="view")],
            {"streams": ("views",)},
            r"feature 'w': no history stream 'view'; did you mean 'views'\?",
        ),
        (
            [feature("w", "user", "dense", stream="views")],
            {"streams": ("views",)},
            r"feature 'w': only history features name a stream",
        ),
        (
            [feature("h", "user", "categorical", transforms=("hour",))],
            {},
            r"feature 'h': hour makes a categorical context feature",
        ),
        (
            [feature("h", "context", "dense", transforms=("weekday",))],
            {},
            r"feature 'h': weekday makes a categorical context feature",
        ),
        (
            [PUBLISHED, feature("a", "item", "dense", transforms=("age_of",), of="published_ms")],
            {},
            r"feature 'a': age_of makes a dense candidate feature and is its first transform",
        ),
        (
            [
                PUBLISHED,
                feature(
                    "a", "candidate", "dense", transforms=("log1p", "age_of"), of="published_ms"
                ),
            ],
            {},
            r"feature 'a': age_of makes a dense candidate feature and is its first transform",
        ),
        ([NOW], {}, r"feature 'age': age_of needs 'of', a dense item feature in ms; none are"),
        (
            [PUBLISHED, feature("a", "candidate", "dense", transforms=("age_of",), of="publish")],
            {},
            r"a dense item feature in ms; did you mean 'published_ms'\?",
        ),
        (
            [feature("c", "item", "categorical", transforms=("log1p",))],
            {},
            r"feature 'c': log1p applies to dense features, not categorical",
        ),
        (
            [feature("p", "item", "dense", transforms=("standard", "quantile"))],
            {},
            r"feature 'p': standard and quantile exclude each other",
        ),
        (
            [feature("t", "candidate", "multi")],
            {},
            r"feature 't': a candidate feature is categorical or dense, not multi",
        ),
        (
            [feature("v", "history", "vector", stream="views", dim=3)],
            {"streams": ("views",)},
            r"feature 'v': a history feature is categorical or dense, not vector",
        ),
        ([feature("v", "item", "vector")], {}, r"feature 'v': 'dim' is given for a vector"),
        ([feature("v", "item", "dense", dim=3)], {}, r"feature 'v': 'dim' is given for a vector"),
        ([], {"stages": ()}, r"stages must be distinct and not empty, got \(\)"),
        ([], {"stages": ("a", "a")}, r"stages must be distinct and not empty"),
        (
            [],
            {"sources": {"hard": ("ranked",)}},
            r"source 'hard' names stage 'ranked'; did you mean 'rank'\?",
        ),
        (
            [],
            {"sources": {"a": ("rank",), "b": ("pool", "rank")}},
            r"stage 'rank' is in two sources, 'a' and 'b'",
        ),
        ([], {"ranks": ("expose",)}, r"rank of stage 'expose'; did you mean 'exposed'\?"),
        (
            [],
            {"engaged": "clik"},
            r"expression 'clik' reads label 'clik', which is not declared; did you mean 'click'\?",
        ),
        (
            [],
            {"tasks": (Task(name="t", positive="click and buy"),)},
            r"expression 'click and buy' reads label 'buy', which is not declared",
        ),
        ([], {"engaged": "click +"}, r"expression 'click \+': not understood"),
        (
            [feature("time", "context", "dense")],
            {},
            r"context feature 'time': the log has a column of that name already",
        ),
        (
            [feature("score.x", "candidate", "dense")],
            {},
            r"candidate feature 'score.x': the log has a column of that name already",
        ),
        (
            [feature("age", "user", "dense"), feature("age", "context", "dense")],
            {},
            r"two features share column 'age'",
        ),
        ([], {"channels": ("a", "a")}, r"channel 'a' is declared twice"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    features: list[Feature], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        schema(*features, **options)
    assert "\n" not in str(caught.value)
    # The same holds for a file: the error is not lost in the decoder.
    values = {"labels": [{"name": "click"}], **{k: to_plain(v) for k, v in options.items()}}
    values["features"] = [to_values(f) for f in features]
    with pytest.raises(InputError, match=message):
        msgspec.json.decode(msgspec.json.encode(values), type=Schema)


def to_plain(value: Any) -> Any:
    return msgspec.to_builtins(value)


def test_equal_names_of_different_owners_are_fine() -> None:
    both = schema(feature("age", "user", "dense"), feature("age", "item", "dense"))
    assert len(both.features) == 2


def test_unknown_fields_and_words_are_refused() -> None:
    with pytest.raises(InputError, match=r"schema.json: unknown key 'feature'; did you mean"):
        from_values(Schema, {"feature": []}, where="schema.json")
    values = {"features": [{"name": "a", "owner": "thing", "kind": "dense"}]}
    with pytest.raises(
        InputError, match=r"schema.json: 'features.0.owner' is 'thing'; known: candidate"
    ):
        from_values(Schema, values, where="schema.json")
