"""A tiny world, generated once, and its candidates as flat arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from prerank.world import World, WorldConfig


@dataclass
class Flat:
    """A world, its whole request table, and flat candidate columns (NaN where null)."""

    world: World
    table: pa.Table
    request: np.ndarray
    columns: dict[str, np.ndarray]
    utility: np.ndarray

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]


def _flatten(world: World) -> Flat:
    table = pa.concat_tables(list(world.requests(chunk=256))).combine_chunks()
    columns: dict[str, np.ndarray] = {}
    for name in table.column_names:
        if name.startswith(("candidates.", "labels.")):
            column = table[name].combine_chunks()
            column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
            lengths = np.diff(column.offsets.to_numpy())
            columns[name] = column.flatten().to_numpy(zero_copy_only=False)
    request = np.repeat(table["request_id"].to_numpy(), lengths)
    return Flat(world, table, request, columns, world.utility(request, columns["candidates.item"]))


@pytest.fixture(scope="session")
def tiny_config() -> WorldConfig:
    return World.Config(
        num_users=150,
        num_items=3000,
        num_requests=700,
        num_days=5,
        num_clusters=20,
        num_subclusters=5,
        num_retrieved=100,
        num_preranked=30,
        num_ranked=16,
        num_exposed=8,
        num_pool=20,
    )


@pytest.fixture(scope="session")
def flatten() -> Any:
    return _flatten


@pytest.fixture(scope="session")
def flat(tiny_config: WorldConfig) -> Flat:
    return _flatten(tiny_config.build())
