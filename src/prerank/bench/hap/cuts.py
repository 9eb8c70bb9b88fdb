"""Who goes on, and how many: routers, a cut with a promise, one budget, all from stored scores.

The light model is GHCL's, the second one the expressive model trained on all sources. Levels are
chosen on part valid and judged on test; in these logs test is later than valid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from prerank import rng
from prerank.bench.hap.compare import OverSeeds, compare, over_seeds
from prerank.bench.hap.execute import read_scores
from prerank.bench.hap.facts import Facts, places_of
from prerank.cascade import Gap, Mass, Share, Threshold
from prerank.cascade.ladder import Ladder
from prerank.cascade.routers import ROUTERS, first_by, router_keys
from prerank.cascade.routers import Facts as Known
from prerank.errors import InputError
from prerank.evaluation.studies import budget, promise

__all__ = ["budgets", "promises", "routed", "routers"]

Floats = npt.NDArray[np.float64]
Folders = Mapping[str, Mapping[int, Path]]

_LIGHT, _HEAVY = "ghcl", "heavy"
_SHARES = (0.1, 0.3)
_EPSILONS = (0.05, 0.1)
_DRAW = rng.stream("bench/hap/router")
_FAMILIES = {
    "softmax mass": Mass(mass=0.5),
    "score threshold": Threshold(score=0.0),
}


def routed(
    light: Floats, heavy: Floats, facts: Facts, router: str, num_forwarded: npt.NDArray[np.int64]
) -> Floats:
    """Return scores whose order is that of a cascade with a router.

    With ``score`` and ``oracle`` what goes on comes first, in the order of the second model; with
    the others it is re-ordered within its own places, as a cascade does.

    Parameters
    ----------
    light, heavy : ndarray ``[I]``
        Scores of both models.
    facts : Facts
        The requests; the quota is the margin's cut, the oracle sees T3.
    router : str
        Of :data:`prerank.cascade.routers.ROUTERS`.
    num_forwarded : ndarray ``[R]`` int64
        How many go on.
    """
    data = facts.data
    place = places_of(light, data)
    order = np.lexsort((place, np.repeat(np.arange(len(data.row)), data.lengths)))
    ladder = Ladder.of(torch.from_numpy(light[order]), torch.from_numpy(data.offsets))
    row = np.repeat(data.row, data.lengths)
    draw = (rng.hash64(0, _DRAW, row, data.item) >> np.uint64(1)).astype(np.int64)
    known = Known(torch.from_numpy(draw[order]))
    if "T3" in facts.truths.binary:
        truth = torch.from_numpy(facts.truths.binary["T3"][order])
        known = dataclasses.replace(known, truth=truth)
    cut = torch.full((ladder.num_requests,), facts.truths.quota or 1)
    keys = router_keys(router, ladder, ladder.value, known, cut)  # type: ignore[arg-type]
    count = torch.from_numpy(num_forwarded)
    chosen = first_by(keys, ladder, count) if keys else ladder.place < count[ladder.request]
    selected = np.empty(len(light), dtype=np.bool_)
    selected[order] = chosen.numpy()
    if router in ("margin", "entropy", "random"):
        slots = np.sort(np.where(selected, place + np.repeat(data.offsets[:-1], data.lengths), -1))
        slots = slots[slots >= 0] - np.repeat(data.offsets[:-1], np.diff(data.offsets_of(selected)))
    else:
        within = places_of(np.where(selected, 1.0, 0.0) * len(light) - place, data)
        place, slots = within, None
    inner = places_of(np.where(selected, heavy, -np.inf), data)
    result = place.copy()
    if slots is None:
        result[selected] = inner[selected]
    else:
        starts = data.offsets_of(selected)[:-1]
        at = inner[selected] + np.repeat(starts, np.diff(data.offsets_of(selected)))
        result[selected] = slots[at]
    return -result.astype(np.float64)


def routers(finished: Folders, facts: Facts) -> dict[str, Any] | None:
    """Compare routers at equal share: recall of each, and against the highest-scored."""
    seeds = sorted(set(finished.get(_LIGHT, {})) & set(finished.get(_HEAVY, {})))
    if not seeds:
        return None
    found: dict[str, Any] = {}
    for share in _SHARES:
        count = np.ceil(facts.data.lengths * share - 1e-9).astype(np.int64)
        lines: dict[str, dict[str, OverSeeds]] = {}
        for router in ROUTERS:
            values = []
            for seed in seeds:
                light = facts.listed(read_scores(finished[_LIGHT][seed], "test"))
                heavy = facts.listed(read_scores(finished[_HEAVY][seed], "test"))
                order = routed(light, heavy, facts, router, count)
                values.append(facts.values(order, aucs=False))
            lines[router] = over_seeds(values)
        keys = list(next(iter(lines.values())))
        pairs = [(router, "score") for router in ROUTERS if router != "score"]
        found[f"{share:g}"] = {
            "values": {
                name: {key: float(v.seeds.mean()) for key, v in of.items()}
                for name, of in lines.items()
            },
            "differences": compare(lines, pairs, keys, facts.user),
        }
    return found


def _samples(
    folder: Path, facts: Mapping[str, Facts], top_m: int
) -> tuple[promise.Sample, promise.Sample]:
    valid, test = (
        promise.sample_of(
            known.data, known.listed(read_scores(folder, part)), top_m=top_m, part=part
        )
        for part, known in ((part, facts[part]) for part in ("valid", "test"))
    )
    return valid, test


def promises(finished: Folders, facts: Mapping[str, Facts]) -> list[dict[str, Any]]:
    """Certify cuts on valid, and say what they lose on test, by seed averaged.

    Returns
    -------
    list of dict
        ``family``, ``epsilon``, ``loss`` (mean over seeds) with ``low``, ``high`` of the first
        seed's interval over users, ``share`` forwarded, ``windows``: losses of quarters in time.
    """
    top_m = facts["test"].truths.top_m
    if top_m is None or facts["test"].data.ranker is None:
        return []
    rows = []
    families = {"fixed share": Share(share=0.5), "gap to the cut": _gap(facts), **_FAMILIES}
    for name, family in families.items():
        for epsilon in _EPSILONS:
            kept = []
            for folder in finished.get(_LIGHT, {}).values():
                valid, test = _samples(folder, facts, top_m)
                try:
                    rule = promise.calibrate(family, valid, epsilon)
                except InputError:
                    continue
                kept.append(promise.realised(rule, test, num_windows=4))
            if not kept:
                continue
            first = kept[0]
            rows.append(
                {
                    "family": name,
                    "epsilon": epsilon,
                    "loss": float(np.mean([k.loss.value for k in kept])),
                    "low": first.loss.low,
                    "high": first.loss.high,
                    "share": float(np.mean([k.share for k in kept])),
                    "windows": [float(np.mean([k.windows[w][1] for k in kept])) for w in range(4)],
                    "seeds": len(kept),
                }
            )
    return rows


def budgets(finished: Folders, facts: Mapping[str, Facts]) -> list[dict[str, Any]]:
    """Spend a mean count where the light model is unsure, against a fixed share at equal mean.

    Returns
    -------
    list of dict
        ``family``, ``mean`` asked for, ``loss``, ``fixed`` (loss of the fixed share),
        ``difference`` with interval and p of the first seed, ``differences`` by seed.
    """
    top_m = facts["test"].truths.top_m
    if top_m is None or facts["test"].data.ranker is None:
        return []
    rows = []
    for share in _SHARES:
        mean = share * float(facts["test"].data.lengths.mean())
        by_family: dict[str, list[Any]] = {}
        fixed = []
        for folder in finished.get(_LIGHT, {}).values():
            valid, test = _samples(folder, facts, top_m)
            families = {"gap to the cut": _gap(facts), **_FAMILIES}
            spent = budget.compare_budgets(families, valid, test, mean)
            fixed.append(spent["share"].realised.loss.value)
            for name in families:
                by_family.setdefault(name, []).append(spent[name])
        for name, found in by_family.items():
            differences = [s.difference for s in found if s.difference is not None]
            rows.append(
                {
                    "family": name,
                    "share": share,
                    "loss": float(np.mean([s.realised.loss.value for s in found])),
                    "fixed": float(np.mean(fixed)),
                    "forwarded": float(np.mean([s.realised.forwarded.value for s in found])),
                    "difference": msgspec.structs.asdict(differences[0])
                    if isinstance(differences[0], msgspec.Struct)
                    else dataclasses.asdict(differences[0]),
                    "differences": [d.value for d in differences],
                }
            )
    return rows


def _gap(facts: Mapping[str, Facts]) -> Gap:
    return Gap(within=1.0, place=facts["test"].truths.quota or 1)
