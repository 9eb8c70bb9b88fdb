"""From finished trainings to the study's numbers on one data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from prerank.bench.hap.compare import OverSeeds, compare, over_seeds, summary
from prerank.bench.hap.costs import costs
from prerank.bench.hap.cuts import budgets, promises, routers
from prerank.bench.hap.execute import read_result, read_scores
from prerank.bench.hap.facts import Facts, cascade_order, places_of
from prerank.bench.hap.gradients import gradients_of
from prerank.bench.hap.study import Study, Tick
from prerank.bench.machine import describe_machine
from prerank.config import to_values

__all__ = ["COMBINATIONS", "PAIRS", "SHARES", "answers"]

Floats = npt.NDArray[np.float64]

SHARES = (0.01, 0.02, 0.03, 0.05, 0.10, 0.20, 0.30, 0.50, 0.75, 1.0)
"""Parts of a request's candidates that go on to the second model."""

COMBINATIONS = {
    "light -> heavy_hard": ("ghcl", "heavy_hard", False),
    "light -> heavy": ("ghcl", "heavy", False),
    "grouped_nce -> heavy": ("grouped_nce", "heavy", False),
    "light -> heavy_shared": ("ghcl", "heavy_shared", False),
    "control: light -> light of another seed": ("ghcl", "ghcl", True),
    "control: heavy -> heavy of another seed": ("heavy", "heavy", True),
}
"""First line, second line, and whether the second takes the next seed."""

PAIRS: dict[str, tuple[tuple[str, str], ...]] = {
    "H2": (
        ("ghcl", "mixed_bce"),
        ("ghcl", "mixed_nce"),
        ("ghcl", "mixed_both"),
        ("grouped_nce", "mixed_nce"),
        ("grouped_nce", "ghcl"),
        ("grouped_nce", "weighted_nce"),
        ("ghcl_0.1", "ghcl"),
        ("ghcl_0.3", "ghcl"),
        ("grouped_bce", "mixed_bce"),
    ),
    "H2 variants": (
        ("inverse_norm", "mixed_both"),
        ("ghm", "mixed_both"),
        ("focal", "mixed_bce"),
        ("pcgrad_mixed", "mixed_both"),
        ("pcgrad_ghcl", "ghcl"),
        ("ghcl@starved", "mixed_both@starved"),
        ("ghcl@flooded", "mixed_both@flooded"),
        ("grouped_nce@tau0.3", "mixed_nce@tau0.3"),
    ),
    "H3": (
        ("heavy", "ghcl"),
        ("medium", "ghcl"),
        ("heavy_hard", "ghcl"),
        ("heavy_hard", "heavy"),
        ("heavy_history", "heavy"),
    ),
    "H6a": (("harmonised", "ghcl"), ("harmonised_nce", "grouped_nce")),
}
"""Families of comparisons; Holm within each on each data set."""


def answers(study: Study, say: Tick) -> dict[str, Any]:
    """Judge what is finished; an unfinished study gives what there is.

    Parameters
    ----------
    study : Study
        Trainings.
    say : callable
        Told one line now and then.

    Returns
    -------
    dict
        ``set``, ``lines``, ``differences`` by family, ``shares`` by combination, ``routers``,
        ``promises``, ``budgets``, ``costs``, ``gradients``, ``rates``, ``requests``, ``machine``.
    """
    parts = study.chosen.open(study.log)
    finished = study.finished()
    facts = study.facts(("valid", "test"))
    test = facts["test"]
    lines: dict[str, dict[str, OverSeeds]] = {}
    for name, seeds in finished.items():
        say(f"{study.chosen.name}: judging {name}, {len(seeds)} seeds")
        values = [test.values(read_scores(seeds[s], "test")) for s in sorted(seeds)]
        lines[name] = over_seeds(values)
    lines |= {name: over_seeds([test.values(score)]) for name, score in _references(test).items()}
    keys = [k for k in next(iter(lines.values())) if k.startswith(("auc/", "recall@"))]
    tried = study.tried()
    quota, m = test.truths.quota, test.truths.top_m
    return {
        "set": to_values(study.chosen),
        "log_id": parts["test"].log.schema.lineage.log_id,
        "requests": {name: part.num_requests for name, part in parts.items()},
        "with_positive": int(test.data.has_positive.sum()),
        "candidates_per_request": float(test.data.lengths.mean()),
        "quota": quota,
        "top_m": m,
        "rates": {n: {f"{lr:g}": v for lr, v in by.items()} for n, by in tried.items()},
        "lines": {
            name: {**_about(study, name, finished.get(name, {})), "metrics": table}
            for name, table in ((n, summary(v, test.user)) for n, v in lines.items())
        },
        "differences": {
            family: compare(lines, pairs, keys, test.user) for family, pairs in PAIRS.items()
        },
        "shares": {
            name: found
            for name, (first, second, is_next) in COMBINATIONS.items()
            if (found := _shares(name, finished, first, second, is_next, facts, lines, say))
        },
        "routers": routers(finished, test),
        "promises": promises(finished, facts),
        "budgets": budgets(finished, facts),
        "costs": costs(finished, parts["test"]),
        "gradients": gradients_of(finished),
        "machine": describe_machine(),
    }


def _references(facts: Facts) -> dict[str, Floats]:
    """Return scores of what is no model: chance, and the best that could be."""
    data = facts.everything
    found = {"random": np.zeros(len(data.source))}
    if data.utility is not None:
        found["oracle"] = data.utility
    return found


def _about(study: Study, name: str, seeds: Mapping[int, Path]) -> dict[str, Any]:
    line = next((line for line in study.lines if line.name == name), None)
    if line is None or not seeds:
        return {"what": "oracle: true utility" if name == "oracle" else "chance"}
    results = [read_result(folder) for folder in seeds.values()]
    rate = study.rates()[line.rate_of or line.name]
    return {
        "what": line.what,
        "lr": rate,
        "lr_of": line.rate_of or line.name,
        "lr_is_edge": study.is_edge(line.name, line.size, rate),
        "params_dense": results[0]["params_dense"],
        "params_table": results[0]["params_table"],
        "train_s": float(np.median([r["train_s"] for r in results])),
        "samples_per_s": float(np.median([r["samples_per_s"] for r in results])),
        "samples": results[0]["samples"],
        "steps": results[0]["steps"],
    }


def _shares(
    name: str,
    finished: Mapping[str, Mapping[int, Path]],
    first: str,
    second: str,
    is_next: bool,
    facts: Mapping[str, Facts],
    lines: Mapping[str, Mapping[str, OverSeeds]],
    say: Tick,
) -> dict[str, Any] | None:
    """Return the curve over forwarded shares, and what the one that is best on valid is worth."""
    seeds = sorted(set(finished.get(first, {})) & set(finished.get(second, {})))
    if not seeds or (is_next and len(seeds) < 2):
        return None
    say(f"shares: {name}, {len(seeds)} seeds")
    curves: dict[str, dict[float, dict[str, OverSeeds]]] = {}
    for part, known in facts.items():
        by_share: dict[float, list[dict[str, Floats]]] = {share: [] for share in SHARES}
        for at, seed in enumerate(seeds):
            other = seeds[(at + 1) % len(seeds)] if is_next else seed
            light = places_of(known.listed(read_scores(finished[first][seed], part)), known.data)
            heavy = known.listed(read_scores(finished[second][other], part))
            for share in SHARES:
                count = np.ceil(known.data.lengths * share - 1e-9).astype(np.int64)
                order = cascade_order(light, heavy, known.data, count)
                by_share[share].append(known.values(order, aucs=False))
        curves[part] = {share: over_seeds(values) for share, values in by_share.items()}
    test, user = curves["test"], facts["test"].user
    keys = list(next(iter(test.values())))
    picked: dict[str, Any] = {}
    for key in keys:
        best = max(SHARES, key=lambda share: float(curves["valid"][share][key].seeds.mean()))
        here: dict[str, Mapping[str, OverSeeds]] = {
            "best": test[best],
            "all": test[1.0],
            "first": lines[first],
            **({"heavy": lines["heavy"]} if "heavy" in lines else {}),
        }
        pairs: Sequence[tuple[str, str]] = (("best", "all"), ("best", "first"), ("best", "heavy"))
        picked[key] = {"share": best, **compare(here, pairs, [key], user)}
    return {
        "first": first,
        "second": second,
        "seeds": len(seeds),
        "curve": {f"{share:g}": summary(of, user) for share, of in test.items()},
        "best": picked,
    }
