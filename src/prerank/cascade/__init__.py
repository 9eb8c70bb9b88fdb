"""Cascades: tiers of models, what each forwards, one order at the end."""

from prerank.cascade.cascade import Cascade, Order
from prerank.cascade.tier import Tier

__all__ = ["Cascade", "Order", "Tier"]
