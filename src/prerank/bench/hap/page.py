"""The study's page: tables and answers in Markdown, from the results of its data sets.

Answers are computed from the numbers by the rules of the hypotheses file; no sentence about an
outcome is written by hand here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prerank.bench.hap import claims

__all__ = ["page"]

Result = Mapping[str, Any]

_INTRO = """# HAP, measured

<!-- Written by `prerank bench hap-page`; edit the study, not this file. -->

HAP (arXiv 2603.03770) says that negatives from different stages of a cascade differ in difficulty,
that hard ones drown easy ones in a mixed loss, and that compute should go to the hard candidates.
Its loss constants, tables and exact instruments are not public and there is no official code. What
follows tests **our reconstruction** of it; what is inferred is listed in
[the sheet of the objective](hap.md).

The questions, the rules for an answer and the expectations were
[committed before the first run](../benchmarks/hap/hypotheses.md). `world` is **simulated**; `ml1m`
and `mind` are **fitted funnels**: real users, items and ratings or clicks, in a cascade that we
fitted on them. Nothing here is about production traffic.

Unless said otherwise: mean over seeds, ± standard deviation over seeds; [a, b] a 95 % interval by
bootstrap over users of per-request values averaged over seeds; p counts users and seeds together
(so it may be above 0.05 where the interval excludes 0), after Holm's correction within a family of
comparisons on one data set. Source AUC is within a request: engaged exposures against
the negatives of one source.
"""


def page(results: Sequence[Result]) -> str:
    """Return the page.

    Parameters
    ----------
    results : sequence of mapping
        What ``prerank bench hap`` wrote, one per data set.
    """
    parts = [_INTRO, _sets(results), claims.answers(results)]
    parts += [_tables(result) for result in results]
    parts.append(_machines(results))
    return "\n".join(part.rstrip() + "\n" for part in parts)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; the first column is left-aligned.

    Examples
    --------
    >>> print(table(["a", "b"], [["x", "1"]]))
    | a | b |
    |---|---:|
    | x | 1 |
    """
    rule = ["---", *("---:" for _ in header[1:])]
    lines = [f"| {' | '.join(header)} |", f"|{'|'.join(rule)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _sets(results: Sequence[Result]) -> str:
    rows = [
        [
            f"`{r['set']['name']}`",
            r["set"]["what"],
            " / ".join(f"{n:,}" for n in r["requests"].values()),
            f"{r['candidates_per_request']:.0f}",
            f"{r['quota']} / {r['top_m']}",
            "yes" if r.get("complete") else "no",
        ]
        for r in results
    ]
    header = ["set", "what", "train / valid / test requests", "candidates", "quota / m", "complete"]
    return "## Data\n\n" + table(header, rows) + "\n"


def _tables(result: Result) -> str:
    name = result["set"]["name"]
    lines = result["lines"]
    q, m = result["quota"], result["top_m"]
    keys = ["auc/exposed", "auc/rank", "auc/prerank", "auc/random", "auc/macro"]
    keys += [f"recall@{q}/T1", f"recall@{q}/T3", f"recall@{m}/T3:10"]
    keys += [f"recall@{q}/U", "utility@10/U"]
    first = next(iter(lines.values()))["metrics"]
    keys = [key for key in keys if key in first]
    rows = []
    for line, of in lines.items():
        lr = f"{of['lr']:g}{'*' if of['lr_is_edge'] else ''}" if "lr" in of else ""
        seeds = of["metrics"][keys[0]]["seeds"]
        cells = [_spread(of["metrics"][key]) for key in keys]
        rows.append([f"{line}: {of['what']}", lr, str(seeds), *cells])
    text = f"## {name}: all lines\n\n{table(['line', 'lr', 'seeds', *keys], rows)}\n\n"
    text += "`*`: the first or last rate that was tried.\n\n"
    for family, found in result["differences"].items():
        if found:
            text += f"### {name}: {family}\n\n{_differences(found, keys)}\n\n"
    if result["shares"]:
        text += f"### {name}: forwarded share\n\n{_curves(result, keys)}\n\n"
    if result["gradients"]:
        text += f"### {name}: gradients\n\n{_gradients(result)}\n\n"
    return text


def _spread(metric: Mapping[str, Any]) -> str:
    sd = metric["sd_seeds"]
    return f"{metric['value']:.4f}" + (f" ±{sd:.4f}" if sd is not None else "")


def _differences(found: Mapping[str, Any], keys: Sequence[str]) -> str:
    known = [key for key in keys if any(key in by for by in found.values())]
    rows = []
    for pair, by in found.items():
        cells = []
        for key in known:
            d = by.get(key)
            if d is None:
                cells.append("")
                continue
            mark = "**" if d["p_holm"] < 0.05 else ""
            cells.append(f"{mark}{d['value']:+.4f}{mark} [{d['low']:+.4f}, {d['high']:+.4f}]")
        rows.append([pair, *cells])
    return table(["a - b", *known], rows) + "\n\nBold: p < 0.05 after Holm."


def _curves(result: Result, keys: Sequence[str]) -> str:
    text = []
    for key in (k for k in keys if k.startswith(("recall", "utility"))):
        shares = list(next(iter(result["shares"].values()))["curve"])
        rows = []
        for name, found in result["shares"].items():
            cells = [f"{found['curve'][share][key]['value']:.4f}" for share in shares]
            rows.append([name, *cells, f"{100 * found['best'][key]['share']:g} %"])
        header = [key, *(f"{100 * float(share):g} %" for share in shares), "best on valid"]
        text.append(table(header, rows))
    return "\n\n".join(text)


def _gradients(result: Result) -> str:
    rows = []
    for line, found in result["gradients"].items():
        for part in ("early", "late"):
            of = found[part]
            cells = [
                claims.counts(of),
                claims.ratio(of, "norm/dense/negative"),
                claims.ratio(of, "norm/table/negative"),
                claims.ratio(of, "norm/dense/contrast"),
                claims.ratio(of, "norm/table/contrast"),
                claims.ratio(of, "per_sample"),
                claims.shares(of),
                claims.number(of, "cos/dense/exposed:random"),
                claims.number(of, "cos/dense/exposed:prerank"),
            ]
            rows.append([line, part, *cells])
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
        "cosine exposed, random",
        "cosine exposed, prerank",
    ]
    note = (
        "Early: first quarter of training, late: last quarter. Late negative cosines are partly "
        "arithmetic: near equilibrium the contrasts must cancel."
    )
    return table(header, rows) + f"\n\n{note}"


def _machines(results: Sequence[Result]) -> str:
    names = {
        f"{r['machine']['cpu']}, one thread per training, torch {r['machine']['torch']}"
        for r in results
    }
    return "## Machine\n\n" + "\n".join(f"- {name}" for name in sorted(names)) + "\n"
