"""The study's page: tables and answers in Markdown, from the results of its data sets.

Answers are computed from the numbers by the rules of the hypotheses file; no sentence about an
outcome is written by hand here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prerank.bench.hap import claims, page_tables
from prerank.bench.hap.compare import main_keys
from prerank.bench.hap.grid import lines_of
from prerank.bench.hap.page_worlds import other_worlds
from prerank.bench.hap.sets import SETS
from prerank.bench.hap.words import Result, fixed, is_known, table

__all__ = ["page"]

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
(so it may be above 0.05 where the interval excludes 0; users alone where there is one seed), after
Holm's correction within a family: all comparisons and main metrics of one question on one data set.
Source AUC is within a request: engaged exposures against the negatives of one source. Recall and
shares are of what was retrieved. Recall of T3 is agreement with the ranker, on the fitted funnels
one that we fitted; U, the true utility, exists in the simulated world only and is the cleanest
truth.

The fixed source weights of the control `weighted_nce` (exposed 0.5, rank 0.8, prerank 2.3, random
5) come from the shares of the gradient that a prototype measured under a mixed loss, before this
study; they were not tuned here.
"""


def page(results: Sequence[Result]) -> str:
    """Return the page.

    Parameters
    ----------
    results : sequence of mapping
        What ``prerank bench hap`` wrote, one per data set, in any order.
    """
    places = {name: at for at, name in enumerate(SETS)}
    results = sorted(results, key=lambda r: places.get(r["set"]["name"], len(places)))
    own = [result for result in results if not result["set"].get("rates_of")]
    parts = [_INTRO, _sets(results), claims.answers(own)]
    parts += [_tables(result) for result in own]
    for result in own:
        name = result["set"]["name"]
        if others := [r for r in results if r["set"].get("rates_of") == name]:
            parts.append(other_worlds(result, others))
    parts.append(_machines(results))
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _sets(results: Sequence[Result]) -> str:
    rows = [
        [
            f"`{r['set']['name']}`",
            r["set"]["what"],
            " / ".join(f"{n:,}" for n in r["requests"].values()),
            f"{r['candidates_per_request']:.0f}",
            f"{r['quota']} / {r['top_m']}",
            _extent(r),
        ]
        for r in results
    ]
    header = ["set", "what", "train / valid / test requests", "candidates", "quota / m", "trained"]
    return "## Data\n\n" + table(header, rows) + "\n"


def _extent(result: Result) -> str:
    """Say how much of the study a set has."""
    if result.get("complete"):
        return "all"
    num = sum("lr" in line for line in result["lines"].values())
    whole = len(lines_of(result["set"]["name"], result["set"].get("lines") or ()))
    counts = [m["seeds"] for line in result["lines"].values() for m in line["metrics"].values()]
    return f"**{num} of {whole} lines so far, up to {max(counts, default=0)} seeds**"


def _tables(result: Result) -> str:
    name = result["set"]["name"]
    lines = result["lines"]
    first = next(iter(lines.values()))["metrics"]
    keys = ["auc/exposed", "auc/rank", "auc/prerank", "auc/random", "auc/macro"]
    keys += [*main_keys(result["quota"], result["top_m"], first), "utility@10/U"]
    keys = [key for key in keys if key in first]
    rows = []
    for line, of in lines.items():
        lr = f"{of['lr']:g}{'*' if of['lr_is_edge'] else ''}" if "lr" in of else ""
        # References are no models: one row of scores, no seeds.
        seeds = of["metrics"][keys[0]]["seeds"] if "lr" in of else ""
        cells = [_spread(of["metrics"][key]) if key in of["metrics"] else "" for key in keys]
        rows.append([f"{line}: {of['what']}", lr, str(seeds), *cells])
    text = f"## {name}: all lines\n\n{table(['line', 'lr', 'seeds', *keys], rows)}\n\n"
    text += "`*`: the first or last rate that was tried.\n\n"
    for title, body in page_tables.sections(result, keys):
        text += f"### {name}: {title}\n\n{body}\n\n"
    return text


def _spread(metric: Mapping[str, Any]) -> str:
    sd = metric["sd_seeds"]
    return fixed(metric["value"]) + (f" ±{sd:.4f}" if is_known(sd) else "")


def _machines(results: Sequence[Result]) -> str:
    names = {
        f"{r['machine']['cpu']}, one thread per training, torch {r['machine']['torch']}"
        for r in results
    }
    return "## Machine\n\n" + "\n".join(f"- {name}" for name in sorted(names)) + "\n"
