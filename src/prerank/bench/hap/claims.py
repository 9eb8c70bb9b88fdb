"""The first three claims and the order of all answers, by rule from the results."""

from __future__ import annotations

from collections.abc import Sequence

from prerank.bench.hap import claims_beyond, claims_cascade
from prerank.bench.hap.claims_short import in_short
from prerank.bench.hap.compare import main_keys
from prerank.bench.hap.recommend import recommend
from prerank.bench.hap.verdicts import (
    TIE,
    differ_on_hard_ones,
    gains_of,
    hardest_gains_most,
    ties_of,
    wins_of,
)
from prerank.bench.hap.words import (
    Result,
    difference,
    is_down,
    is_known,
    is_up,
    listed,
    named,
    number,
    ratio,
    ratio_of,
    signed,
)

__all__ = ["answers"]

Section = tuple[str, list[str]]

_MIXED = ("mixed_bce", "mixed_nce", "mixed_both")
_GROUPED = {"mixed_nce": "grouped_nce", "mixed_both": "ghcl"}
"""Mixed loss -> the same terms, grouped."""
_NEGATIVE = "norm/dense/negative"

_T3_NOTE = (
    "Recall of T3 on the fitted funnels is agreement with a ranker that we fitted on the same "
    "data, not with what users wanted; U, the true utility, exists in the simulated world only and "
    "is the cleanest truth here."
)


def answers(results: Sequence[Result]) -> str:
    """Return the section of answers."""
    sections = (
        _dominance,
        _grouping,
        _sizes,
        *claims_cascade.SECTIONS,
        *claims_beyond.SECTIONS,
        recommend,
    )
    text = ["## Answers", "", _T3_NOTE, "", *filter(None, [in_short(results)])]
    for section in sections:
        title, lines = section(results)
        text += [f"### {title}", "", *(f"- {line}" for line in lines or ["not measured yet"]), ""]
    return "\n".join(text)


def _dominance(results: Sequence[Result]) -> Section:
    lines = []
    for result in results:
        late = {name: of["late"] for name, of in result["gradients"].items()}
        early = {name: of["early"] for name, of in result["gradients"].items()}
        ratios = {name: ratio_of(of, _NEGATIVE) for name, of in late.items()}
        mixed = {name: value for name in _MIXED if (value := ratios.get(name))}
        grouped = {name: value for name in _GROUPED.values() if (value := ratios.get(name))}
        if not mixed or not grouped:
            continue
        verdict = "holds" if min(mixed.values()) >= 10 else "does not hold in every mixed loss"
        if len(mixed) < len(_MIXED):
            verdict += f" ({len(mixed)} of {len(_MIXED)} measured)"
        halved = [
            f"{b} against {a} {'yes' if grouped[b] <= mixed[a] / 2 else 'no'}"
            for a, b in _GROUPED.items()
            if a in mixed and b in grouped
        ]
        both = {**mixed, **grouped}
        words = ", ".join(f"{name} {value:.1f}" for name, value in both.items())
        contrast = ", ".join(f"{name} {ratio(late[name], 'norm/dense/contrast')}" for name in both)
        per_sample = ", ".join(f"{name} {ratio(late[name], 'per_sample')}" for name in both)
        lines.append(
            f"{named(result)}: ten times on the negative side (dense weights, last quarter) "
            f"{verdict}: exposed : random {words}. At least halved by grouping: "
            f"{', '.join(halved) or 'not measured'}. By contrast norm (dense): {contrast}. "
            f"Per sample: {per_sample}."
        )
        conflict = [
            f"{name} {number(early[name], key)} / {number(late[name], key) or '-'}"
            for name in both
            if is_known(early[name].get(key := "conflict/dense/exposed:random"))
        ]
        if conflict:
            lines.append(
                f"{named(result)}: share of diagnosed steps, early / late, in which the dense "
                "contrasts of exposed and random conflict (cosine below 0; late ones are partly "
                f"arithmetic): {', '.join(conflict)}."
            )
    return "1. Hard sources dominate mixed losses, grouping restores the balance", lines


def _grouping(results: Sequence[Result]) -> Section:
    lines = []
    for result in results:
        found = result["differences"].get("H2", {})
        recalls = [f"recall@{result['quota']}/{truth}" for truth in ("T1", "T3", "U")]
        verdicts: list[bool] = []
        for other in _MIXED:
            by = found.get(f"ghcl - {other}")
            if by is None:
                continue
            gains = gains_of(by)
            known = list(gains)
            ups = [s for s in known if is_up(by[f"auc/{s}"])]
            downs = [s for s in known if is_down(by[f"auc/{s}"])]
            most = max(gains, key=lambda s: gains[s]) if gains else None
            is_hardest = hardest_gains_most(gains)
            verdicts.append(bool(known) and ups == known and is_hardest)
            each = ", ".join(f"{s} {signed(gain)}" for s, gain in gains.items())
            largest = (
                f"the gain is largest on {most}, so most on the hardest: "
                f"{'yes' if is_hardest else 'no'}"
                if most and gains[most] > 0
                else "there is no gain on any source"
            )
            recall = [difference(by[key], key) for key in recalls if key in by]
            lines.append(
                f"{named(result)}, ghcl - {other}: {each}; significantly better on {listed(ups)}, "
                f"worse on {listed(downs)}; {largest}; {'; '.join(recall)}."
            )
        if verdicts:
            so = "holds" if all(verdicts) else "does not hold"
            some = "" if len(verdicts) == len(_MIXED) else f" ({len(verdicts)} of 3 measured)"
            lines.append(f"{named(result)}: as stated, the claim {so}{some}.")
        for pair in ("grouped_nce - ghcl", "grouped_nce - weighted_nce"):
            by = found.get(pair)
            if by is not None:
                texts = [difference(by[k], k) for k in ("auc/macro", *recalls) if k in by]
                lines.append(f"{named(result)}, control {pair}: {'; '.join(texts)}.")
    return "2. GHCL beats the mixed losses on every source, most on the hardest", lines


def _sizes(results: Sequence[Result]) -> Section:
    lines = []
    for result in results:
        for other in ("heavy - ghcl", "medium - ghcl"):
            by = result["differences"].get("H3", {}).get(other)
            if by is None:
                continue
            texts = [difference(by[f"auc/{s}"], s) for s in gains_of(by)]
            ties, above = ties_of(by), wins_of(by)
            text = (
                f"{named(result)}, {other.replace('ghcl', 'light')}: {', '.join(texts)}; within "
                f"{TIE} on {listed(ties)}; interval above 0 on {listed(above)}"
            )
            if other == "heavy - ghcl":
                so = "holds" if differ_on_hard_ones(by) else "does not hold"
                text += f". By the rule written before, the claim {so}"
            lines.append(f"{text}.")
        by = result["differences"].get("H3", {}).get("heavy - ghcl", {})
        keys = main_keys(result["quota"], result["top_m"], by)
        if keys:
            texts = [difference(by[key], key) for key in keys]
            lines.append(f"{named(result)}, heavy - light, recall: {'; '.join(texts)}.")
    return "3. Light and heavy tie on easy sources and differ on hard ones", lines
