from __future__ import annotations

import json

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
    with pytest.raises(InputError, match=r"known: hidden, inner, weights, width"):
        from_values(Outer, {"zzz": 3}, where="recipe")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": "3"}, r"^here: Expected `int`, got `str` - at `\$.width`"),
        ({"width": 3.5}, r"^here: Expected `int`, got `float`"),
        ({}, r"^here: Object missing required field `width`"),
        ({"width": 3, "hidden": [1, "x"]}, r"at `\$.hidden\[1\]`"),
        ({"width": 3, "inner": {"rat": 1.0}}, r"unknown field `rat` - at `\$.inner`"),
        ({"width": None}, r"Expected `int`, got `null`"),
    ],
)
def test_bad_values_say_where(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        from_values(Outer, values, where="here")
    assert "\n" not in str(caught.value)
