"""``prerank bench frontier``: models and cuts over seeds, quality beside cost, in one command."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from prerank.cli.figures import FiguresOption, check_figures, print_paths
from prerank.cli.output import JsonOption, SetOption, assignments, print_json, say, track
from prerank.cli.tables import print_table

__all__ = ["frontier", "run_frontier"]

_KEYS = ("recall@10/T1", "ndcg@10/T1", "mrr/T1", "request_auc_macro/sources")
# Agreement with the ranker, pair by pair, would take most of the time: prerank evaluate has it.
_TRUTHS = ("T1", "T2", "T3", "T4", "T5", "macro")


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
    figures: FiguresOption = None,
    as_json: JsonOption = False,
) -> None:
    """Quality beside cost: models and cuts over several seeds.

    The same command again goes on where it stopped. Settings are chosen on part valid; give
    --part test once they are: the models are not trained again, and each remembers the opening.

    Example: prerank bench frontier --log logs/ml1m --out bench/frontier
    """
    from prerank.errors import InputError

    try:
        shares = [float(text) for text in cuts.split(",") if text.strip()]
    except ValueError:
        shares = [0.0]
    if not all(0 < share <= 1 for share in shares):
        raise InputError(f"--cuts {cuts}: expected shares like 0.1,0.3")
    check_figures(figures)
    result = run_frontier(
        log,
        out,
        light=light,
        heavy=heavy,
        others=also or [],
        cuts=shares,
        seeds=seeds,
        part=part,
        keys=metric or list(_KEYS),
        changes=assignments(values),
    )
    drawn = [] if figures is None else _draw(figures, result)
    if as_json:
        print_json({**result, "figures": [str(path) for path in drawn]})
        return
    for key, points in result["points"].items():
        _print_frontier(key, points, result)
    print_paths(drawn)
    sizes = ", ".join(f"{n:,.0f} {what}" for what, n in result["sizes"].items())
    say(f"{result['seconds']:.0f} s, {result['seeds_found_complete']} seeds were complete; {sizes}")
    if any(result["opened"].values()):
        say(f"part {part} was opened {max(result['opened'].values())} times for these models")
    machine = result["machine"]
    say(f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}")


def _draw(folder: Path, result: dict[str, Any]) -> list[Path]:
    from prerank.report import frontier_figure, save_figure

    paths: list[Path] = []
    for key, points in result["points"].items():
        found = {name: m[key]["mean"] for name, m in result["baselines"].items() if key in m}
        figure = frontier_figure(points, key, seeds=result["seeds"], baselines=found)
        paths += save_figure(figure, folder, f"frontier {key}")
    return paths


def _print_frontier(key: str, points: list[dict[str, Any]], result: dict[str, Any]) -> None:
    from rich.table import Table

    seeds = result["seeds"]
    table = Table(title=f"{key} on {result['part']}, {seeds} seeds; * nothing cheaper is better")
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
    for name, metrics in result["baselines"].items():
        if key in metrics:
            table.add_row(name, "", f"{metrics[key]['mean']:.4f}", f"{metrics[key]['sd']:.4f}", "")
    print_table(table)


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

    Returns
    -------
    dict
        ``points`` and ``matched`` by key; ``metrics``: every metric of every point; the same of
        ``baselines``; ``sizes`` of what was scored; how often the part was ``opened`` for a model;
        ``seconds`` of training and of evaluation, also of earlier calls; ``machine``, ``log``,
        ``part``, ``seeds``, ``recipes``, ``changes``.
    """
    import msgspec

    from prerank.bench.machine import describe_machine
    from prerank.errors import InputError
    from prerank.evaluation.studies.frontier import frontier as frontier_of
    from prerank.evaluation.studies.seeds import over_seeds
    from prerank.log import open_log

    started = time.perf_counter()
    opened = open_log(log)
    chosen = opened[part]
    recipes = list(dict.fromkeys([light, heavy, *others]))
    stems = [Path(name).stem for name in recipes]
    if len(set(stems)) < len(stems):
        raise InputError(f"recipes {', '.join(recipes)}: two have one name; rename a file")
    asked = {"recipes": recipes, "cuts": cuts, "part": part, "changes": changes}
    asked |= {"light": light, "heavy": heavy, "log_id": opened.schema.lineage.log_id}
    found: list[dict[str, Any]] = []
    reused = 0
    for seed in range(seeds):
        done = _stored(out / f"seed{seed}" / f"points-{part}.json", asked)
        reused += done is not None
        if done is None:
            say(f"seed {seed}: {len(recipes)} models, {len(cuts)} cuts")
            done = _one_seed(chosen, out / f"seed{seed}", seed, asked)
        found.append(done)
    names = list(found[0]["points"])
    metrics = {n: {k: f["points"][n]["metrics"] for k, f in enumerate(found)} for n in names}
    timed = [n for n in names if found[0]["points"][n]["us"] is not None]
    us = {n: {k: f["points"][n]["us"] for k, f in enumerate(found)} for n in timed}
    spread: dict[str, Any] = msgspec.to_builtins(over_seeds(metrics, pairs=()).groups)
    known = list(dict.fromkeys(key for values in spread.values() for key in values))
    for key in keys:
        if key not in known:
            raise InputError(f"--metric {key}: not among {', '.join(known)}")
    of = {k: msgspec.to_builtins(frontier_of({n: metrics[n] for n in timed}, us, k)) for k in keys}
    return {
        "points": {key: f["points"] for key, f in of.items()},
        "matched": {key: f["matched"] for key, f in of.items()},
        "metrics": {name: spread[name] for name in timed},
        "baselines": {name: spread[name] for name in names if name not in timed},
        "sizes": found[0]["sizes"],
        "opened": {n: max(f["opened"].get(n, 0) for f in found) for n in stems},
        "seconds": time.perf_counter() - started,
        "seconds_of_seeds": [f["seconds"] for f in found],
        "seeds_found_complete": reused,
        "seeds": seeds,
        "log": log.name,
        "part": part,
        "recipes": recipes,
        "changes": changes,
        "machine": describe_machine(),
    }


def _stored(path: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """Return what a seed gave for the same question."""
    import json

    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found if found.get("asked") == json.loads(json.dumps(asked)) else None


def _one_seed(part: Any, folder: Path, seed: int, asked: dict[str, Any]) -> dict[str, Any]:
    import msgspec
    import numpy as np

    from prerank.evaluation import TruthOptions
    from prerank.evaluation.studies.opened import open_part
    from prerank.evaluation.studies.points import Cut, measure_points
    from prerank.log.format.files import write_json
    from prerank.recipes import load_recipe
    from prerank.training import load_run

    log = part.log
    models: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    opened: dict[str, int] = {}
    cpu = time.process_time()
    for name in asked["recipes"]:
        recipe = load_recipe(name).replace({**asked["changes"], "fit.seed": seed})
        setup = recipe.build(log.schema, f"recipe {name}")
        stem = Path(name).stem
        before = time.perf_counter()
        # Without validation: the last weights count, so nothing is chosen on what is reported.
        setup.fit(log["train"], out=folder / stem)
        seconds[stem] = time.perf_counter() - before
        models[stem] = load_run(folder / stem)
        opened[stem] = open_part(folder / stem, part, asked)
    light, heavy = (Path(asked[tier]).stem for tier in ("light", "heavy"))
    cuts = [Cut(light, heavy, share) for share in asked["cuts"]]
    before = time.perf_counter()
    with track("scoring", part.num_requests) as progress:
        points = measure_points(
            models, cuts, part, seed=seed, truths=TruthOptions(groups=_TRUTHS), progress=progress
        )
    seconds["evaluation"] = time.perf_counter() - before
    seconds["of processor"] = time.process_time() - cpu
    lengths = np.concatenate([np.diff(c.candidates.offsets) for c in part.columns(1024)])
    sizes = {"requests": len(lengths), "candidates": int(lengths.sum())}
    sizes["candidates in the usual request"] = int(np.median(lengths))
    result = {
        "asked": asked,
        "points": {name: msgspec.to_builtins(point) for name, point in points.items()},
        "sizes": sizes,
        "opened": opened,
        "seconds": seconds,
    }
    write_json(result, folder / f"points-{asked['part']}.json")
    return result
