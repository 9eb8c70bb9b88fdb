"""A seeded synthetic funnel with known truth: tests and demos without downloads."""

from prerank.world.config import CHANNELS, WorldConfig
from prerank.world.world import World
from prerank.world.write import write_world

__all__ = ["CHANNELS", "World", "WorldConfig", "write_world"]
