"""The tables of one data set on the study's page, after that of all lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prerank.bench.hap.compare import main_keys
from prerank.bench.hap.words import (
    Result,
    counts,
    first_of,
    fixed,
    is_known,
    mean_logits,
    number,
    per_source,
    ratio,
    table,
    with_interval,
)

__all__ = ["sections"]

_BOLD = "Bold: p < 0.05 after Holm."
_FAMILIES = {"default": "which loss by default", "paper": "exploratory: paper sizes, one seed"}


def sections(result: Result, keys: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield title and text of what is measured.

    Parameters
    ----------
    result : mapping
        Of one data set.
    keys : sequence of str
        Metrics of the tables.
    """
    if result.get("rates"):
        yield "learning rates tried", _rates(result["rates"])
    if any("train_cpu_s" in line for line in result["lines"].values()):
        yield "trainings", _trainings(result["lines"])
    for family, found in result["differences"].items():
        if found and family != "temperature":  # those are rows of the next table
            yield _FAMILIES.get(family, family), _differences(found, keys)
    if sweeps := list(_sweep_rows(result, keys)):
        yield "quotas and temperatures", _sweeps(sweeps, keys)
    for shares, title in (
        ("shares", "forwarded share"),
        ("paper_shares", "exploratory: forwarded share at paper sizes, one seed"),
    ):
        if result.get(shares):
            yield title, _curves(result[shares], keys)
    for name, title in (
        ("drops", "drop from the best share to 100 %, between combinations"),
        ("tiers", "second model of hard sources minus of all, each at its best share"),
        ("trunk", "shared trunk minus apart, at 30 %"),
    ):
        if result.get(name):
            yield title, _differences(result[name], keys)
    for share, found in (result.get("routers") or {}).items():
        yield f"routers, {100 * float(share):g} % forwarded", _routers(result, found)
    if result.get("promises"):
        yield "a cut with a promise", _promises(result["promises"])
    if result.get("budgets"):
        yield "one budget for all requests", _budgets(result["budgets"])
    if result.get("costs"):
        yield "costs", _costs(result["costs"])
    if result["gradients"]:
        yield "gradient norms", _norms(result)
        yield "gradients against one another", _angles(result)


def _rates(rates: Mapping[str, Mapping[str, float]]) -> str:
    tried = sorted({rate for by in rates.values() for rate in by}, key=float)
    rows = []
    for name, by in rates.items():
        known = {rate: value for rate, value in by.items() if is_known(value)}
        best = max(known, key=lambda rate: known[rate], default=None)
        cells = [
            f"**{fixed(by[rate])}**" if rate == best else fixed(by.get(rate)) for rate in tried
        ]
        rows.append([name, *cells])
    note = "Macro source AUC on valid, seed 0; bold: the rate that was taken."
    return f"{table(['line', *tried], rows)}\n\n{note}"


def _differences(found: Mapping[str, Any], keys: Sequence[str]) -> str:
    known = [key for key in keys if any(key in by for by in found.values())]
    rows = [
        [pair, *(with_interval(by[key]) if key in by else "" for key in known)]
        for pair, by in found.items()
    ]
    return f"{table(['a - b', *known], rows)}\n\n{_BOLD}"


def _trainings(lines: Mapping[str, Any]) -> str:
    rows = [
        [
            name,
            f"{of['params_dense']:,}",
            f"{of['params_table']:,}",
            f"{of['steps']:,}",
            fixed(of["train_cpu_s"], 1) + (" (diagnosed)" if of["timed"]["diagnosed"] else ""),
            str(of["timed"]["seeds"]),
        ]
        for name, of in lines.items()
        if "train_cpu_s" in of
    ]
    header = ["line", "dense parameters", "table parameters", "updates", "CPU seconds", "timed"]
    note = (
        "CPU seconds: median over the trainings whose gradients were not diagnosed, as that takes "
        "time of its own; timed: how many those are. Other work ran on the machine's other core."
    )
    return f"{table(header, rows)}\n\n{note}"


_SWEEPS = (
    ("quotas 10 / 2 / 1", "H2 variants", "ghcl@starved", "mixed_both@starved"),
    ("quotas 10 / 10 / 2", "H2", "ghcl", "mixed_both"),
    ("quotas 10 / 40 / 8", "H2 variants", "ghcl@flooded", "mixed_both@flooded"),
    ("temperature 0.1", "temperature", "grouped_nce@tau0.1", "mixed_nce@tau0.1"),
    ("temperature 0.3", "H2 variants", "grouped_nce@tau0.3", "mixed_nce@tau0.3"),
    ("temperature 1", "H2", "grouped_nce", "mixed_nce"),
    ("temperature 3", "temperature", "grouped_nce@tau3", "mixed_nce@tau3"),
)
"""Setting, family of its test, and the two lines."""


def _sweep_rows(result: Result, keys: Sequence[str]) -> Iterator[list[str]]:
    lines, differences = result["lines"], result["differences"]
    for setting, family, a, b in _SWEEPS:
        by = differences.get(family, {}).get(f"{a} - {b}")
        is_swept = any(f"{name}@" in line for name in (a, b) for line in lines)
        if by is None or not ("@" in a or is_swept):
            continue
        seeds = min(lines[name]["metrics"][keys[0]]["seeds"] for name in (a, b))
        cells = [with_interval(by[key]) if key in by else "" for key in keys]
        yield [setting, f"{a.split('@')[0]} - {b.split('@')[0]}", str(seeds), *cells]


def _sweeps(rows: Sequence[Sequence[str]], keys: Sequence[str]) -> str:
    note = (
        "Quotas: rank and prerank per request, random per positive. Each setting is trained and "
        "tested on its own, at the rates of the default setting. "
    )
    return f"{table(['setting', 'a - b', 'seeds', *keys], rows)}\n\n{note}{_BOLD}"


def _curves(found_by: Mapping[str, Any], keys: Sequence[str]) -> str:
    text = []
    for key in (k for k in keys if k.startswith(("recall", "utility"))):
        shares = list(next(iter(found_by.values()))["curve"])
        rows = []
        for name, found in found_by.items():
            cells = [fixed(found["curve"][share][key]["value"]) for share in shares]
            best = found["best"][key]
            picked = f"{100 * best['share']:g} %{' (edge)' if best.get('is_edge') else ''}"
            gains = [
                with_interval(best[pair]) if pair in best else ""
                for pair in ("best - all", "best - first", "best - heavy")
            ]
            rows.append([name, *cells, picked, *gains])
        header = [key, *(f"{100 * float(share):g} %" for share in shares), "best on valid"]
        header += ["minus 100 %", "minus the first model", "minus heavy"]
        text.append(table(header, rows))
    note = (
        "Recall at k cannot change while fewer than k go on: what is re-ordered stays above the "
        "cut. Where shares are equally good on valid the smallest is taken; edge: the first or "
        "last of the grid. "
    )
    return "\n\n".join([*text, note + _BOLD])


def _routers(result: Result, found: Mapping[str, Any]) -> str:
    values = found["values"]
    keys = main_keys(result["quota"], result["top_m"], next(iter(values.values())))
    rows = []
    for name, of in values.items():
        by = found["differences"].get(f"{name} - score", {})
        cells = []
        for key in keys:
            against = f" ({with_interval(by[key])})" if key in by else ""
            cells.append(fixed(of[key]) + against)
        rows.append([name, *cells])
    note = "In brackets: minus the highest-scored. The oracle knows T3 and is in no test. "
    return f"{table(['router', *keys], rows)}\n\n{note}{_BOLD}"


def _promises(found: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            row["family"],
            f"{row['epsilon']:g}",
            f"{fixed(row['loss'])} [{fixed(row['low'])}, {fixed(row['high'])}]",
            fixed(row["share"], 3),
            *(
                f"{fixed(w['value'])} [{fixed(w['low'])}, {fixed(w['high'])}]"
                for w in row["windows"]
            ),
            fixed(row["scored_share"], 3),
            f"{row['seeds']} of {row['asked']}",
        ]
        for row in found
    ]
    quarters = [f"quarter {n + 1}" for n in range(max(len(row["windows"]) for row in found))]
    header = ["rule", "at most", "realised loss", "share", *quarters, "scored share", "seeds"]
    note = (
        "Loss: share of the ranker's first m that is not forwarded. Level certified on valid, "
        "judged on test, which is later; quarters of test are in time. Scored share: candidates "
        "that the ranker scored; the promise says nothing about others."
    )
    return f"{table(header, rows)}\n\n{note}"


def _budgets(found: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            row["family"],
            f"{100 * row['share']:g} %",
            fixed(row["forwarded"], 1),
            fixed(row["loss"]),
            fixed(row["fixed"]),
            with_interval(row["difference"]),
        ]
        for row in found
    ]
    header = ["rule", "planned", "forwarded per request", "loss", "loss of a fixed share"]
    note = "The fixed share forwards as many on test as the rule did. Below 0 the rule is better. "
    return f"{table([*header, 'difference'], rows)}\n\n{note}{_BOLD}"


def _costs(costs: Mapping[str, Any]) -> str:
    text = []
    fields = ("us_per_request", "us_per_item", "us_per_candidate")
    models = costs.get("models", {})
    known = [f for f in fields if any(f in of for of in models.values())]
    if known:
        rows = [[name, *(fixed(of.get(f), 2) for f in known)] for name, of in models.items()]
        text.append(table(["model", *(f.replace("_", " ") for f in known)], rows))
    rows = [
        [
            f"{first_of(costs, name)} -> {name}",
            f"{100 * float(share):g} %",
            f"{row['us']:,.0f}",
            *(fixed(row[key], 2) for key in ("ratio", "predicted", "predicted_cached")),
        ]
        for name, by_share in costs["cascades"].items()
        for share, row in by_share.items()
    ]
    header = ["cascade", "share", "us a request", "over second model on everything"]
    header += ["predicted", "predicted, item states at hand"]
    note = f"One thread, one request of {costs['candidates']} candidates."
    return "\n\n".join([*text, table(header, rows), note])


def _norms(result: Result) -> str:
    rows = [
        [
            line,
            part,
            counts(of),
            ratio(of, "norm/dense/negative"),
            ratio(of, "norm/table/negative"),
            ratio(of, "norm/dense/contrast"),
            ratio(of, "norm/table/contrast"),
            ratio(of, "per_sample"),
            per_source(of, "mass"),
            mean_logits(of),
        ]
        for line, part, of in _parts(result)
    ]
    header = [
        "line",
        "part of training",
        "negatives a batch e/r/p/r",
        "negative side, dense, exposed : random",
        "negative side, tables",
        "contrast, dense",
        "contrast, tables",
        "per sample",
        "share of score gradient e/r/p/r",
        "mean logit positive : e/r/p/r",
    ]
    return table(header, rows) + (
        "\n\nEarly: first quarter of training, late: last quarter. e/r/p/r: exposed, rank, "
        "prerank, random."
    )


def _angles(result: Result) -> str:
    pairs = ("exposed:random", "exposed:prerank")
    rows = []
    for line, part, of in _parts(result):
        cells = [
            "/".join(number(of, f"{measure}/{where}/{pair}") or "-" for pair in pairs)
            for measure in ("cos", "conflict", "similarity")
            for where in ("dense", "table")
        ]
        dominance = [per_source(of, f"dominance/{where}") for where in ("dense", "table")]
        steps = result["gradients"][line].get("steps", "")
        rows.append([line, part, str(steps), *cells, *dominance])
    header = ["line", "part of training", "diagnosed batches"]
    header += [
        f"{measure}, {where}"
        for measure in ("cosine", "conflict rate", "magnitude similarity")
        for where in ("dense", "tables")
    ]
    header += ["dominance e/r/p/r, dense", "dominance, tables"]
    note = (
        "Of contrasts; first number exposed and random, second exposed and prerank. Conflict rate: "
        "share of diagnosed steps with a cosine below 0. Late negative cosines are partly "
        "arithmetic: near equilibrium the contrasts must cancel."
    )
    return f"{table(header, rows)}\n\n{note}"


def _parts(result: Result) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for line, found in result["gradients"].items():
        for part in ("early", "late"):
            yield line, part, found[part]
