"""What the columns beside the keys are: labels, evidence, features of which owner and kind."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from prerank.log.impressions.infer.keys import Keys, agreement, has_word
from prerank.log.impressions.infer.profile import Profile
from prerank.schema import Kind, Label, Schema

__all__ = ["Choice", "Place", "choices_of", "label_name", "rank_stage", "split_events"]

Index = npt.NDArray[np.int64]
Place = Literal[
    "label",
    "event",
    "position",
    "rank",
    "propensity",
    "weight",
    "stage",
    "channel",
    "score",
    "user",
    "context",
    "item",
    "candidate",
    "out",
]

_STAGES = set(Schema(labels=(Label(name="click"),)).stages)
_CERTAIN = 0.99
_MIN_GROUPS = 5
_LABEL = (
    *(
        "click",
        "clicked",
        "clk",
        "like",
        "liked",
        "buy",
        "bought",
        "purchase",
        "purchased",
        "order",
    ),
    *(
        "ordered",
        "conversion",
        "convert",
        "converted",
        "cart",
        "fav",
        "favorite",
        "follow",
        "share",
    ),
    *("shared", "comment", "watched", "label", "target", "install", "installed", "response", "hit"),
    *("engaged", "forward", "save", "saved", "skip", "hide", "hate", "view", "attributed"),
)
_OUTCOME = (
    *("watch", "dwell", "stay", "play", "playing", "rating", "stars", "revenue", "gmv", "spend"),
    *("scroll", "listened", "completion"),
)
_EVENTS = (
    *_LABEL,
    *("pv", "impression", "show", "shown", "exposed", "exposure", "display", "detail", "addtocart"),
)
_SEEN = ("pv", "view", "impression", "show", "shown", "exposed", "exposure", "display", "detail")
_AMOUNT = (
    *(
        "count",
        "cnt",
        "num",
        "price",
        "cost",
        "amount",
        "duration",
        "length",
        "len",
        "size",
        "width",
    ),
    *("height", "score", "ratio", "rate", "ms", "seconds", "minutes", "days", "distance", "views"),
    *("age", "hours", "income", "balance", "gain", "loss", "year"),
)
_CODE = (
    *(
        "id",
        "code",
        "zip",
        "type",
        "category",
        "cat",
        "device",
        "os",
        "app",
        "ip",
        "model",
        "brand",
    ),
    *(
        "site",
        "domain",
        "campaign",
        "region",
        "city",
        "country",
        "genre",
        "author",
        "creator",
        "tag",
    ),
    *("segment", "group", "cluster", "status", "platform", "version", "gender", "page", "shop"),
)
_SLOT = ("position", "pos", "slot", "rank", "place", "index", "idx")


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a column goes, why, and what the reader may decide otherwise.

    Parameters
    ----------
    column : str
        The column.
    place : str
        A label, a column of events, evidence, an owner of a feature, or ``out``.
    kind : {"categorical", "multi", "dense", "vector"}
        Of a feature.
    why : str
        Facts that decided it.
    doubt : str
        What could not be decided; empty if nothing.
    profile : Profile
        Facts of the column.
    """

    column: str
    place: Place
    kind: Kind
    why: str
    doubt: str
    profile: Profile


def label_name(text: str) -> str:
    """Return a name that expressions can read.

    Examples
    --------
    >>> label_name("is click?"), label_name("2nd"), label_name("not")
    ('is_click', 'n_2nd', 'not_')
    """
    name = re.sub(r"\W+", "_", text).strip("_").lower() or "column"
    name = f"n_{name}" if name[0].isdigit() else name
    return f"{name}_" if keyword.iskeyword(name) else name


def choices_of(profiles: Mapping[str, Profile], keys: Keys) -> list[Choice]:
    """Decide every column that is no key, in the order of the table."""
    taken = {keys.time, keys.request, keys.user, keys.item}
    found = [_choose(p, profiles, keys) for name, p in profiles.items() if name not in taken]
    return _one_position(_with_outcomes(_with_label(found)))


def _choose(p: Profile, profiles: Mapping[str, Profile], keys: Keys) -> Choice:
    def choice(place: Place, why: str, kind: Kind = "categorical", doubt: str = "") -> Choice:
        return Choice(p.name, place, kind, why, doubt, p)

    facts = p.summary()
    if not p.num_distinct:
        return choice("out", "null in every row")
    if p.num_distinct == 1:
        return choice("out", f"only one value: {p.values[0]}")
    owner, owned = _owner(p, profiles, keys)
    if p.is_binary and (has_word(p.name, _LABEL) or owner == "candidate"):
        share = 100 * float(np.nanmean(p.numbers)) if p.numbers is not None else 0.0
        named = has_word(p.name, _LABEL)
        doubt = "" if named else "0 and 1, but no name of a feedback: a label, or a feature?"
        return choice("label", f"{facts}, 1 in {share:.1f} % of rows", doubt=doubt)
    if owner == "candidate" and _is_event(p):
        words = ", ".join(str(v) for v in p.values)
        return choice("event", f"{facts}: {words}")
    if owner == "candidate":
        special = _evidence(p, keys)
        if special is not None:
            return choice(special, f"{facts}, {_range(p)}")
    if p.numbers is not None and owner == "candidate" and has_word(p.name, _OUTCOME):
        return choice("label", f"{facts}, {_range(p)}", "dense")
    if p.times is not None and not p.is_binary:
        reason = f"{facts}, times {p.times.span()}; {owned}"
        hint = "; as ms, a dense item feature for age_of" if owner == "item" else ""
        return choice("out", reason + hint)
    if p.is_row_number and not p.is_list and p.numbers is None:
        return choice("out", f"{facts}: nearly every row has its own; free text or a row id")
    if p.is_row_number and p.is_whole and owner == "candidate":
        return choice("out", f"{facts}: nearly every row has its own; a row number")
    kind, doubt = _kind(p)
    if owner == "candidate" and kind in ("multi", "vector"):
        reason = f"{facts}; {owned}: lists belong to the item, the user or the context"
        return choice("out", reason, kind)
    return choice(owner, f"{facts}{_parts(p, kind)}, {owned}", kind, doubt)


def _owner(
    p: Profile, profiles: Mapping[str, Profile], keys: Keys
) -> tuple[Literal["user", "context", "item", "candidate"], str]:
    """Return whose the column is: of the user, the item, the request, or of the candidate."""
    tests: list[tuple[Literal["user", "item", "context"], str, Index]] = []
    if keys.user is not None:
        tests.append(("user", "user", profiles[keys.user].codes))
    if keys.item is not None:
        tests.append(("item", "item", profiles[keys.item].codes))
    word = "request" if keys.request is not None else "half an hour of one user"
    tests.append(("context", word, keys.groups))
    best = ("candidate", "no group of rows can tell whose it is")
    most = 0.0
    for owner, name, key in tests:
        if not len(key):
            continue
        share, groups = agreement(p.codes, key)
        if groups >= _MIN_GROUPS and share >= _CERTAIN and _beyond_chance(share, p.codes, key):
            return owner, f"constant within {name} in {100 * share:.1f} % of groups"
        if groups and share >= most:
            most = share
            best = ("candidate", f"constant within {name} in only {100 * share:.1f} % of groups")
    return best  # type: ignore[return-value]


def _beyond_chance(share: float, codes: Index, key: Index) -> bool:
    """Return whether groups agree because of their key, not because one value is nearly everywhere.

    A purchase in one row of a thousand is "constant" in nearly all groups, too.
    """
    shuffled = np.random.default_rng(0).permutation(codes)
    chance, _ = agreement(shuffled, key)
    return share - chance >= 0.8 * (1.0 - chance)


def _is_event(p: Profile) -> bool:
    if not p.is_text or not 2 <= p.num_distinct <= 12:
        return False
    known = [has_word(str(value), _EVENTS) for value in p.values]
    return sum(known) * 2 >= len(known)


def _evidence(p: Profile, keys: Keys) -> Place | None:
    low, high = (0.0, 0.0) if p.numbers is None else (np.nanmin(p.numbers), np.nanmax(p.numbers))
    if p.is_text and set(map(str, p.values)) <= _STAGES:
        return "stage"
    if has_word(p.name, ("channel", "recall", "retrieval")) and p.num_distinct <= 100 and p.is_text:
        return "channel"
    if p.numbers is None:
        return None
    if has_word(p.name, ("propensity", "pscore", "prob", "probability")) and 0 < low <= high <= 1:
        return "propensity"
    if has_word(p.name, ("weight",)) and low >= 0:
        return "weight"
    if has_word(p.name, ("score", "logit")) and not p.is_whole:
        return "score"
    if p.is_whole and low in (0, 1) and high <= 10_000 and _is_slot(p, keys.groups):
        return "position"
    return None


def _is_slot(p: Profile, groups: Index) -> bool:
    """Return whether a number tells the rows of one request apart, as a slot does."""
    if not has_word(p.name, _SLOT) or not len(groups):
        return False
    rows = np.flatnonzero((p.codes >= 0) & (groups >= 0))
    pairs = np.unique(groups[rows] * (p.num_distinct + 1) + p.codes[rows])
    return len(pairs) >= 0.95 * len(rows)


def _range(p: Profile) -> str:
    if p.numbers is None:
        return f"values {', '.join(str(v) for v in p.values[:4])}"
    return f"{np.nanmin(p.numbers):g} to {np.nanmax(p.numbers):g}"


def _parts(p: Profile, kind: Kind) -> str:
    if kind == "multi":
        mark = f" separated by '{p.separator}'" if p.separator else ""
        return f", {p.num_parts:,} distinct parts{mark}"
    return f", {_range(p)}" if kind == "dense" else ""


def _kind(p: Profile) -> tuple[Kind, str]:
    """Return the kind and a doubt."""
    if p.is_list:
        whole = "int" in str(p.type) or "string" in str(p.type)
        return ("multi", "") if whole or not p.width else ("vector", "")
    if p.separator is not None:
        return "multi", ""
    if p.numbers is None:
        return "categorical", ""
    if not p.is_whole:
        return "dense", ""
    if has_word(p.name, _AMOUNT):
        return "dense", ""
    if p.num_distinct <= 64 or has_word(p.name, _CODE):
        return "categorical", ""
    known = p.numbers[~np.isnan(p.numbers)]
    skewed = float(known.max()) > 20 * max(1.0, float(np.median(known)))
    kind: Kind = "dense" if skewed or known.min() < 0 else "categorical"
    return kind, "integers: an id or code (categorical), or an amount (dense)?"


def _with_label(found: list[Choice]) -> list[Choice]:
    """Keep unnamed 0/1 columns as labels only where no column is named like a feedback."""
    sure = any(c.place == "event" or (c.place == "label" and not c.doubt) for c in found)
    if not sure:
        return found
    return [
        Choice(c.column, "out", c.kind, c.why, c.doubt, c.profile)
        if c.place == "label" and c.doubt
        else c
        for c in found
    ]


def rank_stage(name: str) -> str | None:
    """Return the stage whose rank a column is by its name (``rank.prerank``), if it says so.

    Examples
    --------
    >>> rank_stage("rank.prerank"), rank_stage("rank"), rank_stage("rank.exposed")
    ('prerank', None, None)
    """
    words = re.split(r"[^a-z]+", name.lower())
    return words[-1] if len(words) > 1 and words[-1] in _STAGES - {"exposed"} else None


def _one_position(found: list[Choice]) -> list[Choice]:
    """Tell ranks of named stages from the slot, and keep one slot."""
    result, seen = [], False
    for c in found:
        place = c.place
        if place == "position" and rank_stage(c.column) is not None:
            place = "rank"
        elif place == "position":
            place, seen = ("out" if seen else "position"), True
        result.append(Choice(c.column, place, c.kind, c.why, c.doubt, c.profile))
    return result


def _with_outcomes(found: list[Choice]) -> list[Choice]:
    """Turn candidate numbers that are there only where a label is 1 into labels: they leak."""
    labels = [c.profile for c in found if c.place == "label" and c.profile.is_binary]
    return [_outcome(c, labels) if c.place == "candidate" else c for c in found]


def _outcome(choice: Choice, labels: list[Profile]) -> Choice:
    numbers = choice.profile.numbers
    if numbers is None:
        return choice
    there = ~np.isnan(numbers) & (numbers != 0)
    for label in labels:
        assert label.numbers is not None
        one, zero = label.numbers == 1, label.numbers == 0
        if one.sum() < 20 or zero.sum() < 20:
            continue
        if there[one].mean() >= 0.5 and there[zero].mean() <= 0.002:
            why = f"{choice.why}; there only where {label.name} is 1: an outcome, not a feature"
            return Choice(choice.column, "label", "dense", why, "", choice.profile)
    return choice


def split_events(values: tuple[Any, ...]) -> tuple[list[Any], list[Any]]:
    """Part the values of a column of events into those that mean "seen" and the feedback."""
    seen = [v for v in values if has_word(str(v), _SEEN)] or list(values[:1])
    return seen, [v for v in values if v not in seen]
