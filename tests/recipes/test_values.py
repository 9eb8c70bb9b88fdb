from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prerank.errors import InputError
from prerank.recipes import parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("-2.5e+2", -250.0),
        ("+1e2", 100.0),
        (".5e1", 5.0),
        ("1.e2", 100.0),
        ("3", 3),
        ("0.5", 0.5),
        ("e3", "e3"),
        ("1e", "1e"),
        ("1e3x", "1e3x"),
        ("'1e3'", "1e3"),
        (".inf", math.inf),
        ("null", None),
        ("", None),
        ("[a, 1e2]", ["a", 100.0]),
    ],
)
def test_numbers_are_what_people_mean(text: str, value: object) -> None:
    found = parse_yaml(text, "here")
    assert found == value
    assert type(found) is type(value)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text("ab é\n"),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("ab", min_size=1), inner),
    max_leaves=8,
)


@given(plain)
def test_json_is_yaml(value: object) -> None:
    found = parse_yaml(json.dumps(value, allow_nan=False), "here") if _finite(value) else value
    assert found == value


def _finite(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "^here: not valid YAML: line 3: the key 'a' stands twice$"),
        ("x:\n  a: 1\n  a: 1\n", "line 3: the key 'a' stands twice$"),
        ("[{a: 1, a: 2}]", "^here: not valid YAML: the key 'a' stands twice$"),
        ("a: [1\nb: 2\n", "^here: not valid YAML: line 2: "),
        ("!!python/name:os.system", "^here: not valid YAML: could not determine a constructor"),
        ("a: !mine 1\n", "^here: not valid YAML: line 1: could not determine a constructor"),
        ("a: 1\n---\nb: 2\n", "^here: not valid YAML: line 2: "),
        ("\x00", "^here: not valid YAML: "),
        ("? [a]\n: 1\n", "^here: not valid YAML: line 1: found unhashable key$"),
        ("a: *b\n", "^here: not valid YAML: line 1: found undefined alias 'b'$"),
    ],
)
def test_what_is_wrong_and_where(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_yaml(text, "here")
    assert "\n" not in str(caught.value)


def test_a_key_may_come_again_in_another_mapping_and_by_a_merge() -> None:
    assert parse_yaml("[{a: 1}, {a: 2}]", "here") == [{"a": 1}, {"a": 2}]
    text = "base: &base {a: 1, b: 2}\nmore:\n  <<: *base\n  a: 3\n"
    assert parse_yaml(text, "here")["more"] == {"a": 3, "b": 2}
