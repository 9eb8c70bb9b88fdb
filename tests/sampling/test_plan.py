"""Options against a log: what they come to, and errors that say what is wrong."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from prerank.config import from_values
from prerank.errors import InputError
from prerank.sampling import HAPSampler
from prerank.sampling.plan import order_of, plan_sources
from prerank.schema import Label, Schema

SMALL = {"quotas": {"rank": 4, "prerank": 6, "random": 2.0}, "floors": {}, "alive": False}


def config(**options: Any) -> HAPSampler.Config:
    return from_values(HAPSampler.Config, {**SMALL, **options}, where="test")


def test_a_source_is_ordered_by_the_stage_that_turned_it_down() -> None:
    """Also in a longer cascade, where a source may be what several stages kept."""
    schema = Schema(
        labels=(Label(name="click"),),
        stages=("pool", "retrieval", "prerank", "coarse", "rank", "rerank", "exposed"),
        sources={
            "random": ("pool",),
            "prerank": ("retrieval",),
            "coarse": ("prerank",),
            "rank": ("coarse", "rank", "rerank"),
            "exposed": ("exposed",),
        },
    )
    orders = {name: order_of(name, schema) for name in schema.source_names}
    assert orders == {
        "random": "retrieval",
        "prerank": "prerank",
        "coarse": "coarse",
        "rank": "rank",
        "exposed": "exposed",
    }


def test_quotas_come_to_numbers_per_request() -> None:
    schema = Schema(labels=(Label(name="click"),), ranks=("prerank", "rank"))
    log: Any = SimpleNamespace(path="log", schema=schema)
    options = config(quotas={"random": 2.0, "rank": 3, "prerank": 1.1})
    plans = plan_sources(options, log)
    assert [plan.name for plan in plans] == ["random", "prerank", "rank"]
    assert [plan.is_drawn for plan in plans] == [True, False, False]
    wanted = [plan.wanted(np.array([0, 1, 10])).tolist() for plan in plans]
    assert wanted == [[0, 2, 20], [0, 2, 11], [3, 3, 3]]


def test_floors_without_members_to_take_need_no_ranks() -> None:
    schema = Schema(labels=(Label(name="click"),))
    log: Any = SimpleNamespace(path="log", schema=schema)
    assert plan_sources(config(quotas={"random": 1.0}, floors={"rank": 50}), log)
    assert plan_sources(config(quotas={"rank": 0}, floors={"rank": 50}), log)
    with pytest.raises(InputError, match=r"does not have \(ranks: none\)"):
        plan_sources(config(quotas={"rank": 1}, floors={"rank": 50}), log)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quotas": {"rnk": 3}}, "quotas: no source 'rnk'; did you mean 'rank'"),
        ({"floors": {"prerankk": 3}}, "floors: no source 'prerankk'; did you mean 'prerank'"),
        ({"orders": {"rank": "rnk"}}, "names stage 'rnk'; did you mean 'rank'"),
        ({"quotas": {"rank": -1}}, "quota of 'rank' is -1; expected 0 or more"),
        ({"floors": {"rank": -1}}, "floor of 'rank' is -1; expected a rank"),
        ({"floor_share": 1.5}, "floor_share is 1.5; expected a share"),
        ({"power": -1.0}, "power is -1.0"),
        ({"quotas": {"random": None}}, "would take all items"),
        ({"floors": {"random": 5}}, "floor of 'random' is 5, but it is drawn"),
        ({"drawn": "exposed", "quotas": {"exposed": 3}}, "cannot be drawn"),
        (
            {"floors": {"rank": 5}, "orders": {"rank": "exposed"}},
            r"needs ranks of stage 'exposed'.*\(ranks: prerank, rank\); set floors.rank to 0",
        ),
    ],
)
def test_errors_name_what_is_wrong(funnel: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config(**options).build(funnel.log)
