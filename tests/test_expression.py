from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prerank.errors import InputError
from prerank.expression import evaluate, names

NAN = float("nan")
VALUES = [None, -1.0, 0.0, 0.5, 1.0, 2.0]
Truth = bool | None


def columns(rows: list[dict[str, float | None]]) -> dict[str, Any]:
    return {
        name: np.array([NAN if r[name] is None else r[name] for r in rows], dtype=np.float32)
        for name in ("a", "b", "c")
    }


def read(text: str, **values: float | None) -> Truth:
    row = {"a": None, "b": None, "c": None, **values}
    result = evaluate(text, columns([row]))
    assert result.dtype == np.float32
    assert result.shape == (1,)
    return None if np.isnan(result[0]) else bool(result[0])


def worlds(row: dict[str, float | None]) -> list[dict[str, float]]:
    """Every way the unknown labels might have come out."""
    done: list[dict[str, float]] = [{}]
    for name, value in row.items():
        options = [v for v in VALUES if v is not None] if value is None else [value]
        done = [{**world, name: option} for world in done for option in options]
    return done


# Each label is read once, so that Kleene's logic is exact: unknown means both can happen.
LEAVES = {
    "a": ["a", "a > 0", "a >= 1", "0 < a <= 1", "a == 2", "a != -1"],
    "b": ["b", "b < 1", "not b", "1 > b", "b >= 0.5"],
    "c": ["c", "-1 < c", "c <= 0"],
}


@st.composite
def expressions(draw: st.DrawFn, leaves: tuple[str, ...] = ("a", "b", "c")) -> str:
    if len(leaves) == 1:
        text = draw(st.sampled_from(LEAVES[leaves[0]]))
    else:
        cut = draw(st.integers(1, len(leaves) - 1))
        left, right = draw(expressions(leaves[:cut])), draw(expressions(leaves[cut:]))
        text = f"({left}) {draw(st.sampled_from(['and', 'or']))} ({right})"
    return f"not ({text})" if draw(st.booleans()) else text


@given(expressions(), st.lists(st.tuples(*[st.sampled_from(VALUES)] * 3), min_size=1, max_size=8))
def test_kleene_is_what_all_worlds_agree_on(text: str, values: list[tuple[Any, ...]]) -> None:
    rows = [dict(zip("abc", v, strict=True)) for v in values]
    result = evaluate(text, columns(rows))
    for row, got in zip(rows, result, strict=True):
        outcomes = {bool(eval(text, {}, _Worldly(world))) for world in worlds(row)}
        expected = NAN if len(outcomes) == 2 else float(outcomes.pop())
        np.testing.assert_equal(float(got), expected)


class _Worldly(dict[str, Any]):
    """Names for Python's own evaluation, where a bare label means "label > 0"."""

    def __getitem__(self, name: str) -> Any:
        return _Label(super().__getitem__(name))


class _Label(float):
    def __bool__(self) -> bool:
        return self > 0


TRUTH: tuple[Truth, ...] = (True, False, None)
AS_LABEL = {True: 1.0, False: 0.0, None: None}


@pytest.mark.parametrize("a", TRUTH)
@pytest.mark.parametrize("b", TRUTH)
def test_truth_table(a: Truth, b: Truth) -> None:
    both = False if a is False or b is False else None if a is None or b is None else True
    either = True if a or b else None if a is None or b is None else False
    values = {"a": AS_LABEL[a], "b": AS_LABEL[b]}
    assert read("a and b", **values) is both
    assert read("a or b", **values) is either
    assert read("not a", **values) is (None if a is None else not a)
    assert read("not (a or b)", **values) is read("not a and not b", **values)


def test_a_chain_of_comparisons_is_all_of_them() -> None:
    assert read("0 < a < b", a=1, b=2) is True
    assert read("0 < a < b", a=1, b=1) is False
    assert read("0 < a < b", a=-1) is False
    assert read("0 < a < b", a=1) is None


def test_numbers_may_be_negative_and_real() -> None:
    assert read("a >= -1.5", a=-1.5) is True
    assert read("a > 1e3", a=1000) is False
    assert read("a >= 10_000", a=10_000) is True


def test_unobserved_is_unknown_even_when_compared_for_inequality() -> None:
    for text in ("a != 1", "a == a", "not a == 1", "a < 1"):
        assert read(text) is None


def test_names_in_order_of_appearance() -> None:
    assert names("c or (a > 1 and c) or not b") == ("c", "a", "b")
    assert names("(\nzeta or\nalpha)") == ("zeta", "alpha")


@pytest.mark.parametrize(
    "text",
    [
        "1", "True", "None", "...", "'a'", "-a", "~a", "a + b", "a * 2 > 1", "a > b + 1", "f(a)",
        "a.b", "a[0]", "[a]", "(a, b)", "{a}", "a if b else c", "lambda: a", "a is b", "a in b",
        "a > True", "a == None", "a > 'x'", "a > 1j", "a > -b", "a > +1", "(a or b) > 1",
        "a > (b > 1)", "1 > 0", "a or 1 > 0", "f'{a}'", "(a := 1)", "[x for x in a]", "*a",
    ],
)  # fmt: skip
def test_what_is_not_allowed_is_named(text: str) -> None:
    with pytest.raises(InputError, match=r"^expression '.*; expected "):
        names(text)
    with pytest.raises(InputError):
        evaluate(text, columns([{"a": 1.0, "b": 1.0, "c": 1.0}]))


@pytest.mark.parametrize(
    "text",
    ["", " ", "a and", "a b", "a; b", "a = 1", "a\nb", "a\0", "(a", "a > 1" + "0" * 400,
     "(" * 500 + "a" + ")" * 500, "not " * 5000 + "a", "1or a"],
)  # fmt: skip
def test_what_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"not understood; expected labels, numbers, comparisons"):
        names(text)


def test_unknown_label_is_named_with_those_there_are() -> None:
    with pytest.raises(InputError, match=r"expression 'clik': no label 'clik'; labels here: a, b"):
        evaluate("clik", {"b": np.zeros(1, np.float32), "a": np.zeros(1, np.float32)})
    with pytest.raises(InputError, match=r"labels here: none"):
        evaluate("clik", {})


def test_no_candidates() -> None:
    assert evaluate("a or b > 1", columns([])).shape == (0,)
