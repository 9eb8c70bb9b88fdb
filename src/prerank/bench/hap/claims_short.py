"""The five claims and our own ideas in one table: a row per question, a column per data set.

Cells follow from the numbers by the rules of the hypotheses file; the answers below the table on
the page say with what numbers. A cell is empty where a set has not measured it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prerank.bench.hap.compare import main_keys
from prerank.bench.hap.verdicts import differ_on_hard_ones, gains_of, hardest_gains_most
from prerank.bench.hap.words import (
    Result,
    fixed,
    is_down,
    is_known,
    is_up,
    ratio_of,
    table,
)

__all__ = ["in_short"]

Cell = Callable[[Result], str]

_MIXED = ("mixed_bce", "mixed_nce", "mixed_both")
_GROUPED = (("mixed_nce", "grouped_nce"), ("mixed_both", "ghcl"))
_HARD, _ALL = "light -> heavy_hard", "light -> heavy"
_AGAIN = "control: light -> light of another seed"


def in_short(results: Sequence[Result]) -> str:
    """Return the table.

    Parameters
    ----------
    results : sequence of mapping
        One per data set.
    """
    rows = [[what, *(cell(result) for result in results)] for what, cell in _ROWS]
    names = [f"`{result['set']['name']}`" for result in results]
    known = [row for row in rows if any(row[1:])]
    if not known:
        return ""
    note = (
        "Significant: p < 0.05 over users and seeds after Holm within the question's family. On "
        "all: of every candidate; each cascade is taken at the share that valid picks. Recalls: "
        "those of T1 and T3 at the quota, of the ranker's first ten in m, and of U where there is "
        "one."
    )
    return f"### In short\n\n{table(['', *names], known)}\n\n{note}\n"


def _late(result: Result) -> dict[str, Any]:
    return {name: by["late"] for name, by in result["gradients"].items()}


def _negative(result: Result) -> dict[str, float]:
    found = {name: ratio_of(of, "norm/dense/negative") for name, of in _late(result).items()}
    return {name: value for name, value in found.items() if value is not None}


def _dominance(result: Result) -> str:
    ratios = _negative(result)
    known = [ratios[name] for name in _MIXED if name in ratios]
    if not known:
        return ""
    so = "yes" if min(known) >= 10 else "no" if max(known) < 10 else "in some"
    return f"{so} ({min(known):.1f} to {max(known):.1f})"


def _balance(result: Result) -> str:
    ratios = _negative(result)
    known = [(ratios[a], ratios[b]) for a, b in _GROUPED if a in ratios and b in ratios]
    return _share(sum(after <= before / 2 for before, after in known), len(known))


def _per_sample(result: Result) -> str:
    late = _late(result)
    found = [ratio_of(late[name], "per_sample") for name in _MIXED if name in late]
    known = [value for value in found if value is not None]
    return f"{min(known):.1f} to {max(known):.1f}" if known else ""


def _sources(result: Result) -> str:
    found = [
        by[f"auc/{source}"]
        for other in _MIXED
        if (by := result["differences"].get("H2", {}).get(f"ghcl - {other}"))
        for source in gains_of(by)
    ]
    return _up_down(found)


def _hardest(result: Result) -> str:
    by_pair = result["differences"].get("H2", {})
    gains = [gains_of(by_pair.get(f"ghcl - {other}", {})) for other in _MIXED]
    verdicts = [hardest_gains_most(each) for each in gains if each]
    return _share(sum(verdicts), len(verdicts))


def _recall(family: str, *pairs: str) -> Cell:
    """Return a cell: on how many recalls of some differences the first is better or worse."""

    def cell(result: Result) -> str:
        found: list[Any] = []
        for pair in pairs:
            by = result["differences"].get(family, {}).get(pair, {})
            found += [by[key] for key in main_keys(result["quota"], result["top_m"], by)]
        return _up_down(found)

    return cell


def _tie(result: Result) -> str:
    by = result["differences"].get("H3", {}).get("heavy - ghcl", {})
    return _share(differ_on_hard_ones(by), 1) if gains_of(by) else ""


def _interior(result: Result) -> str:
    found = _best(result, _HARD)
    inside = [b for b in found if not b.get("is_edge") and is_up(b.get("best - all"))]
    return _share(len(inside), len(found))


def _falls(other: str) -> Cell:
    def cell(result: Result) -> str:
        by = result.get("drops", {}).get(f"{_HARD} - {other}", {})
        keys = main_keys(result["quota"], result["top_m"], by)
        return _share(sum(is_up(by[key]) for key in keys), len(keys))

    return cell


def _worth(name: str, pair: str) -> Cell:
    def cell(result: Result) -> str:
        return _up_down([best[pair] for best in _best(result, name) if pair in best])

    return cell


def _best(result: Result, name: str) -> list[Mapping[str, Any]]:
    best = result["shares"].get(name, {}).get("best", {})
    return [best[key] for key in main_keys(result["quota"], result["top_m"], best)]


def _cost(result: Result) -> str:
    row = result.get("costs", {}).get("cascades", {}).get("heavy", {}).get("0.3", {})
    if not is_known(row.get("ratio")):
        return ""
    return f"{fixed(row['ratio'], 2)} (predicted {fixed(row['predicted'], 2)})"


def _promises(result: Result) -> str:
    found = [row for row in result.get("promises") or [] if is_known(row["loss"])]
    broken = [row for row in found if is_known(row["low"]) and row["low"] > row["epsilon"]]
    kept = [row for row in found if row["loss"] <= row["epsilon"]]
    return f"{len(kept)} of {len(found)}, {len(broken)} clearly broken" if found else ""


def _budgets(result: Result) -> str:
    found = [row["difference"] for row in result.get("budgets") or []]
    better, worse = sum(map(is_down, found)), sum(map(is_up, found))
    return f"{better} better, {worse} worse of {len(found)}" if found else ""


def _trunk(result: Result) -> str:
    found = [
        by[key]
        for by in result.get("trunk", {}).values()
        for key in main_keys(result["quota"], result["top_m"], by)
    ]
    return _up_down(found)


def _share(count: int, total: int) -> str:
    if not total:
        return ""
    return "yes" if count == total else "no" if not count else f"on {count} of {total}"


def _up_down(found: Sequence[Mapping[str, Any]]) -> str:
    """Say how many differences are significantly up and down."""
    if not found:
        return ""
    up, down = sum(map(is_up, found)), sum(map(is_down, found))
    if not up and not down:
        return f"nothing significant of {len(found)}"
    return f"{up} better, {down} worse of {len(found)}"


_ROWS: tuple[tuple[str, Cell], ...] = (
    (
        "1. Mixed losses, late: `exposed` ten times `random` (negative side, dense)",
        _dominance,
    ),
    ("the same per sample: from least to most over mixed losses", _per_sample),
    ("grouping at least halves the ratio", _balance),
    ("2. GHCL against the mixed losses, source AUCs", _sources),
    ("the gain is largest on the hardest source", _hardest),
    (
        "GHCL against the mixed losses, recalls",
        _recall("H2", *(f"ghcl - {other}" for other in _MIXED)),
    ),
    (
        "grouped InfoNCE against one denominator with fixed weights, recalls",
        _recall("H2", "grouped_nce - weighted_nce"),
    ),
    ("3. Heavy and light tie on easy sources, heavy better on hard ones", _tie),
    ("heavy against light, recalls", _recall("H3", "heavy - ghcl")),
    ("4. Hard sources only: best share inside, significant fall to 100 %", _interior),
    ("falls more than light -> light of another seed", _falls(_AGAIN)),
    ("falls more than when trained on all sources", _falls(_ALL)),
    (
        "5. light -> heavy of hard sources against heavy on all",
        _worth(_HARD, "best - heavy"),
    ),
    ("light -> heavy of all sources against heavy on all", _worth(_ALL, "best - heavy")),
    ("light -> heavy of hard sources against light alone", _worth(_HARD, "best - first")),
    ("light -> heavy of all sources against light alone", _worth(_ALL, "best - first")),
    ("time of light -> heavy at 30 % over heavy on all", _cost),
    ("6a. Harmonised weights against GHCL, recalls", _recall("H6a", "harmonised - ghcl")),
    ("6b. A cut with a promise: kept on test", _promises),
    ("6c. One budget for all requests against a fixed share, losses", _budgets),
    ("6d. Shared trunk against apart at 30 %, recalls", _trunk),
)
