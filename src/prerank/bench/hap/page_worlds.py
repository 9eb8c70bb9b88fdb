"""Exploratory: whether the main differences keep their sign in worlds of other seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prerank.bench.hap.compare import main_keys
from prerank.bench.hap.words import SOURCES, Result, is_known, table, with_interval

__all__ = ["other_worlds"]

_PAIRS = (("H2", "ghcl - mixed_both"), ("H3", "heavy - ghcl"))
_CASCADE = "light -> heavy"
_WORTH = {"best - first": "the light model alone", "best - heavy": "heavy on everything"}


def other_worlds(origin: Result, others: Sequence[Result]) -> str:
    """Return the section that sets a simulated data set beside others of its kind.

    Parameters
    ----------
    origin : mapping
        Results of the set whose rates the others take.
    others : sequence of mapping
        Results of those.
    """
    found = [dict(_differences(result)) for result in (origin, *others)]
    rows: list[list[str]] = []
    kept: dict[str, list[bool]] = {}
    for name, metric in dict.fromkeys(key for by in found for key in by):
        values = [by.get((name, metric)) for by in found]
        signs = {v["value"] > 0 for v in values if v is not None and is_known(v["value"])}
        is_kept = len(signs) == 1
        kept.setdefault(name, []).append(is_kept)
        cells = [with_interval(v) if v is not None else "" for v in values]
        rows.append([name, metric, *cells, "yes" if is_kept else "no"])
    names = [f"`{result['set']['name']}`" for result in (origin, *others)]
    say = [
        f"- {name}: same sign in all {len(found)} worlds on {sum(of)} of {len(of)} metrics."
        for name, of in kept.items()
    ]
    note = (
        "Same parameters, other seeds of the world, one seed of training where the origin has "
        f"several, at the learning rates that {names[0]} chose. Exploratory: in no answer above. "
        "Bold: p < 0.05 after Holm within that world's family."
    )
    body = table(["a - b", "metric", *names, "same sign"], rows)
    return "\n\n".join(["## Other worlds", "\n".join(say), body, note]) + "\n"


def _differences(result: Result) -> Iterator[tuple[tuple[str, str], Mapping[str, Any]]]:
    for family, pair in _PAIRS:
        by = result["differences"].get(family, {}).get(pair, {})
        sources = [f"auc/{source}" for source in SOURCES if f"auc/{source}" in by]
        for metric in (*sources, *main_keys(result["quota"], result["top_m"], by)):
            yield (pair, metric), by[metric]
    best = result["shares"].get(_CASCADE, {}).get("best", {})
    for worth, words in _WORTH.items():
        for metric in main_keys(result["quota"], result["top_m"], best):
            if worth in best[metric]:
                yield (f"{_CASCADE} at its best share - {words}", metric), best[metric][worth]
