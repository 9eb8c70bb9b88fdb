"""Numbers of a study's results as words; what is missing or was not defined stays readable.

Results come back from JSON, where a number that is not defined is null.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = [
    "SOURCES",
    "Result",
    "counts",
    "difference",
    "first_of",
    "fixed",
    "is_down",
    "is_known",
    "is_up",
    "listed",
    "mean_logits",
    "named",
    "number",
    "over_sets",
    "per_source",
    "ratio",
    "ratio_of",
    "signed",
    "table",
    "with_interval",
]

Result = Mapping[str, Any]
SOURCES = ("exposed", "rank", "prerank", "random")
"""Hardest first."""


def is_known(value: Any) -> bool:
    """Whether a number is there and defined.

    Examples
    --------
    >>> is_known(0.0), is_known(None), is_known(float("nan"))
    (True, False, False)
    """
    return value is not None and value == value  # noqa: PLR0124 - NaN is not itself


def fixed(value: float | None, digits: int = 4) -> str:
    """Return a number with so many decimals, ``-`` where it is not defined."""
    return f"{value:.{digits}f}" if value is not None and is_known(value) else "-"


def signed(value: float | None, digits: int = 4) -> str:
    """Return a difference with its sign, ``-`` where it is not defined."""
    return f"{value:+.{digits}f}" if value is not None and is_known(value) else "-"


def with_interval(d: Mapping[str, Any]) -> str:
    """Return a difference with its interval, bold where it is significant.

    Examples
    --------
    >>> with_interval({"value": 0.1, "low": 0.05, "high": 0.2, "p_holm": 0.01})
    '**+0.1000** [+0.0500, +0.2000]'
    >>> with_interval({"value": None, "low": None, "high": None, "p_holm": None})
    '-'
    """
    if not is_known(d["value"]):
        return "-"
    mark = "**" if _is_significant(d) else ""
    return f"{mark}{signed(d['value'])}{mark} [{signed(d['low'])}, {signed(d['high'])}]"


def difference(d: Mapping[str, Any], key: str) -> str:
    """Return a difference of a metric in a sentence."""
    if not is_known(d["value"]):
        return f"{key} not defined"
    mark = "" if _is_significant(d) else " (not significant)"
    return f"{key} {signed(d['value'])} [{signed(d['low'])}, {signed(d['high'])}]{mark}"


def _is_significant(d: Mapping[str, Any]) -> bool:
    return is_known(d.get("p_holm")) and d["p_holm"] < 0.05


def is_up(d: Mapping[str, Any] | None) -> bool:
    """Whether a difference is significantly above 0."""
    return d is not None and _is_significant(d) and d["value"] > 0


def is_down(d: Mapping[str, Any] | None) -> bool:
    """Whether a difference is significantly below 0."""
    return d is not None and _is_significant(d) and d["value"] < 0


def listed(names: Sequence[str], none: str = "no source") -> str:
    """Return names in a row."""
    return ", ".join(names) if names else none


def named(result: Result) -> str:
    """Return a data set's name for a sentence."""
    return f"`{result['set']['name']}`"


def first_of(costs: Mapping[str, Any], second: str) -> str:
    """Return the name of the model before a second one, in words.

    Examples
    --------
    >>> first_of({"first": {"heavy": "ghcl", "b": "a"}}, "heavy"), first_of({}, "heavy")
    ('light', 'light')
    """
    name: str = costs.get("first", {}).get(second, "ghcl")
    return "light" if name == "ghcl" else name


def over_sets(what: str, found: Mapping[str, bool]) -> str:
    """Return on how many data sets something is so.

    Examples
    --------
    >>> over_sets("better", {"`world`": True, "`mind`": False})
    'Better on 1 of 2 measured sets (`world`).'
    """
    having = [name for name, so in found.items() if so]
    names = f" ({', '.join(having)})" if having else ""
    return f"{what.capitalize()} on {len(having)} of {len(found)} measured sets{names}."


def ratio(numbers: Mapping[str, Any], name: str, a: str = "exposed", b: str = "random") -> str:
    """Return the ratio of two sources in words, empty where one is missing.

    Examples
    --------
    >>> ratio({"per_sample/exposed": 3.0, "per_sample/random": 2.0}, "per_sample")
    '1.5'
    """
    value = ratio_of(numbers, name, a, b)
    return "" if value is None else f"{value:.1f}"


def ratio_of(
    numbers: Mapping[str, Any], name: str, a: str = "exposed", b: str = "random"
) -> float | None:
    """Return the ratio of two sources, None where one is missing."""
    top, bottom = numbers.get(f"{name}/{a}"), numbers.get(f"{name}/{b}")
    return None if top is None or not bottom else float(top / bottom)


def number(numbers: Mapping[str, Any], key: str) -> str:
    """Return a number with two decimals, empty where it is missing."""
    value = numbers.get(key)
    return fixed(value, 2) if is_known(value) else ""


def per_source(numbers: Mapping[str, Any], measure: str) -> str:
    """Return a measure of each source, hardest first.

    Examples
    --------
    >>> per_source({"mass/exposed": 0.5, "mass/random": 0.25}, "mass")
    '0.50/-/-/0.25'
    """
    return "/".join(number(numbers, f"{measure}/{source}") or "-" for source in SOURCES)


def mean_logits(numbers: Mapping[str, Any]) -> str:
    """Return the mean score of the positives and of each source, hardest first."""
    return f"{number(numbers, 'logit/positive') or '-'} : {per_source(numbers, 'logit')}"


def counts(numbers: Mapping[str, Any]) -> str:
    """Return how many negatives of each source a diagnosed batch has on average, hardest first.

    Examples
    --------
    >>> counts({"negatives/exposed": 500.4, "negatives/rank": 640.0})
    '500/640/-/-'
    """
    return "/".join(fixed(numbers.get(f"negatives/{source}"), 0) for source in SOURCES)


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
