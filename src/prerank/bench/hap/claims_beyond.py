"""What we added to HAP, each against plain HAP at equal cost, and who goes on."""

from __future__ import annotations

from collections.abc import Sequence

from prerank.bench.hap.compare import main_keys
from prerank.bench.hap.words import (
    Result,
    difference,
    fixed,
    is_down,
    is_known,
    is_up,
    named,
    over_sets,
)

__all__ = ["SECTIONS"]

Section = tuple[str, list[str]]


def _harmonised(results: Sequence[Result]) -> Section:
    lines = []
    better: dict[str, dict[str, bool]] = {}
    for result in results:
        for pair, by in result["differences"].get("H6a", {}).items():
            keys = ["auc/macro", *main_keys(result["quota"], result["top_m"], by)]
            texts = [difference(by[k], k) for k in keys if k in by]
            lines.append(f"{named(result)}, {pair}: {'; '.join(texts)}.")
            key = f"recall@{result['quota']}/T3"
            if key in by:
                better.setdefault(pair, {})[named(result)] = is_up(by[key])
    lines += [
        f"{pair}, recall of T3 at the quota: {over_sets('better', found)}"
        for pair, found in better.items()
    ]
    return "6a. Harmonised weights", lines


def _promises(results: Sequence[Result]) -> Section:
    lines = []
    for result in results:
        for row in result.get("promises") or []:
            if not is_known(row["loss"]):
                continue
            kept = "kept" if row["loss"] <= row["epsilon"] else "not kept"
            sure = is_known(row["low"]) and row["low"] > row["epsilon"]
            worst = [w["value"] for w in row["windows"] if is_known(w["value"])]
            lines.append(
                f"{named(result)}, {row['family']}, at most {row['epsilon']:g}: realised loss "
                f"{fixed(row['loss'])} [{fixed(row['low'])}, {fixed(row['high'])}] at "
                f"{100 * row['share']:.1f} % forwarded, {kept}"
                f"{' (interval above the promise)' if sure else ''}; worst quarter in time "
                f"{fixed(max(worst, default=None))}; certified for {row['seeds']} of "
                f"{row['asked']} seeds."
            )
        scored = [row["scored_share"] for row in result.get("promises") or []]
        if scored:
            lines.append(
                f"{named(result)}: the ranker scored {100 * min(scored):.1f} % of the candidates; "
                "the promise is about those alone."
            )
    return "6b. A cut with a promise", lines


def _budgets(results: Sequence[Result]) -> Section:
    lines = []
    better: dict[str, dict[str, bool]] = {}
    for result in results:
        for row in result.get("budgets") or []:
            d = row["difference"]
            lines.append(
                f"{named(result)}, {row['family']}, {100 * row['share']:g} % planned, "
                f"{fixed(row['forwarded'], 1)} per request forwarded: loss {fixed(row['loss'])} "
                f"against {fixed(row['fixed'])} of a fixed share with that mean: "
                f"{difference(d, 'difference')}."
            )
            name = f"{row['family']} at {100 * row['share']:g} %"
            better.setdefault(name, {})[named(result)] = is_down(d)
    lines += [f"{name}: {over_sets('better', found)}" for name, found in better.items()]
    return "6c. One budget for all requests", lines


def _trunk(results: Sequence[Result]) -> Section:
    lines = []
    better: dict[str, bool] = {}
    for result in results:
        for by in result.get("trunk", {}).values():
            keys = main_keys(result["quota"], result["top_m"], by)
            texts = [difference(by[key], key) for key in keys]
            lines.append(f"{named(result)}, at 30 %, shared trunk minus apart: {'; '.join(texts)}.")
            better[named(result)] = is_up(by.get(f"recall@{result['quota']}/T3"))
        cascades = result.get("costs", {}).get("cascades", {})
        ratios = {
            name: cascades[name]["0.3"]["ratio"]
            for name in ("heavy_shared", "heavy")
            if name in cascades
        }
        if len(ratios) == 2:
            us = {name: cascades[name]["0.3"]["us"] for name in ratios}
            lines.append(
                f"{named(result)}: at 30 % the cascade takes {fixed(ratios['heavy_shared'], 2)} of "
                "the time of the shared expressive model on everything, apart "
                f"{fixed(ratios['heavy'], 2)} of its own; {us['heavy_shared']:,.0f} us against "
                f"{us['heavy']:,.0f} us a request, "
                f"{fixed(us['heavy_shared'] / us['heavy'], 2)} of the time."
            )
    if better:
        lines.append(f"Recall of T3 at the quota: {over_sets('better', better)}")
    return "6d. A shared trunk", lines


def _routers(results: Sequence[Result]) -> Section:
    lines = []
    for result in results:
        for share, found in (result.get("routers") or {}).items():
            for pair, by in found["differences"].items():
                keys = main_keys(result["quota"], result["top_m"], by)
                texts = [difference(by[key], key) for key in keys]
                lines.append(
                    f"{named(result)}, {100 * float(share):g} % forwarded, {pair}: "
                    f"{'; '.join(texts)}."
                )
    return "7. Who goes on: the highest-scored, or those in doubt", lines


SECTIONS = (_harmonised, _promises, _budgets, _trunk, _routers)
