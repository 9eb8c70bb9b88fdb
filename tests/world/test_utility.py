from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from prerank.errors import InputError
from prerank.world import World, WorldConfig
from prerank.world.utility import response_table


def _matrix(world: World, num: int = 300) -> np.ndarray:
    rng = np.random.default_rng(0)
    rows = rng.choice(world.config.num_requests, num, replace=False)
    items = rng.choice(world.item_ids, num, replace=False)
    return world.utility(rows[:, None], items[None, :])


def _residual(matrix: np.ndarray, rank: int) -> float:
    """Share of the sum of squares outside the best approximation of that rank."""
    power = np.linalg.svd(matrix, compute_uv=False) ** 2
    return float(power[rank:].sum() / power.sum())


def test_response_rises_falls_and_turns_its_sign_with_the_type() -> None:
    table = response_table(6)
    for row in table:
        steps = np.diff(row)
        assert (steps > 1e-6).any()
        assert (steps < -1e-6).any()
    np.testing.assert_allclose(table[:3], -table[3:], atol=1e-12)


def test_parts_add_up_and_shapes_broadcast(flat: Any) -> None:
    world = flat.world
    rows, items = np.array([5, 3, 5, 600]), world.item_ids[[7, 7, 2, 900]]
    together = world.utility(rows[:, None], items[None, :])
    assert together.shape == (4, 4)
    np.testing.assert_allclose(np.diag(together), world.utility(rows, items), rtol=1e-12)
    parts = world.parts(rows, items)
    assert set(parts) == {"topic", "match", "style", "quality", "context", "freshness"}
    np.testing.assert_allclose(sum(parts.values()), world.utility(rows, items), rtol=1e-12)
    assert world.utility([], np.empty(0, dtype=np.int64)).shape == (0,)


def test_match_follows_the_logged_history(flat: Any) -> None:
    """Recomputed by loops from the raw tables alone."""
    world = flat.world
    items = world.items()
    sub_of = dict(zip(items["item_id"].to_pylist(), items["subcluster"].to_pylist(), strict=True))
    response = response_table(world.config.num_types)
    rng = np.random.default_rng(1)
    wanted, rows, ids = [], [], []
    for row in rng.choice(world.config.num_requests, 60, replace=False).tolist():
        kind = flat.table["type"][row].as_py()
        if kind is None:
            continue
        clicked = [sub_of[i] for i in flat.table["history.click.item"][row].as_py()]
        recent = clicked[-world.config.match_window :]
        for item in flat.table["candidates.item"][row].as_py()[:20]:
            count = min(recent.count(sub_of[item]), response.shape[1] - 1)
            wanted.append(world.config.match * response[kind, count])
            rows.append(row)
            ids.append(item)
    parts = world.parts(np.array(rows), np.array(ids))
    np.testing.assert_allclose(parts["match"], wanted, atol=1e-12)
    assert (np.abs(wanted) > 0.1).mean() > 0.1


def test_context_changes_the_utility(flat: Any) -> None:
    hour = flat.table["time"].to_numpy() % 86_400_000 // 3_600_000
    items = flat.world.item_ids[:200]
    night = flat.world.parts(np.flatnonzero(hour < 6)[:1], items)["context"]
    evening = flat.world.parts(np.flatnonzero(hour >= 18)[:1], items)["context"]
    assert np.abs(night - evening).max() > 0.1


def test_no_dot_product_of_width_16_expresses_it() -> None:
    world = World.Config(num_requests=300, num_days=3).build()
    assert _residual(_matrix(world), 16) > 0.2


def test_control_one_still_interest_and_no_crossing_is_a_dot_product(
    tiny_config: WorldConfig,
) -> None:
    plain = msgspec.structs.replace(
        tiny_config, num_interests=1, match=0.0, style=0.0, context=0.0, freshness=0.0
    )
    # 16 latent dimensions, and one each for the item's quality and the standardising constant.
    assert _residual(_matrix(plain.build()), 18) < 1e-20


def test_interests_drift_and_only_if_asked(tiny_config: WorldConfig) -> None:
    def change(drift: float) -> float:
        world = msgspec.structs.replace(tiny_config, drift=drift).build()
        table = next(world.requests(chunk=10_000))
        user, time = table["user"].to_numpy(), table["time"].to_numpy()
        busiest = np.bincount(user).argmax()
        rows = np.flatnonzero(user == busiest)
        assert time[rows[-1]] - time[rows[0]] > 2 * 86_400_000
        topic = world.parts(rows[[0, -1], None], world.item_ids[None, :500])["topic"]
        return float(np.abs(topic[0] - topic[1]).mean())

    assert change(0.0) == pytest.approx(0.0, abs=1e-12)
    assert change(0.3) > 2 * change(0.05) > 0.02


@pytest.mark.parametrize(
    ("rows", "items"),
    [([10_000], [1_000_000]), ([0], [5]), ([0], [1_003_000]), ([0.5], [1_000_000])],
)
def test_unknown_ids_are_refused(flat: Any, rows: Any, items: Any) -> None:
    with pytest.raises(InputError, match="expected integers from"):
        flat.world.utility(rows, items)
