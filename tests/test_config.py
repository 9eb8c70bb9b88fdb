from __future__ import annotations

import json
from typing import Literal

import msgspec
import pytest

from prerank.config import Config, from_values, to_values
from prerank.errors import InputError


class Inner(Config, frozen=True):
    rate: float = 0.1


class Outer(Config, frozen=True):
    hidden: tuple[int, ...] = (8, 4)
    width: int
    inner: Inner = Inner()
    weights: dict[str, float] = msgspec.field(default_factory=dict)
    maybe: Inner | None = None
    inners: tuple[Inner, ...] = ()
    named: dict[str, Inner] = msgspec.field(default_factory=dict)
    mode: Literal["fast", "slow"] = "fast"


def test_values_round_trip_through_json() -> None:
    config = Outer(width=3, inner=Inner(rate=0.5), weights={"rank": 2.0})
    values = json.loads(json.dumps(to_values(config)))
    assert from_values(Outer, values, where="recipe") == config


def test_a_configuration_cannot_be_changed_or_given_by_position() -> None:
    with pytest.raises(AttributeError):
        Outer(width=3).width = 4  # type: ignore[misc]
    with pytest.raises(TypeError):
        Outer(3)  # type: ignore[misc]


def test_defaults_are_not_shared() -> None:
    Outer(width=1).weights["rank"] = 2.0
    assert Outer(width=1).weights == {}


def test_a_misspelt_key_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"^recipe a.yaml: unknown key 'widht'; did you mean 'wi"):
        from_values(Outer, {"widht": 3}, where="recipe a.yaml")
    with pytest.raises(
        InputError, match=r"known: hidden, inner, inners, maybe, mode, named, weights, width"
    ):
        from_values(Outer, {"zzz": 3}, where="recipe")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"inner": {"rat": 1.0}}, r"'inner.rat'; did you mean 'rate'\?$"),
        ({"maybe": {"rat": 1.0}}, r"'maybe.rat'; did you mean 'rate'\?$"),
        ({"inners": [{"rate": 1.0}, {"zzz": 1}]}, r"'inners.1.zzz'; known: rate$"),
        ({"named": {"a": {"raet": 1}}}, r"'named.a.raet'; did you mean 'rate'\?$"),
        ({3: 1}, r"'3'; known: hidden, inner, "),
    ],
)
def test_a_misspelt_key_is_found_at_any_depth(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=r"^here: unknown key " + message):
        from_values(Outer, {"width": 3, **values}, where="here")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": "3"}, r"^here: 'width' is '3'; expected int, got str$"),
        ({"width": 3.5}, r"^here: 'width' is 3.5; expected int, got float$"),
        ({"width": None}, r"^here: 'width' is None; expected int, got null$"),
        ({}, r"^here: no 'width'; it must be given$"),
        ({"width": 3, "hidden": [1, "x"]}, r"^here: 'hidden.1' is 'x'; expected int, got str$"),
        ({"width": 3, "hidden": "8"}, r"^here: 'hidden' is '8'; expected array, got str$"),
        ({"width": 3, "inner": 4}, r"^here: 'inner' is 4; expected object, got int$"),
        ({"width": 3, "inner": {"rate": "x"}}, r"^here: 'inner.rate' is 'x'; expected float, "),
        ({"width": 3, "weights": {"a": "x"}}, r"^here: 'weights' is {'a': 'x'}; expected float, "),
        ({"width": 3, "mode": "fats"}, r"^here: 'mode' is 'fats'; did you mean 'fast'\?$"),
        ({"width": 3, "mode": "zz"}, r"^here: 'mode' is 'zz'; known: fast, slow$"),
        ({"width": 3, "mode": 4}, r"^here: 'mode' is 4; expected str, got int$"),
        ({"width": "x" * 500}, r"^here: 'width' is 'x{10,30}\.{3}x{10,30}'; expected int, got"),
    ],
)
def test_bad_values_say_where(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        from_values(Outer, values, where="here")
    assert "\n" not in str(caught.value)
