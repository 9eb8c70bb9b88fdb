"""From finished trainings to the study's numbers on one data set."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from prerank.bench.hap.compare import OverSeeds, compare, main_keys, over_seeds, summary
from prerank.bench.hap.costs import costs
from prerank.bench.hap.cuts import budgets, promises, routers
from prerank.bench.hap.execute import read_result, read_scores
from prerank.bench.hap.facts import Facts
from prerank.bench.hap.gradients import gradients_of
from prerank.bench.hap.grid import RATES
from prerank.bench.hap.recommend import LOSSES
from prerank.bench.hap.shares import PAPER, judge_shares
from prerank.bench.hap.study import Study, Tick, is_diagnosed
from prerank.bench.machine import describe_machine
from prerank.config import to_values

__all__ = ["PAIRS", "answers"]

Floats = npt.NDArray[np.float64]

_MIXED = ("mixed_bce", "mixed_nce", "mixed_both")
_TIMES = ("train_s", "train_cpu_s", "samples_per_s")

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
    "temperature": tuple((f"grouped_nce@tau{tau}", f"mixed_nce@tau{tau}") for tau in ("0.1", "3")),
    "paper": (
        ("paper_light", "ghcl"),
        ("paper_heavy", "heavy"),
        ("paper_heavy_hard", "heavy_hard"),
        ("paper_heavy", "paper_light"),
        ("paper_heavy_hard", "paper_light"),
    ),
    "default": (
        *itertools.combinations(LOSSES, 2),
        *itertools.product(LOSSES, _MIXED),
    ),
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
        ``set``, ``lines``, ``differences`` by family, ``shares`` by combination, ``drops``,
        ``trunk``, ``tiers``, ``paper_shares``, ``routers``, ``promises``, ``budgets``, ``costs``,
        ``gradients``, ``rates`` tried on the set, ``requests``, ``machine``.
    """
    parts = study.chosen.open(study.log)
    finished = study.finished()
    facts = study.facts(("valid", "test"))
    test = facts["test"]
    lines: dict[str, dict[str, OverSeeds]] = {}
    for name, seeds in finished.items():
        say(f"{study.chosen.name}: judging {name}, {len(seeds)} seeds")
        values = [test.values(read_scores(seeds[s], "test")) for s in sorted(seeds)]
        lines[name] = over_seeds(values, sorted(seeds))
    lines |= {name: over_seeds([test.values(score)]) for name, score in _references(test).items()}
    tried = study.tried() if study.chosen.rates_of is None else {}
    quota, m = test.truths.quota, test.truths.top_m
    known = next(iter(lines.values()))
    keys = [key for key in known if key.startswith("auc/")] + main_keys(quota or 1, m, known)
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
            family: compare(
                lines, pairs, _decisive(keys, quota) if family == "default" else keys, test.user
            )
            for family, pairs in PAIRS.items()
        },
        **judge_shares(finished, facts, lines, say),
        "paper_shares": judge_shares(finished, facts, lines, say, PAPER, "paper_heavy")["shares"],
        "routers": routers(finished, test),
        "promises": promises(finished, facts),
        "budgets": budgets(finished, facts),
        "costs": costs(finished, parts["test"]),
        "gradients": gradients_of(finished),
        "machine": describe_machine(),
    }


def _decisive(keys: list[str], quota: int | None) -> list[str]:
    """Return what a default is chosen by: recall at the quota and the hardest source."""
    known = [f"recall@{quota}/{truth}" for truth in ("T1", "T3", "U")]
    return [key for key in keys if key == "auc/exposed" or key in known]


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
        return {"what": "true utility" if name == "oracle" else "all scores alike"}
    results = [read_result(folder) for folder in seeds.values()]
    rate = study.rates()[line.rate_of or line.name]
    # Diagnosis takes time of its own; a line of which every seed was diagnosed says so.
    plain = [read_result(of) for seed, of in seeds.items() if not is_diagnosed(line, seed)]
    timed = plain or results
    return {
        "what": line.what,
        "lr": rate,
        "lr_of": line.rate_of or line.name,
        "lr_is_edge": rate in (RATES[0], RATES[-1]),
        "params_dense": results[0]["params_dense"],
        "params_table": results[0]["params_table"],
        **{name: float(np.median([r[name] for r in timed])) for name in _TIMES},
        "timed": {"seeds": len(timed), "diagnosed": not plain},
        "samples": results[0]["samples"],
        "steps": results[0]["steps"],
    }
