"""The claims about forwarding: an interior optimum, and what a cascade is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prerank.bench.hap.compare import main_keys
from prerank.bench.hap.words import (
    Result,
    difference,
    first_of,
    fixed,
    is_down,
    is_known,
    is_up,
    named,
)

__all__ = ["SECTIONS"]

_HARD, _ALL = "light -> heavy_hard", "light -> heavy"
_AGAIN = "control: light -> light of another seed"


def _keys(result: Result, known: Mapping[str, Any]) -> list[str]:
    return main_keys(result["quota"], result["top_m"], known)


def _at(best: Mapping[str, Any]) -> str:
    return f"{100 * best['share']:g} %{' (an edge of the grid)' if best.get('is_edge') else ''}"


def _interior(results: Sequence[Result]) -> tuple[str, list[str]]:
    lines = []
    for result in results:
        for name, found in result["shares"].items():
            texts = [
                f"best at {_at(best)}, over 100 % {difference(d, key)}"
                for key in _keys(result, found["best"])
                if (d := (best := found["best"][key]).get("best - all")) is not None
            ]
            if texts:
                lines.append(f"{named(result)}, {name}: {'; '.join(texts)}.")
        drops = result.get("drops", {})
        for pair, by in drops.items():
            texts = [difference(by[key], key) for key in _keys(result, by)]
            lines.append(
                f"{named(result)}, drop from the best share to 100 %, {pair}: {'; '.join(texts)}."
            )
        hard = result["shares"].get(_HARD)
        if hard is None:
            continue
        for key in _keys(result, hard["best"]):
            best = hard["best"][key]
            is_inside = not best.get("is_edge") and is_up(best.get("best - all"))
            than = {
                "more than in the same-model control": drops.get(f"{_HARD} - {_AGAIN}", {}),
                "more than with all sources": drops.get(f"{_HARD} - {_ALL}", {}),
            }
            rest = ", ".join(
                f"{words}: {_yes(is_up(by[key])) if key in by else 'not measured'}"
                for words, by in than.items()
            )
            lines.append(
                f"{named(result)}, {key}, hard sources only: optimum inside with a significant "
                f"fall to 100 %: {_yes(is_inside)}; falls {rest}."
            )
    if lines:
        lines.insert(
            0,
            "Recall at k cannot change while fewer than k go on, so a best share of 1 % means that "
            "no share is better than the light model alone.",
        )
    return "4. Quality has an interior optimum over the forwarded share", lines


def _yes(so: bool) -> str:
    return "yes" if so else "no"


def _cascade(results: Sequence[Result]) -> tuple[str, list[str]]:
    lines = []
    for result in results:
        for name in (_HARD, _ALL):
            found = result["shares"].get(name)
            if found is None:
                continue
            texts, worse = [], []
            for key in _keys(result, found["best"]):
                best = found["best"][key]
                d = best.get("best - heavy")
                if d is None:
                    continue
                text = f"at {_at(best)} {difference(d, key)}"
                # Beating a heavy model that loses to the light one says nothing for two tiers.
                alone = best.get("best - first")
                if alone is not None:
                    text += f", minus the light model alone {difference(alone, key)}"
                texts.append(text)
                worse += [key] if is_down(d) else []
            if texts:
                so = "at least as good" if not worse else f"worse on {', '.join(worse)}"
                lines.append(
                    f"{named(result)}, {name} minus heavy on everything, {so}: {'; '.join(texts)}."
                )
        costs = result.get("costs", {})
        for name, by_share in costs.get("cascades", {}).items():
            row = by_share.get("0.3")
            if row is None or not is_known(row["ratio"]):
                continue
            lines.append(
                f"{named(result)}: {first_of(costs, name)} -> {name} at 30 % takes "
                f"{fixed(row['ratio'], 2)} of the time of {name} on everything, measured "
                f"({fixed(row['predicted'], 2)} by times per candidate, "
                f"{fixed(row['predicted_cached'], 2)} with item states at hand)."
            )
    return "5. Light + expressive is as good as expressive on everything, for less", lines


SECTIONS = (_interior, _cascade)
