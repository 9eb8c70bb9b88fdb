"""Quality against cost: points, which of them nothing beats, and comparison at matched cost.

Costs follow ``C = c_request + N * c_light + k * c_heavy`` (a tier pays its request state once and
its items and pairs for what reaches it).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from prerank.evaluation.cost import Cost
from prerank.evaluation.studies.seeds import Claim, SeedStudy, over_seeds

__all__ = ["Frontier", "Point", "frontier", "tier_us"]


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One model or cut.

    Parameters
    ----------
    name : str
        The point.
    us : float
        Microseconds per request of the usual size, the fewest over seeds: other weights cost the
        same, and what else runs on the machine can only add.
    mean, sd : float
        Of the metric over seeds.
    efficient : bool
        No cheaper point (or equally cheap one) has a higher mean.
    """

    name: str
    us: float
    mean: float
    sd: float
    efficient: bool


class Frontier(msgspec.Struct, frozen=True, kw_only=True):
    """Quality against cost of one metric.

    Parameters
    ----------
    key : str
        The metric, larger is better.
    points : tuple of Point
        Cheapest first.
    matched : dict of str to Claim
        ``"a - b"``: every point against the best other one that costs no more, tested over seeds,
        Holm over all of them.
    """

    key: str
    points: tuple[Point, ...]
    matched: dict[str, Claim]


def tier_us(cost: Cost, num_scored: float, *, cached: bool = False) -> float:
    """Return microseconds of one model for one request with ``num_scored`` candidates.

    ``cached``: item states are computed beforehand.

    Examples
    --------
    >>> cost = Cost(us_per_request=10.0, us_per_item=2.0, us_per_candidate=1.0,
    ...             flops_per_candidate=1.0, params_dense=0, params_table=0)
    >>> tier_us(cost, 100), tier_us(cost, 100, cached=True)
    (310.0, 110.0)
    """
    per_candidate = cost.us_per_candidate + (0.0 if cached else cost.us_per_item)
    return cost.us_per_request + num_scored * per_candidate


def frontier(
    groups: Mapping[str, Mapping[int, Mapping[str, float]]],
    us: Mapping[str, Mapping[int, float]],
    key: str,
) -> Frontier:
    """Build the frontier of one metric.

    Parameters
    ----------
    groups : mapping of point to mapping of seed to mapping of key to float
        Metric values.
    us : mapping of point to mapping of seed to float
        Cost per request.
    key : str
        Metric, larger is better.

    Examples
    --------
    >>> light, heavy = {0: {"q": 0.5}, 1: {"q": 0.25}}, {0: {"q": 0.75}, 1: {"q": 1.0}}
    >>> groups = {"light": light, "heavy": heavy}
    >>> found = frontier(groups, {"light": {0: 1.0, 1: 1.0}, "heavy": {0: 9.0, 1: 9.0}}, "q")
    >>> [(p.name, p.us, p.mean, p.efficient) for p in found.points], list(found.matched)
    ([('light', 1.0, 0.375, True), ('heavy', 9.0, 0.875, True)], ['heavy - light'])
    """
    study: SeedStudy = over_seeds(groups, pairs=())
    having = [name for name in groups if key in study.groups[name]]
    cost = {name: min(us[name].values()) for name in having}
    mean = {name: study.groups[name][key].mean for name in having}
    cheapest_first = sorted(having, key=lambda name: (cost[name], -mean[name]))
    points, pairs = [], []
    for place, name in enumerate(cheapest_first):
        before = cheapest_first[:place]
        points.append(
            Point(
                name=name,
                us=cost[name],
                mean=mean[name],
                sd=study.groups[name][key].sd,
                efficient=all(mean[other] < mean[name] for other in before),
            )
        )
        if before:
            pairs.append((name, max(before, key=lambda other: mean[other])))
    only = {
        name: {seed: {key: values[key]} for seed, values in groups[name].items() if key in values}
        for name in having
    }
    claims = over_seeds(only, pairs).claims if pairs else {}
    # Holm within this metric: all matched comparisons are made together.
    matched = {pair: found[key] for pair, found in claims.items() if key in found}
    return Frontier(key=key, points=tuple(points), matched=matched)
