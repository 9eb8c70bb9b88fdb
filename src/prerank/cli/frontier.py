"""``prerank bench frontier``: models and cuts over seeds, quality beside cost, in one command."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from prerank.cli.output import JsonOption, SetOption, assignments, print_json, say
from prerank.cli.tables import print_table

__all__ = ["frontier", "run_frontier"]


def frontier(
    log: Annotated[Path, typer.Option(metavar="LOG", help="Request log.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Runs and results; goes on there.")],
    light: Annotated[str, typer.Option(metavar="RECIPE", help="First tier.")] = "two_tower",
    heavy: Annotated[str, typer.Option(metavar="RECIPE", help="Second tier.")] = "mlp",
    also: Annotated[
        list[str] | None, typer.Option(metavar="RECIPE", help="One more model; may be repeated.")
    ] = None,
    cuts: Annotated[
        str, typer.Option(metavar="SHARE,...", help="What the first tier forwards.")
    ] = "0.05,0.1,0.2,0.3,0.5,0.75",
    seeds: Annotated[int, typer.Option(metavar="N", min=1, help="Seeds 0, 1, ...")] = 5,
    part: Annotated[str, typer.Option(metavar="NAME", help="Part to evaluate.")] = "valid",
    metric: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Larger is better; may be repeated.")
    ] = None,
    values: SetOption = None,
    resamples: Annotated[int, typer.Option(metavar="N", min=1)] = 50,
    as_json: JsonOption = False,
) -> None:
    """Quality beside cost: models and cuts over several seeds.

    The same command again goes on where it stopped. Settings are chosen on part valid; give
    --part test once they are.

    Example: prerank bench frontier --log logs/ml1m --out bench/frontier
    """
    from prerank.errors import InputError

    try:
        shares = [float(text) for text in cuts.split(",") if text.strip()]
    except ValueError:
        raise InputError(f"--cuts {cuts}: expected shares like 0.1,0.3") from None
    result = run_frontier(
        log,
        out,
        light=light,
        heavy=heavy,
        others=also or [],
        cuts=shares,
        seeds=seeds,
        part=part,
        keys=metric or ["mrr/T1", "ndcg@10/T1", "recall@10/T1"],
        changes=assignments(values),
        resamples=resamples,
    )
    if as_json:
        print_json(result)
        return
    from rich.table import Table

    for key, points in result["points"].items():
        table = Table(title=f"{key} on {part}, {seeds} seeds; * nothing cheaper is better")
        for name in ("point", "us per request", "mean", "sd", "against the best at its cost"):
            table.add_column(name, justify="left" if name == "point" else "right")
        claims = {pair.split(" - ")[0]: (pair, c) for pair, c in result["matched"][key].items()}
        for p in points:
            row = [f"{p['us']:,.0f}", f"{p['mean']:.4f}", f"{p['sd']:.4f}"]
            pair, claim = claims.get(p["name"], ("", None))
            text = (
                f"{claim['mean']:+.4f} to {pair.split(' - ')[1]}, p {claim['p_holm']:.2g}"
                if claim
                else ""
            )
            table.add_row(f"{'* ' if p['efficient'] else ''}{p['name']}", *row, text)
        print_table(table)
    say(f"{result['seconds']:.0f} s, {result['seeds_found_complete']} seeds were complete")
    machine = result["machine"]
    say(f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}")


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
    from prerank.evaluation.studies.frontier import frontier as frontier_of
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
    found = {key: msgspec.to_builtins(frontier_of(values, us, key)) for key in keys}
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
    from prerank.training import load_run

    models: dict[str, Any] = {}
    for name in asked["recipes"]:
        recipe = load_recipe(name).replace({**asked["changes"], "fit.seed": seed})
        setup = recipe.build(log.schema, f"recipe {name}")
        run = folder / Path(name).stem
        valid = log["valid"] if "valid" in log.parts else None
        setup.fit(log["train"], valid=valid, out=run)
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
