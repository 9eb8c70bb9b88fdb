"""One recommended default, chosen by rule, or the trade-off.

The rule. *Loss*: of the candidates that every data set measured, one that no alternative beats
significantly (Holm over all of these comparisons of a data set) on recall at the quota (T1, T3, U)
or on ``auc/exposed``; of several, the one with the highest mean of those recalls over data sets. If
there is none, what beats each is listed. *Sources of the second model*: those whose cascade is
significantly better at its best share on some set and worse on none. *Share*: the one that valid
picks, as a multiple of the quota.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prerank.bench.hap.words import (
    Result,
    difference,
    fixed,
    is_down,
    is_known,
    is_up,
    listed,
    named,
)

__all__ = ["LOSSES", "recommend"]

LOSSES = ("grouped_nce", "ghcl", "ghcl_0.1", "ghcl_0.3", "weighted_nce", "harmonised")
"""Candidates."""
_TRUTHS = ("T1", "T3", "U")
_TIERS = {"hard sources only": "light -> heavy_hard", "all sources": "light -> heavy"}


def recommend(results: Sequence[Result]) -> tuple[str, list[str]]:
    """Return title and lines of the recommendation.

    Parameters
    ----------
    results : sequence of mapping
        One per data set.
    """
    return "Recommended default", [*_loss(results), *_tiers(results)]


def _loss(results: Sequence[Result]) -> list[str]:
    measured = [loss for loss in LOSSES if results and all(loss in r["lines"] for r in results)]
    if len(measured) < 2:
        return []
    lines = []
    beaten = {loss: _beaten(results, loss) for loss in LOSSES}
    unbeaten = [loss for loss in measured if not beaten[loss]]
    if unbeaten:
        means = {loss: _mean_recall(results, loss) for loss in unbeaten}
        best = max(unbeaten, key=lambda loss: means[loss])
        every = ", ".join(f"{loss} {fixed(mean)}" for loss, mean in means.items())
        lines.append(
            f"Loss: **{best}**. Nothing is significantly better on recall at the quota or on "
            f"`auc/exposed` on any set. The same is true of every loss in this list, which gives "
            f"the mean recall at the quota over sets and truths: {every}."
        )
    else:
        lines.append("Loss: a trade-off; each candidate is beaten somewhere.")
    lines += [
        f"{loss} is beaten by {'; '.join(by)}."
        for loss, by in beaten.items()
        if by and any(loss in r["lines"] for r in results)
    ]
    partly = [
        loss for loss in LOSSES if loss not in measured and any(loss in r["lines"] for r in results)
    ]
    if partly:
        lines.append(f"Measured on some sets only, so not chosen: {listed(partly)}.")
    lines.append("Sources of the light model: all four; every light line of the study has them.")
    return lines


def _beaten(results: Sequence[Result], loss: str) -> list[str]:
    found = []
    for result in results:
        recalls = {f"recall@{result['quota']}/{truth}" for truth in _TRUTHS}
        for pair, by in result["differences"].get("default", {}).items():
            first, second = pair.split(" - ")
            for key, d in by.items():
                if key != "auc/exposed" and key not in recalls:
                    continue
                if (first == loss and is_down(d)) or (second == loss and is_up(d)):
                    other = second if first == loss else first
                    found.append(f"{other} on {key} ({named(result)}, {difference(d, pair)})")
    return found


def _mean_recall(results: Sequence[Result], loss: str) -> float:
    values = []
    for result in results:
        of: dict[str, Any] = result["lines"][loss]["metrics"]
        here = [of.get(f"recall@{result['quota']}/{truth}", {}).get("value") for truth in _TRUTHS]
        known = [value for value in here if is_known(value)]
        if known:
            values.append(np.mean(known))
    return float(np.mean(values)) if values else float("-inf")


def _tiers(results: Sequence[Result]) -> list[str]:
    lines = []
    ups, downs = [], []
    is_measured = False
    for result in results:
        for by in result.get("tiers", {}).values():
            is_measured = True
            ups += [f"{key} ({named(result)})" for key, d in by.items() if is_up(d)]
            downs += [f"{key} ({named(result)})" for key, d in by.items() if is_down(d)]
    if is_measured:
        if ups and downs:
            text = f"a trade-off: hard only is better on {listed(ups)}, all on {listed(downs)}"
        elif ups:
            text = f"**hard sources only**, better on {listed(ups)} and worse on none"
        elif downs:
            text = f"**all sources**, better on {listed(downs)} and worse on none"
        else:
            text = "no significant difference between all and hard only, each at its best share"
        lines.append(f"Sources of the second model: {text}.")
    for words, name in _TIERS.items():
        multiples, texts = [], []
        for result in results:
            best = result["shares"].get(name, {}).get("best", {})
            for truth in _TRUTHS:
                key = f"recall@{result['quota']}/{truth}"
                if key not in best:
                    continue
                count = best[key]["share"] * result["candidates_per_request"]
                percent = f"{named(result)} {truth} {100 * best[key]['share']:g} %"
                if count < result["quota"]:
                    # What is re-ordered stays above the cut: this is the light model's recall.
                    texts.append(f"{percent}, none that changes it")
                    continue
                multiples.append(count / result["quota"])
                texts.append(f"{percent}, {multiples[-1]:.1f} times")
        if texts:
            span = (
                f"{min(multiples):.1f} to {max(multiples):.1f} times the quota, median "
                f"{np.median(multiples):.1f}"
                if multiples
                else "none is better than the light model alone"
            )
            lines.append(
                f"Share that goes on to a second model of {words}, best on valid for recall at the "
                f"quota: {span} ({'; '.join(texts)})."
            )
    return lines
