"""Cascades: tiers of models, what each forwards, one order at the end."""

from prerank.cascade.cascade import Cascade, Order
from prerank.cascade.reserves import Maximum, Minimum, Moves, Reserves
from prerank.cascade.routers import Facts, Margin
from prerank.cascade.rules import Gap, Mass, Rule, Share, Threshold
from prerank.cascade.tier import Tier

__all__ = [
    "Cascade",
    "Facts",
    "Gap",
    "Margin",
    "Mass",
    "Maximum",
    "Minimum",
    "Moves",
    "Order",
    "Reserves",
    "Rule",
    "Share",
    "Threshold",
    "Tier",
]
