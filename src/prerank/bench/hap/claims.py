"""The five claims and the additions, answered by rule from the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["answers", "counts", "number", "ratio", "shares"]

Result = Mapping[str, Any]
_SOURCES = ("exposed", "rank", "prerank", "random")
_MIXED = ("mixed_bce", "mixed_nce", "mixed_both")
_GROUPED = {"mixed_nce": "grouped_nce", "mixed_both": "ghcl"}
"""Mixed loss -> the same terms, grouped."""
_TIE = 0.005


def ratio(numbers: Mapping[str, float], name: str, a: str = "exposed", b: str = "random") -> str:
    """Return the ratio of two sources in words, empty where one is missing.

    Examples
    --------
    >>> ratio({"per_sample/exposed": 3.0, "per_sample/random": 2.0}, "per_sample")
    '1.5'
    """
    value = _ratio(numbers, name, a, b)
    return "" if value is None else f"{value:.1f}"


def _ratio(numbers: Mapping[str, float], name: str, a: str, b: str) -> float | None:
    top, bottom = numbers.get(f"{name}/{a}"), numbers.get(f"{name}/{b}")
    return None if top is None or not bottom else top / bottom


def number(numbers: Mapping[str, float], key: str) -> str:
    """Return a number with two decimals, empty where it is missing."""
    return f"{numbers[key]:.2f}" if key in numbers else ""


def shares(numbers: Mapping[str, float]) -> str:
    """Return each source's share of the score gradient, hardest first."""
    found = [number(numbers, f"mass/{source}") or "-" for source in _SOURCES]
    return "/".join(found)


def counts(numbers: Mapping[str, float]) -> str:
    """Return how many negatives of each source a diagnosed batch has on average, hardest first.

    Examples
    --------
    >>> counts({"negatives/exposed": 500.4, "negatives/rank": 640.0})
    '500/640/-/-'
    """
    found = [numbers.get(f"negatives/{source}") for source in _SOURCES]
    return "/".join("-" if value is None else f"{value:.0f}" for value in found)


def answers(results: Sequence[Result]) -> str:
    """Return the section of answers."""
    sections = (_dominance, _grouping, _sizes, _shares, _cascade, _harmonised, _trunk)
    text = ["## Answers", ""]
    for section in sections:
        title, lines = section(results)
        text += [f"### {title}", "", *(f"- {line}" for line in lines or ["not measured yet"]), ""]
    return "\n".join(text)


def _name(result: Result) -> str:
    return f"`{result['set']['name']}`"


def _difference(d: Mapping[str, float], key: str) -> str:
    mark = "" if d["p_holm"] < 0.05 else " (not significant)"
    return f"{key} {d['value']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}]{mark}"


def _dominance(results: Sequence[Result]) -> tuple[str, list[str]]:
    lines = []
    for result in results:
        found = result["gradients"]
        late = {name: of["late"] for name, of in found.items()}
        mixed = {
            name: value
            for name in _MIXED
            if name in late
            and (value := _ratio(late[name], "norm/dense/negative", "exposed", "random"))
        }
        grouped = {
            name: value
            for name in ("grouped_nce", "ghcl")
            if name in late
            and (value := _ratio(late[name], "norm/dense/negative", "exposed", "random"))
        }
        if not mixed or not grouped:
            continue
        verdict = "holds" if min(mixed.values()) >= 10 else "does not hold in every mixed loss"
        halved = [
            f"{b} against {a} {'yes' if grouped[b] <= mixed[a] / 2 else 'no'}"
            for a, b in _GROUPED.items()
            if a in mixed and b in grouped
        ]
        words = ", ".join(f"{name} {value:.1f}" for name, value in {**mixed, **grouped}.items())
        contrast = ", ".join(
            f"{name} {ratio(late[name], 'norm/dense/contrast')}" for name in (*mixed, *grouped)
        )
        lines.append(
            f"{_name(result)}: ten times on the negative side (dense weights, last quarter) "
            f"{verdict}: exposed : random {words}. At least halved by grouping: "
            f"{', '.join(halved) or 'not measured'}. By contrast norm: {contrast}."
        )
    return "1. Hard sources dominate mixed losses, grouping restores the balance", lines


def _grouping(results: Sequence[Result]) -> tuple[str, list[str]]:
    lines = []
    for result in results:
        found = result["differences"]["H2"]
        for other in _MIXED:
            by = found.get(f"ghcl - {other}")
            if by is None:
                continue
            ups = [s for s in _SOURCES if _is_up(by.get(f"auc/{s}"))]
            downs = [s for s in _SOURCES if _is_down(by.get(f"auc/{s}"))]
            quota = result["quota"]
            recall = [
                _difference(by[key], key)
                for key in (f"recall@{quota}/T1", f"recall@{quota}/T3")
                if key in by
            ]
            lines.append(
                f"{_name(result)}, GHCL - {other}: better on {_list(ups)}, worse on "
                f"{_list(downs)}; {'; '.join(recall)}."
            )
        for pair in ("grouped_nce - ghcl", "grouped_nce - weighted_nce"):
            by = found.get(pair)
            if by is not None:
                key = f"recall@{result['quota']}/T3"
                texts = [_difference(by[k], k) for k in ("auc/macro", key) if k in by]
                lines.append(f"{_name(result)}, control {pair}: {'; '.join(texts)}.")
    return "2. GHCL beats the mixed losses on every source, most on the hardest", lines


def _is_up(d: Mapping[str, float] | None) -> bool:
    return d is not None and d["p_holm"] < 0.05 and d["value"] > 0


def _is_down(d: Mapping[str, float] | None) -> bool:
    return d is not None and d["p_holm"] < 0.05 and d["value"] < 0


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "no source"


def _sizes(results: Sequence[Result]) -> tuple[str, list[str]]:
    lines = []
    for result in results:
        for other in ("heavy - ghcl", "medium - ghcl"):
            by = result["differences"]["H3"].get(other)
            if by is None:
                continue
            known = [s for s in _SOURCES if f"auc/{s}" in by]
            texts = [f"{s} {by[f'auc/{s}']['value']:+.4f}" for s in known]
            ties = [s for s in known if abs(by[f"auc/{s}"]["value"]) <= _TIE]
            lines.append(
                f"{_name(result)}, {other.replace('ghcl', 'light')}: {', '.join(texts)}; within "
                f"{_TIE} on {_list(ties)}; significantly better on "
                f"{_list([s for s in known if _is_up(by[f'auc/{s}'])])}."
            )
    return "3. Light and heavy tie on easy sources and differ on hard ones", lines


def _main_keys(result: Result) -> list[str]:
    quota, m = result["quota"], result["top_m"]
    return [f"recall@{quota}/T1", f"recall@{quota}/T3", f"recall@{m}/T3:10"]


def _shares(results: Sequence[Result]) -> tuple[str, list[str]]:
    lines = []
    for result in results:
        for name, found in result["shares"].items():
            texts = []
            for key in _main_keys(result):
                if key not in found["best"]:
                    continue
                best = found["best"][key]
                d = best["best - all"][key]
                texts.append(f"best at {100 * best['share']:g} %, over 100 % {_difference(d, key)}")
            if texts:
                lines.append(f"{_name(result)}, {name}: {'; '.join(texts)}.")
    return "4. Quality has an interior optimum over the forwarded share", lines


def _cascade(results: Sequence[Result]) -> tuple[str, list[str]]:
    lines = []
    for result in results:
        for name in ("light -> heavy_hard", "light -> heavy"):
            found = result["shares"].get(name)
            if found is None:
                continue
            texts = []
            for key in _main_keys(result):
                best = found["best"].get(key, {})
                d = best.get("best - heavy", {}).get(key)
                if d is None:
                    continue
                text = f"at {100 * best['share']:g} % {_difference(d, key)}"
                # Beating a heavy model that loses to the light one says nothing for two tiers.
                alone = best.get("best - first", {}).get(key)
                if alone is not None:
                    text += f", minus the light model alone {_difference(alone, key)}"
                texts.append(text)
            if texts:
                lines.append(
                    f"{_name(result)}, {name} minus heavy on everything: " + "; ".join(texts)
                )
        for name, by_share in result.get("costs", {}).get("cascades", {}).items():
            row = by_share["0.3"]
            lines.append(
                f"{_name(result)}: light -> {name} at 30 % takes {row['ratio']:.2f} of the time of "
                f"{name} on everything, measured ({row['predicted']:.2f} by times per candidate, "
                f"{row['predicted_cached']:.2f} with item states at hand)"
            )
    return "5. Light + expressive is as good as expressive on everything, for less", lines


def _harmonised(results: Sequence[Result]) -> tuple[str, list[str]]:
    lines = []
    for result in results:
        for pair, by in result["differences"]["H6a"].items():
            keys = ["auc/macro", *_main_keys(result)]
            texts = [_difference(by[k], k) for k in keys if k in by]
            lines.append(f"{_name(result)}, {pair}: {'; '.join(texts)}.")
    return "6a. Harmonised weights", lines


def _trunk(results: Sequence[Result]) -> tuple[str, list[str]]:
    lines = []
    for result in results:
        shared = result["shares"].get("light -> heavy_shared")
        apart = result["shares"].get("light -> heavy")
        if shared is None or apart is None:
            continue
        texts = []
        for key in _main_keys(result):
            if key in shared["curve"]["0.3"]:
                a, b = (of["curve"]["0.3"][key]["value"] for of in (shared, apart))
                texts.append(f"{key} {a:.4f} against {b:.4f}")
        lines.append(f"{_name(result)}, at 30 %: shared trunk {'; '.join(texts)}.")
    return "6d. A shared trunk", lines
