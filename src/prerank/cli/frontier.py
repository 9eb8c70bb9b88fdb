"""``prerank bench frontier``: models and cuts over seeds, quality beside cost, in one command."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from prerank.cli.output import say

__all__ = ["run_frontier"]


def run_frontier(
    log: Path,
    out: Path,
    *,
    light: str,
    heavy: str,
    others: list[str],
    cuts: list[float],
    seeds: int,
    part: str,
    keys: list[str],
    changes: dict[str, Any],
    resamples: int,
) -> dict[str, Any]:
    """Train, evaluate and compare; whatever is complete in ``out`` is not computed again.

    Parameters
    ----------
    log, out : Path
        Request log; folder of the runs and results.
    light, heavy, others : str, str, list of str
        Recipes: the two tiers of the cuts, and more single models.
    cuts : list of float
        Shares that the light model forwards.
    seeds : int
        How many; 0, 1, ...
    part : str
        What to evaluate on.
    keys : list of str
        Metrics to compare, larger is better.
    changes : dict
        Values of the recipes to replace.
    resamples : int
        Of the bootstrap of each seed's evaluation.

    Returns
    -------
    dict
        ``points`` by key, ``matched`` by key, ``seconds``, ``machine``, ``log``, ``part``,
        ``seeds``.
    """
    import msgspec

    from prerank.bench.machine import describe_machine
    from prerank.evaluation.studies.frontier import frontier
    from prerank.log import open_log

    started = time.perf_counter()
    opened = open_log(log)
    recipes = list(dict.fromkeys([light, heavy, *others]))
    asked = {"recipes": recipes, "cuts": cuts, "part": part, "changes": changes}
    asked |= {"resamples": resamples, "log_id": opened.schema.lineage.log_id}
    values: dict[str, dict[int, dict[str, float]]] = {}
    us: dict[str, dict[int, float]] = {}
    reused = 0
    for seed in range(seeds):
        done = _stored(out / f"seed{seed}" / "points.json", asked)
        if done is None:
            say(f"seed {seed}: {len(recipes)} models, {len(cuts)} cuts")
            done = _one_seed(opened, out / f"seed{seed}", seed, asked, light, heavy)
        else:
            reused += 1
        for name, point in done.items():
            values.setdefault(name, {})[seed] = point["metrics"]
            us.setdefault(name, {})[seed] = point["us"]
    found = {key: msgspec.to_builtins(frontier(values, us, key)) for key in keys}
    return {
        "points": {key: f["points"] for key, f in found.items()},
        "matched": {key: f["matched"] for key, f in found.items()},
        "seconds": time.perf_counter() - started,
        "seeds_found_complete": reused,
        "seeds": seeds,
        "log": str(log),
        "part": part,
        "machine": describe_machine(),
    }


def _stored(path: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """Return the points of a seed that was computed for the same question."""
    import json

    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    same = found.get("asked") == json.loads(json.dumps(asked))
    points: dict[str, Any] | None = found["points"] if same else None
    return points


def _one_seed(
    log: Any, folder: Path, seed: int, asked: dict[str, Any], light: str, heavy: str
) -> dict[str, Any]:
    import numpy as np

    from prerank.cascade import Cascade, Tier
    from prerank.evaluation import DEFAULT_BASELINES, evaluate
    from prerank.evaluation.studies.frontier import cascade_us, tier_us
    from prerank.log.format.files import write_json
    from prerank.recipes import load_recipe
    from prerank.training import fit, load_run

    models: dict[str, Any] = {}
    for name in asked["recipes"]:
        recipe = load_recipe(name).replace({**asked["changes"], "fit.seed": seed})
        model, objective, config = recipe.build(log.schema, f"recipe {name}")
        run = folder / Path(name).stem
        valid = log["valid"] if "valid" in log.parts else None
        fit(model, log["train"], objective, valid=valid, config=config, out=run)
        models[name] = load_run(run)
    scorers: dict[str, Any] = dict(models)
    for cut in asked["cuts"]:
        tiers = [Tier(models[light], forward=cut), Tier(models[heavy])]
        scorers[f"{light} -> {100 * cut:g} % {heavy}"] = Cascade(tiers)
    part = log[asked["part"]]
    baselines = [b for b in DEFAULT_BASELINES if b != "retrieval"]
    result = evaluate(
        scorers, part, baselines=baselines, num_resamples=asked["resamples"], seed=seed
    )
    costs = {name: run.cost for name, run in result.runs.items() if run.cost is not None}
    usual = int(np.median([c.num_candidates for c in costs.values()]))
    points: dict[str, Any] = {}
    for name, scorer in scorers.items():
        if isinstance(scorer, Cascade):
            us = cascade_us(scorer, [costs[light], costs[heavy]], usual)
        else:
            us = tier_us(costs[name], usual)
        metrics = {key: m.value for key, m in result.runs[name].metrics.items()}
        points[name] = {"us": us, "metrics": metrics}
    write_json({"asked": asked, "points": points}, folder / "points.json")
    return points
