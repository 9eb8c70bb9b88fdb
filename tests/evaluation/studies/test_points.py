"""Cuts against the cascades they stand for; what they cost, by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prerank.cascade import Cascade, Tier
from prerank.evaluation import TruthOptions, evaluate
from prerank.evaluation.cost import Cost
from prerank.evaluation.studies.points import Cut, cut_positions, cut_us, measure_points
from prerank.log import open_log
from prerank.models import MLPPreranker, TwoTower
from prerank.objectives import BCE
from prerank.training import FitConfig, fit
from prerank.world import WorldConfig, write_world


def cost(request: float, item: float, candidate: float) -> Cost:
    return Cost(
        us_per_request=request,
        us_per_item=item,
        us_per_candidate=candidate,
        flops_per_candidate=1.0,
        params_dense=1,
        params_table=1,
    )


def test_a_cut_pays_the_light_model_for_all_and_the_heavy_one_for_the_rest() -> None:
    costs = {"a": cost(10, 2, 1), "b": cost(20, 30, 5)}
    assert cut_us(Cut("a", "b", 0.3), costs, 101) == 10 + 101 * 3 + 20 + 31 * 35
    assert cut_us(Cut("a", "b", 0.3), costs, 10) == 10 + 10 * 3 + 20 + 3 * 35
    assert Cut("a", "b", 0.05).name == "a -> 5 % b"


@given(st.integers(0, 2**32 - 1))
def test_positions_equal_sorting_twice(seed: int) -> None:
    draws = np.random.default_rng(seed)
    lengths = draws.integers(0, 9, 4)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    light, heavy = draws.integers(0, 4, (2, offsets[-1])).astype(float)
    tie = draws.permutation(int(offsets[-1]))
    share = float(draws.choice([0.1, 0.3, 0.5, 1.0]))
    found = cut_positions(light, heavy, offsets, share, tie)
    for r in range(4):
        rows = range(offsets[r], offsets[r + 1])
        first = sorted(rows, key=lambda i: (-light[i], tie[i]))
        num = -(-len(rows) * round(10 * share) // 10)
        final = sorted(first[:num], key=lambda i: (-heavy[i], tie[i])) + first[num:]
        assert [int(found[i]) for i in final] == list(range(len(rows)))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("points") / "log"
    write_world(folder, WorldConfig(num_users=40, num_items=300, num_requests=120, num_days=4))
    log = open_log(folder)
    models: dict[str, Any] = {}
    for name, config in (("a", TwoTower.Config()), ("b", MLPPreranker.Config())):
        models[name] = config.build(log.schema)
        objective = BCE.Config().build(log.schema)
        fit(models[name], log["train"], objective, config=FitConfig(epochs=1), progress=False)
    return log, models


def test_points_equal_the_evaluation_of_models_and_cascades(
    fitted: tuple[Any, dict[str, Any]],
) -> None:
    log, models = fitted
    cuts = [Cut("a", "b", share) for share in (0.1, 0.5)]
    truths = TruthOptions(groups=("T1", "T2", "macro"))
    points = measure_points(models, cuts, log["test"], truths=truths, ks=(10, 50), seed=3)
    scorers: dict[str, Any] = dict(models)
    for cut in cuts:
        tiers = [Tier(models["a"], forward=cut.share), Tier(models["b"])]
        scorers[cut.name] = Cascade(tiers)
    options: dict[str, Any] = {"truths": truths, "ks": (10, 50), "seed": 3}
    expected = evaluate(scorers, log["test"], num_resamples=2, cost=False, **options)
    # A world logs no order of retrieval: evaluate says so, here the row is left out.
    assert set(points) == {name for name, run in expected.runs.items() if run.metrics}
    for name, point in points.items():
        theirs = expected.runs[name].metrics
        assert point.metrics
        for key, value in point.metrics.items():
            assert value == pytest.approx(theirs[key].value, abs=1e-9), (name, key)
        assert (point.us is None) == (name not in scorers)
    dearer = [points[name].us for name in ("a", cuts[0].name, cuts[1].name)]
    assert dearer == sorted(dearer)


def test_cuts_cost_no_further_scoring(fitted: tuple[Any, dict[str, Any]], monkeypatch: Any) -> None:
    log, models = fitted
    from prerank.evaluation.collect import ModelScorer

    calls: list[int] = []
    original: Callable[..., Any] = ModelScorer.__call__

    def counted(self: ModelScorer, *args: Any) -> Any:
        calls.append(1)
        return original(self, *args)

    monkeypatch.setattr(ModelScorer, "__call__", counted)
    numbers = []
    for shares in ((), (0.1, 0.3, 0.5)):
        calls.clear()
        cuts = [Cut("a", "b", share) for share in shares]
        measure_points(models, cuts, log["test"], truths=TruthOptions(groups=("T1",)))
        numbers.append(len(calls))
    assert numbers[0] == numbers[1] > 0
