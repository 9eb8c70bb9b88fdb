"""Decisions to a map: values of an ``ImpressionMap`` and its text with the evidence behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import yaml

from prerank.log.impressions.infer.columns import Choice, label_name, rank_stage, split_events
from prerank.log.impressions.infer.keys import WINDOW_MS, Keys
from prerank.log.impressions.infer.profile import Profile

__all__ = ["Draft"]

_OWNERS = ("user", "context", "item", "candidate")
_ID_ROLES = ("user", "item", "time")
_TAKEN = ("user", "item", "time", "stage", "channel", "weight", "propensity", "request_id")


class Draft:
    """Collects the lines of a map.

    Parameters
    ----------
    title : str
        First lines of the text, without comment marks.
    keys : Keys
        The key columns.
    choices : list of Choice
        Everything else.
    profiles : dict of str to Profile
        Facts of the columns.
    header : sequence of str
        Names for a text file without a header line; empty otherwise.
    """

    def __init__(
        self,
        title: str,
        keys: Keys,
        choices: list[Choice],
        profiles: dict[str, Profile],
        header: Sequence[str],
    ) -> None:
        self.lines = [f"# {line}" for line in title.splitlines()]
        self.open: list[str] = []
        self._choices = choices
        if header:
            self._line(0, f"header: {_flow(list(header))}", "no header line: rename as you like")
        self._keys(keys, profiles)
        engaged = self._labels()
        self._evidence()
        self._features(keys)
        self._rest(engaged)

    @property
    def text(self) -> str:
        """The map as YAML."""
        return "\n".join(self.lines) + "\n"

    def _line(self, indent: int, text: str, why: str = "") -> None:
        self.lines.append(" " * indent + text + (f"  # {why}" if why else ""))

    def _ask(self, indent: int, question: str) -> None:
        self.open.append(question)
        self.lines.append(" " * indent + f"# CHECK {question}")

    def _of(self, *places: str) -> list[Choice]:
        return [c for c in self._choices if c.place in places]

    def _keys(self, keys: Keys, profiles: dict[str, Profile]) -> None:
        self.lines.append("")
        for role in _ID_ROLES:
            column = getattr(keys, role)
            if column is None:
                form = ": ISO 8601, or a number since 1970" if role == "time" else ""
                self._ask(0, f"no column found for the {role}{form}; every impression needs one")
                self._line(0, f"# {role}: COLUMN")
                continue
            self._line(0, f"{role}: {_flow(column)}", keys.why.get(role, ""))
            if role in keys.doubts:
                self._ask(0, f"{role} {column}: {keys.doubts[role]}")
            for other in keys.others.get(role, []):
                self._line(0, f"#   or {role}: {_flow(other)}", profiles[other].summary())
        times = profiles[keys.time].times if keys.time is not None else None
        if times is not None and times.unit is not None:
            self._line(0, f"time_unit: {times.unit}")
        if keys.request is not None:
            self._line(0, f"request_id: {_flow(keys.request)}", keys.why["request"])
        else:
            self._line(0, f"window_ms: {WINDOW_MS}", keys.why.get("window_ms", ""))
            self._line(
                0, "# request_id: COLUMN", "instead of window_ms, if a column names requests"
            )

    def _labels(self) -> str:
        """Write labels and engaged; return the expression that means engaged."""
        plain, events = self._of("label"), self._of("event")
        self.lines += ["", "labels:" if plain or events else "labels: {}"]
        names: dict[str, Choice | None] = {}
        for c in plain:
            name = label_name(c.column)
            names[name] = c
            self._line(2, f"{name}: {_flow(c.column)}", c.why)
            if c.doubt:
                self._ask(2, f"{c.column}: {c.doubt}")
        for c in events:
            seen, feedback = split_events(c.profile.values)
            self._line(2, f"# '{c.column}' holds events: {c.why}")
            self._line(2, f"# taken for impressions: {', '.join(map(str, seen))}")
            for value in feedback:
                name = label_name(str(value))
                names[name] = None
                self._line(2, f"{name}: {{column: {_flow(c.column)}, values: {_flow([value])}}}")
        if not names:
            self._ask(2, "no label found: name a 0/1 column of feedback, or values of a column")
            self._line(2, "# click: COLUMN")
            self._line(2, "# buy: {column: EVENT, values: [buy]}")
            self._line(0, "# engaged: click")
            return ""
        engaged = _engaged(names)
        self._line(0, f"engaged: {_flow(engaged)}", "the positive, an expression over labels")
        if len(names) > 1:
            self._line(
                0, "# tasks: {LABEL: LABEL, ...}", "what models predict besides; default: engaged"
            )
        return engaged

    def _evidence(self) -> None:
        for c in self._of("position", "propensity", "weight", "stage", "channel"):
            self._line(0, f"{c.place}: {_flow(c.column)}", c.why)
            if c.place == "position" and c.profile.numbers is not None:
                first = int(np.nanmin(c.profile.numbers))
                self._line(0, f"first_position: {first}")
        for c in self._of("rank"):
            stage = rank_stage(c.column)
            self._line(0, f"# ranks: {{{stage}: {_flow(c.column)}}}", f"{c.why}; if from 0")
        scores = self._of("score")
        if scores:
            self._line(0, "scores:")
        for c in scores:
            self._line(2, f"{label_name(c.column)}: {_flow(c.column)}", c.why)

    def _features(self, keys: Keys) -> None:
        self.lines += ["", "features:" if self._of(*_OWNERS) else "features: {}"]
        used: set[str] = set()
        for owner in _OWNERS:
            mine = self._of(owner)
            if mine:
                self._line(2, f"{owner}:")
            for c in mine:
                name = label_name(c.column)
                name = f"{owner}_{name}" if name in _TAKEN or name in used else name
                used.add(name)
                spec: dict[str, Any] = {"column": c.column, "kind": c.kind}
                if c.kind == "multi" and c.profile.separator is not None:
                    spec["separator"] = c.profile.separator
                if c.kind == "dense":
                    spec["transforms"] = _transforms(c.profile)
                self._line(4, f"{name}: {_flow(spec)}", c.why)
                if c.doubt:
                    self._ask(4, f"{c.column}: {c.doubt}")
        if keys.time is not None:
            self.lines.append("derived:")
            for clock in ("hour", "weekday"):
                spec = {"name": clock, "owner": "context", "kind": "categorical"}
                self._line(0, f"- {_flow({**spec, 'transforms': [clock]})}")

    def _rest(self, engaged: str) -> None:
        self.lines += ["", "history:" if engaged else "history: {}"]
        if engaged:
            where = {"where": engaged, "max_len": 50}
            self._line(2, f"engaged: {_flow(where)}", "earlier engaged impressions of the user")
            self._line(2, f"shown: {_flow({'max_len': 50})}", "earlier impressions of any kind")
        out = self._of("out")
        if out:
            self.lines += ["", "# Left out; to use one, write its line where it belongs:"]
        for c in out:
            doubt = f"; {c.doubt}" if c.doubt else ""
            self.lines.append(f"#   {_flow(c.column)}: {c.why}{doubt}")


def _engaged(names: dict[str, Choice | None]) -> str:
    """Choose the positive: a click if there is one, else any feedback, else a high grade."""
    clicks = [n for n in names if "click" in n or n.endswith("clk") or n in ("label", "target")]
    if clicks:
        return clicks[0]
    binary = [n for n, c in names.items() if c is None or c.profile.is_binary]
    if binary:
        return " or ".join(n for n in binary if not set(n.split("_")) & {"hide", "skip", "hate"})
    name, choice = next(iter(names.items()))
    assert choice is not None
    assert choice.profile.numbers is not None
    known = choice.profile.numbers[~np.isnan(choice.profile.numbers)]
    top, middle = float(known.max()), float(np.median(known))
    return f"{name} >= {4 if top == 5 else round(middle, 6):g}"


def _transforms(p: Profile) -> list[str]:
    """Return the usual transforms of a number: its logarithm too where it is long-tailed."""
    assert p.numbers is not None
    known = p.numbers[~np.isnan(p.numbers)]
    long_tail = known.min() >= 0 and known.max() > 20 * max(1.0, float(np.median(known)))
    return ["log1p", "standard"] if long_tail else ["standard"]


def _flow(value: Any) -> str:
    """Return a value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
    return text.removesuffix("\n...\n").strip()
