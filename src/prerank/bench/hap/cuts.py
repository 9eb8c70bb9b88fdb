"""Who goes on, and how many: routers, a cut with a promise, one budget, all from stored scores.

The light model is GHCL's, the second one the expressive model trained on all sources. Levels are
chosen on part valid and judged on test; in these logs test is later than valid. Losses are those of
single requests averaged over seeds, intervals by bootstrap over users; each question's differences
are one family for Holm's correction.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from prerank import rng
from prerank.bench.hap.compare import (
    Differences,
    OverSeeds,
    correct,
    main_keys,
    over_seeds,
    raw_differences,
)
from prerank.bench.hap.execute import read_scores
from prerank.bench.hap.facts import Facts, places_of
from prerank.cascade import Gap, Mass, Rule, Share, Threshold
from prerank.cascade.budget import spend
from prerank.cascade.ladder import Ladder
from prerank.cascade.promise import losses
from prerank.cascade.routers import ROUTERS, first_by, router_keys
from prerank.cascade.routers import Facts as Known
from prerank.errors import InputError
from prerank.evaluation.statistics import bootstrap_mean
from prerank.evaluation.studies import promise
from prerank.evaluation.studies.budget import losses_of_share
from prerank.evaluation.studies.points import num_forwarded

__all__ = ["budgets", "promises", "routed", "routers"]

Floats = npt.NDArray[np.float64]
Folders = Mapping[str, Mapping[int, Path]]

_LIGHT, _HEAVY = "ghcl", "heavy"
_SHARES = (0.1, 0.3)
_EPSILONS = (0.05, 0.1)
_WINDOWS = 4
_RESAMPLES = 2000
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
    """Compare routers at equal share.

    Returns
    -------
    dict of share to dict, optional
        ``values``: every metric by router; ``differences``: main metrics against the
        highest-scored, one family over all shares. The oracle sees what it is judged by, so it is
        a bound and in no test.
    """
    seeds = sorted(set(finished.get(_LIGHT, {})) & set(finished.get(_HEAVY, {})))
    if not seeds:
        return None
    found: dict[str, Any] = {}
    family: list[Differences] = []
    for share in _SHARES:
        count = num_forwarded(facts.data.lengths, share)
        lines: dict[str, dict[str, OverSeeds]] = {}
        for router in ROUTERS:
            values = []
            for seed in seeds:
                light = facts.listed(read_scores(finished[_LIGHT][seed], "test"))
                heavy = facts.listed(read_scores(finished[_HEAVY][seed], "test"))
                order = routed(light, heavy, facts, router, count)
                values.append(facts.values(order, aucs=False))
            lines[router] = over_seeds(values, seeds)
        known = next(iter(lines.values()))
        keys = main_keys(facts.truths.quota or 1, facts.truths.top_m, known)
        pairs = [(router, "score") for router in ROUTERS if router not in ("score", "oracle")]
        family.append(raw_differences(lines, pairs, keys, facts.user))
        found[f"{share:g}"] = {
            "values": {
                name: {key: float(v.seeds.mean()) for key, v in of.items()}
                for name, of in lines.items()
            },
            "differences": family[-1],
        }
    correct(*family)
    return found


def _samples(
    finished: Folders, facts: Mapping[str, Facts]
) -> dict[int, tuple[promise.Sample, promise.Sample]]:
    """Return valid and test of each seed of the light model; none without a ranker's order."""
    top_m = facts["test"].truths.top_m
    if top_m is None or any(known.data.ranker is None for known in facts.values()):
        return {}
    found = {}
    for seed, folder in sorted(finished.get(_LIGHT, {}).items()):
        valid, test = (
            promise.sample_of(
                known.data, known.listed(read_scores(folder, part)), top_m=top_m, part=part
            )
            for part, known in ((part, facts[part]) for part in ("valid", "test"))
        )
        found[seed] = valid, test
    return found


def _estimate(values: Floats, user: npt.NDArray[np.int64]) -> dict[str, float]:
    estimate = bootstrap_mean(values, None, user, num_resamples=_RESAMPLES)
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def promises(finished: Folders, facts: Mapping[str, Facts]) -> list[dict[str, Any]]:
    """Certify cuts on valid, and say what they lose on test.

    Returns
    -------
    list of dict
        ``family``, ``epsilon``, ``loss`` with ``low``, ``high``; ``share`` forwarded;
        ``scored_share``: candidates of valid and test that the ranker scored, the promise is about
        those; ``windows``: quarters of test in time, each with ``value``, ``low``, ``high``;
        ``seeds`` for which a level could be certified, ``asked`` of how many.
    """
    samples = _samples(finished, facts)
    families = {"fixed share": Share(share=0.5), "gap to the cut": _gap(facts), **_FAMILIES}
    rows = []
    for name, family in families.items():
        for epsilon in _EPSILONS:
            lost, share = [], []
            for valid, test in samples.values():
                try:
                    rule = promise.calibrate(family, valid, epsilon)
                except InputError:
                    continue  # too few requests for so small a loss
                lost.append(losses(rule, test.ladder, test.needed).numpy())
                share.append(_forwarded(rule, test) / float(facts["test"].data.lengths.mean()))
            if not lost:
                continue
            loss_R = np.stack(lost).mean(axis=0)
            user, time = facts["test"].user, facts["test"].data.time
            quarters = np.array_split(np.argsort(time, kind="stable"), _WINDOWS)
            whole = _estimate(loss_R, user)
            rows.append(
                {
                    "family": name,
                    "epsilon": epsilon,
                    "loss": whole["value"],
                    "low": whole["low"],
                    "high": whole["high"],
                    "share": float(np.mean(share)),
                    "scored_share": min(
                        known.scored_share for pair in samples.values() for known in pair
                    ),
                    "windows": [_estimate(loss_R[of], user[of]) for of in quarters],
                    "seeds": len(lost),
                    "asked": len(samples),
                }
            )
    return rows


def budgets(finished: Folders, facts: Mapping[str, Facts]) -> list[dict[str, Any]]:
    """Spend a mean count where the light model is unsure, against a fixed share at equal mean.

    Returns
    -------
    list of dict
        ``family``, ``share`` planned, ``forwarded`` per request on test, ``loss``, ``fixed`` (the
        loss of a fixed share that forwards as many on test), ``difference``: loss minus that with
        interval, p and ``p_holm`` over all rows; below 0 the rule is better.
    """
    samples = _samples(finished, facts)
    families = {"gap to the cut": _gap(facts), **_FAMILIES}
    rows: list[dict[str, Any]] = []
    tests: list[Differences] = []
    for share in _SHARES:
        mean = share * float(facts["valid"].data.lengths.mean())
        for name, family in families.items():
            ours, theirs, forwarded, seeds = [], [], [], []
            for seed, (valid, test) in samples.items():
                try:
                    rule = spend(family, valid.ladder, mean, part=valid.part)
                except InputError:
                    continue  # a family that cannot spend so much
                count = _forwarded(rule, test)
                ours.append({"loss": losses(rule, test.ladder, test.needed).numpy()})
                theirs.append({"loss": losses_of_share(test, count)})
                forwarded.append(count)
                seeds.append(seed)
            if not seeds:
                continue
            lines = {"rule": over_seeds(ours, seeds), "fixed": over_seeds(theirs, seeds)}
            tests.append(raw_differences(lines, [("rule", "fixed")], ["loss"], facts["test"].user))
            rows.append(
                {
                    "family": name,
                    "share": share,
                    "forwarded": float(np.mean(forwarded)),
                    "loss": float(lines["rule"]["loss"].seeds.mean()),
                    "fixed": float(lines["fixed"]["loss"].seeds.mean()),
                    "difference": tests[-1]["rule - fixed"]["loss"],
                    "seeds": len(seeds),
                }
            )
    correct(*tests)
    return rows


def _forwarded(rule: Rule, sample: promise.Sample) -> float:
    """Return the mean count that a rule forwards."""
    return float(rule.count(sample.ladder).double().mean())


def _gap(facts: Mapping[str, Facts]) -> Gap:
    return Gap(within=1.0, place=facts["test"].truths.quota or 1)
