"""Quality over the share that goes on to a second model, and what its best place is worth.

The best share is picked on valid, by metric; everything is then judged on test. Differences are
tested in families, one per claim: all combinations, main metrics and pairs of it together.

``S`` seeds, ``R`` requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from prerank.bench.hap.compare import (
    Differences,
    OverSeeds,
    compare,
    correct,
    main_keys,
    minus,
    over_seeds,
    raw_differences,
    summary,
)
from prerank.bench.hap.execute import read_scores
from prerank.bench.hap.facts import Facts, places_of
from prerank.bench.hap.study import Tick
from prerank.evaluation.studies.points import num_forwarded, reordered

__all__ = ["COMBINATIONS", "PAPER", "SHARES", "judge_shares"]

Lines = Mapping[str, Mapping[str, OverSeeds]]
Folders = Mapping[str, Mapping[int, Path]]

SHARES = (0.01, 0.02, 0.03, 0.05, 0.10, 0.20, 0.30, 0.50, 0.75, 1.0)
"""Parts of a request's candidates that go on to the second model."""

_LIGHT_AGAIN = "control: light -> light of another seed"
Combinations = Mapping[str, tuple[str, str, bool]]
"""First line, second line, and whether the second takes the next seed."""

COMBINATIONS: Combinations = {
    "light -> heavy_hard": ("ghcl", "heavy_hard", False),
    "light -> heavy": ("ghcl", "heavy", False),
    "grouped_nce -> heavy": ("grouped_nce", "heavy", False),
    "light -> heavy_shared": ("ghcl", "heavy_shared", False),
    _LIGHT_AGAIN: ("ghcl", "ghcl", True),
    "control: heavy -> heavy of another seed": ("heavy", "heavy", True),
}
"""Those of the claims."""

PAPER: Combinations = {
    "paper_light -> paper_heavy_hard": ("paper_light", "paper_heavy_hard", False),
    "paper_light -> paper_heavy": ("paper_light", "paper_heavy", False),
}
"""The same at the paper's sizes, exploratory."""

_DROPS = (
    ("light -> heavy_hard", _LIGHT_AGAIN),
    ("light -> heavy", _LIGHT_AGAIN),
    ("light -> heavy_hard", "light -> heavy"),
)
_TRUNK_SHARE = 0.3


@dataclass(frozen=True)
class _Curve:
    """One combination: values by share on test, the share that valid picks by metric."""

    test: dict[float, dict[str, OverSeeds]]
    picked: dict[str, float]

    def best(self) -> dict[str, OverSeeds]:
        return {key: self.test[share][key] for key, share in self.picked.items()}


def judge_shares(
    finished: Folders,
    facts: Mapping[str, Facts],
    lines: Lines,
    say: Tick,
    combinations: Combinations = COMBINATIONS,
    alone: str = "heavy",
) -> dict[str, Any]:
    """Judge every combination of which both lines have a seed.

    Parameters
    ----------
    finished : mapping of line to mapping of seed to folder
        Trainings.
    facts : mapping of str to Facts
        ``valid`` and ``test``.
    lines : mapping of line to mapping of key to OverSeeds
        Lines alone, on test.
    say : callable
        Told one line now and then.
    combinations : mapping of str to (str, str, bool)
        What to combine; all of it is one family per question.
    alone : str
        The line that a cascade is compared with as ``heavy``: the second model on everything.

    Returns
    -------
    dict
        ``shares``: by combination ``curve`` and, by metric, ``best`` (``share``, ``is_edge``, and
        the differences ``best - all``, ``best - first``, ``best - heavy``);
        ``drops``: differences of what the best share gains over 100 % between combinations;
        ``trunk``: a shared trunk minus two separate models at 30 %;
        ``tiers``: second model trained on hard sources minus trained on all, each at its best.
    """
    curves = {
        name: curve
        for name, (first, second, is_next) in combinations.items()
        if (curve := _curve(name, finished, first, second, is_next, facts, say))
    }
    test = facts["test"]
    user = test.user
    known = next(iter(curves.values())).picked if curves else {}
    keys = main_keys(test.truths.quota or 1, test.truths.top_m, known)
    interior: list[Differences] = []
    worth: list[Differences] = []
    found: dict[str, dict[str, Any]] = {}
    for name, curve in curves.items():
        first, second, _ = combinations[name]
        here: dict[str, Mapping[str, OverSeeds]] = {
            "best": curve.best(),
            "all": curve.test[1.0],
            "first": lines[first],
            **({"heavy": lines[alone]} if alone in lines else {}),
        }
        interior.append(raw_differences(here, [("best", "all")], keys, user))
        pairs = [("best", "first"), ("best", "heavy")]
        worth.append(raw_differences(here, pairs, keys, user))
        found[name] = {
            "first": first,
            "second": second,
            "seeds": len(curve.test[1.0][keys[0]].numbers),
            "curve": _summaries(curve, user),
            "best": {
                key: {"share": share, "is_edge": share in (SHARES[0], SHARES[-1])}
                for key, share in curve.picked.items()
            },
        }
    drops = {name: _drop(curve) for name, curve in curves.items()}
    fallen = raw_differences(drops, _DROPS, keys, user)
    correct(*interior, fallen)  # one family: the claim about an interior optimum
    correct(*worth)  # one family: the claim about the cascade's worth
    for name, *families in zip(curves, interior, worth, strict=True):
        for family in families:
            for pair, by in family.items():
                for key, row in by.items():
                    found[name]["best"][key][pair] = row
    at = {name: curve.test[_TRUNK_SHARE] for name, curve in curves.items()}
    best = {name: curve.best() for name, curve in curves.items()}
    trunk = [("light -> heavy_shared", "light -> heavy")]
    tiers = [("light -> heavy_hard", "light -> heavy")]
    return {
        "shares": found,
        "drops": fallen,
        "trunk": compare(at, trunk, keys, user),
        "tiers": compare(best, tiers, keys, user),
    }


def _summaries(curve: _Curve, user: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Return the summaries of every share; asked together they take a tenth of the time."""
    flat = {f"{share:g} {key}": v for share, of in curve.test.items() for key, v in of.items()}
    found = summary(flat, user)
    return {
        f"{share:g}": {key: found[f"{share:g} {key}"] for key in of}
        for share, of in curve.test.items()
    }


def _drop(curve: _Curve) -> dict[str, OverSeeds]:
    """Return what the best share gains over everything forwarded, by request."""
    return {key: minus(of, curve.test[1.0][key]) for key, of in curve.best().items()}


def _curve(
    name: str,
    finished: Folders,
    first: str,
    second: str,
    is_next: bool,
    facts: Mapping[str, Facts],
    say: Tick,
) -> _Curve | None:
    seeds = sorted(set(finished.get(first, {})) & set(finished.get(second, {})))
    if not seeds or (is_next and len(seeds) < 2):
        return None
    say(f"shares: {name}, {len(seeds)} seeds")
    parts: dict[str, dict[float, dict[str, OverSeeds]]] = {}
    for part, known in facts.items():
        tie = known.tie
        by_share: dict[float, list[Any]] = {share: [] for share in SHARES}
        for at, seed in enumerate(seeds):
            other = seeds[(at + 1) % len(seeds)] if is_next else seed
            light = places_of(known.listed(read_scores(finished[first][seed], part)), known.data)
            heavy = known.listed(read_scores(finished[second][other], part))
            for share in SHARES:
                count = num_forwarded(known.data.lengths, share)
                place = reordered(light, heavy, known.data.offsets, count, tie)
                by_share[share].append(known.values(-place.astype(np.float64), aucs=False))
        parts[part] = {share: over_seeds(of, seeds) for share, of in by_share.items()}
    keys = list(parts["test"][1.0])
    valid = parts["valid"]

    def on_valid(key: str, share: float) -> float:
        # A metric that no request of valid defines picks nothing: the smallest share stays.
        return float(np.nan_to_num(valid[share][key].seeds.mean(), nan=-np.inf))

    picked = {key: max(SHARES, key=lambda share: on_valid(key, share)) for key in keys}
    return _Curve(parts["test"], picked)
