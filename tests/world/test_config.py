from __future__ import annotations

import pytest

from prerank.config import from_values, to_values
from prerank.errors import InputError
from prerank.world import World


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_items": 0}, "num_items is 0, expected at least 1"),
        ({"num_days": 2}, "num_days is 2, expected at least 3"),
        ({"num_requests": 5}, "num_days is 10, .* at most num_requests"),
        ({"num_ranked": 60}, "num_ranked is 60, more than num_preranked"),
        ({"drift": -0.1}, "drift is -0.1, expected 0 or more"),
        ({"click_noise": 1.5}, "click_noise is 1.5, expected a share"),
        ({"share_popular": 0.9, "share_similar": 0.2}, "more than 1"),
        ({"refresh_minutes": 7}, "refresh_minutes is 7, expected a divisor of 1440"),
        ({"start_ms": 1}, "expected a midnight"),
        ({"ctr": 1.0}, "ctr is 1.0"),
        ({"gap": 0.0}, "gap is 0.0"),
        ({"leak_click": 1.0, "retrieval_score": False}, "write into retrieval_score"),
    ],
)
def test_impossible_values_are_named(values: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        World.Config(**values)


def test_a_misspelt_key_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'num_items'"):
        from_values(World.Config, {"num_itms": 3}, where="recipe")


def test_values_round_trip() -> None:
    config = World.Config(seed=9, gap=2.0, num_pool=3)
    assert from_values(World.Config, to_values(config), where="here") == config
