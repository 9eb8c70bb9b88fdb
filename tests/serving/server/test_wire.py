from __future__ import annotations

import json
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prerank.serving.messages import RankRequest
from prerank.serving.server.config import ServerConfig
from prerank.serving.server.protocol import Refusal
from prerank.serving.server.wire import answer_kind, body_kind, check, decode, encode

PLAIN = {
    "request_id": "r",
    "candidates": {"ids": [3, 1, 2], "features": {"ctr": [0.1, None, 2]}},
    "user": {"id": 7, "features": {"age": 3.5, "likes": ["a", "b"]}},
    "history": {"views": [{"item": 1, "time": 2}, {"item": 3, "time": 4}], "buys": {"item": [1]}},
    "context": {"device": "x"},
    "k": 2,
}


def refused(body: bytes, kind: Any = "json") -> Refusal:
    with pytest.raises(Refusal) as caught:
        decode(body, kind, RankRequest)
    assert "\n" not in caught.value.message
    return caught.value


def test_json_and_msgpack_say_the_same() -> None:
    from_json = decode(json.dumps(PLAIN).encode(), "json", RankRequest)
    from_msgpack = decode(msgspec.msgpack.encode(PLAIN), "msgpack", RankRequest)
    assert from_json == from_msgpack
    assert from_json.candidates.ids == [3, 1, 2]


def test_packed_ids_are_the_ids() -> None:
    packed = struct.pack("<3q", 3, -1, 1 << 40)
    body = msgspec.msgpack.encode({"candidates": {"ids": packed}})
    assert decode(body, "msgpack", RankRequest).candidates.ids == packed


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "not valid json"),
        (b"\xff\xfe", 400, "not valid json"),
        (b'{"candidates":{"ids":[NaN]}}', 400, "not valid json"),
        (b'{"candidates":{"ids":[1]},"budget_ms":Infinity}', 400, "not valid json"),
        (b'{"candidates":{"ids":["\\ud800"]}}', 400, "not valid json"),
        (b'{"candidates":{"ids":[1]}} x', 400, "not valid json"),
        (b"[" * 200_000, 422, "body: expected 'object'"),
        (b'{"user":{"features":{"a":' + b"[" * 200_000, 422, "user.features"),
        (b'{"user":{}}', 422, "candidates"),
        (b'{"candidates":{"ids":[1.5]}}', 422, "candidates.ids[0]: expected 'int | str'"),
        (b'{"candidates":{"ids":[true]}}', 422, "candidates.ids[0]"),
        (b'{"candidates":{"ids":[1],"feat":{}}}', 422, "candidates: object contains unknown"),
        (b'{"candidates":{"ids":[1]},"k":0}', 422, "k: expected 'int' >= 1"),
        (b'{"candidates":{"ids":[1]},"budget_ms":-1}', 422, "budget_ms"),
        (b'{"candidates":{"ids":[1]},"time":99999999999999999999}', 422, "time"),
        (b'{"candidates":{"ids":[' + b"9" * 6000 + b"]}}", 422, "candidates.ids[0]"),
    ],
)
def test_what_is_no_request_is_refused_in_one_line(body: bytes, status: int, says: str) -> None:
    refusal = refused(body)
    assert (refusal.status, says in refusal.message) == (status, True), refusal.message
    assert len(refusal.message) <= 300


@pytest.mark.parametrize(
    "body",
    [
        b'{"candidates":{"ids":[1]},"candidates":{"ids":[2]}}',
        b'{"candidates":{"ids":[1]},"k" : 1, "k":2}',
        b'{"candidates":{"ids":[1]},"user":{"features":{"a":1,"\\u0061":2}}}',
        b'{"candidates":{"ids":[1]},"history":{"v":[{"item":1,"item":2}]}}',
        b'{"candidates":{"ids":["\\":"]},"k":1,"k":2}',
        b'{"candidates":{"ids":[1]},"k":null,"k":null}',
    ],
)
def test_a_key_twice_is_refused(body: bytes) -> None:
    assert json.loads(body)
    assert "twice" in refused(body).message


def test_a_key_twice_is_refused_in_msgpack() -> None:
    inner = b"\x81\xa3ids\x91\x01"
    twice = b"\x82" + 2 * (b"\xaacandidates" + inner)
    assert "twice" in refused(twice, "msgpack").message
    # Longer forms of the same values are not the shortest bytes, and are fine.
    long = b"\xde\x00\x01\xd9\x0acandidates\x81\xa3ids\xdd\x00\x00\x00\x01\xd3" + bytes(7) + b"\x05"
    assert decode(long, "msgpack", RankRequest).candidates.ids == [5]
    longer = b"\xde\x00\x02" + 2 * (b"\xd9\x0acandidates" + inner)
    assert "twice" in refused(longer, "msgpack").message


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
scalars = st.none() | st.booleans() | st.integers(-(1 << 53), 1 << 53) | texts
values = scalars | st.lists(scalars, max_size=3)
requests = st.fixed_dictionaries(
    {"candidates": st.fixed_dictionaries({"ids": st.lists(st.integers(0, 99) | texts)})},
    optional={
        "user": st.fixed_dictionaries({}, optional={"features": st.dictionaries(texts, values)}),
        "context": st.dictionaries(texts, values, max_size=3),
        "history": st.dictionaries(
            texts,
            st.lists(st.dictionaries(texts, scalars, max_size=2), max_size=3)
            | st.dictionaries(texts, st.lists(scalars, max_size=2), max_size=2),
            max_size=2,
        ),
        "k": st.none() | st.integers(1, 5),
        "explain": st.booleans(),
    },
)


@given(requests, st.sampled_from([None, 1]), st.booleans())
def test_no_request_without_a_key_twice_is_refused_for_one(
    value: dict[str, Any], indent: int | None, ascii_only: bool
) -> None:
    body = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode()
    decode(body, "json", RankRequest)
    decode(msgspec.msgpack.encode(value), "msgpack", RankRequest)


@given(requests, st.data())
def test_every_key_twice_is_found(value: dict[str, Any], data: st.DataObject) -> None:
    def objects(inner: Any) -> list[dict[str, Any]]:
        if isinstance(inner, list):
            return [o for part in inner for o in objects(part)]
        if not isinstance(inner, dict):
            return []
        return [inner, *objects(list(inner.values()))]

    chosen = data.draw(st.sampled_from([o for o in objects(value) if o]))
    name = data.draw(st.sampled_from(sorted(chosen)))
    mark = "\u0000twice\u0000"
    chosen[mark] = chosen[name]
    body = json.dumps(value).replace(json.dumps(mark), json.dumps(name)).encode()
    assert "twice" in refused(body).message


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [
        ("application/json", "json"),
        ("Application/JSON; charset=UTF-8", "json"),
        ("application/msgpack", "msgpack"),
        ("application/x-msgpack", "msgpack"),
    ],
)
def test_content_types(content_type: str, kind: str) -> None:
    assert body_kind(content_type) == kind


@pytest.mark.parametrize(
    ("content_type", "encoding"),
    [
        ("", ""),
        ("text/plain", ""),
        ("application/json; charset=latin-1", ""),
        ("application/json", "gzip"),
        ("application/x-www-form-urlencoded", ""),
    ],
)
def test_other_content_types_are_refused(content_type: str, encoding: str) -> None:
    with pytest.raises(Refusal) as caught:
        body_kind(content_type, encoding)
    assert caught.value.status == 415


def test_the_answer_comes_as_accepted_or_as_the_request_came() -> None:
    assert answer_kind("", "msgpack") == "msgpack"
    assert answer_kind("text/html, application/msgpack;q=0.9", "json") == "msgpack"
    assert answer_kind("application/msgpack, application/json", "json") == "json"


def test_limits_are_checked_before_the_engine() -> None:
    config = ServerConfig(max_candidates=2, max_events=3)
    many = decode(b'{"candidates":{"ids":[1,2,3]}}', "json", RankRequest)
    long = {"v": {"item": [1, 2], "time": [1, 2]}, "b": [{"item": 1}, {"item": 2}]}
    past = msgspec.convert({"candidates": {"ids": []}, "history": long}, RankRequest)
    for request in (many, past):
        with pytest.raises(Refusal) as caught:
            check(request, config)
        assert caught.value.status == 413
    endless = decode(
        msgspec.msgpack.encode({"candidates": {"ids": []}, "budget_ms": float("inf")}),
        "msgpack",
        RankRequest,
    )
    with pytest.raises(Refusal, match="finite"):
        check(endless, config)


def test_an_integer_that_msgpack_cannot_hold_is_the_callers_error() -> None:
    with pytest.raises(Refusal) as caught:
        encode({"request_id": 1 << 70}, "msgpack")
    assert caught.value.status == 422
    assert encode({"request_id": 1 << 70}, "json")
