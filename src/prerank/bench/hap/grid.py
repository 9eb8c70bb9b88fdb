"""What the HAP study trains: lines of its tables, their seeds and learning rates.

A *line* is one row of a table: a model, the sources it trains on, a loss. Each line has a grid of
learning rates tried on one seed, or takes the rate of the line it varies. The claims rest on lines
with five seeds; controls and variations have three, sweeps two or one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

import msgspec

from prerank.config import Config

__all__ = ["LINES", "RATES", "Job", "Line", "final_jobs", "lines_of", "tuning_jobs"]

Size = Literal["light", "medium", "heavy", "paper_light", "paper_heavy"]
HARD = ("exposed", "rank")
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
"""Learning rates tried, of the dense part; that of the tables is a fixed multiple."""


class Line(Config, frozen=True):
    """One row of the study's tables.

    Parameters
    ----------
    name, what : str
        Key, and one line for people.
    loss : dict
        Values of ``GHCL.Config``.
    size : {"light", "medium", "heavy", "paper_light", "paper_heavy"}
        Which model; ``paper``: as many parameters as the authors' have, about.
    sources : tuple of str, optional
        What it trains on; None: all.
    combine : dict
        Name and values of the combine rule; empty: the sum.
    sampling : dict
        Values of the sampler that differ from the defaults.
    rate_of : str, optional
        Line whose learning rate it takes; None: tuned itself.
    seeds : int
        How many.
    attention : {"tokens", "history"}
        What the heavy model's attention reads.
    table_rate : float, optional
        Learning rate of tables over that of the dense part, where it is not the usual one.
    shared : bool
        Whether it is built over the trained light model of ``rate_of``'s seed.
    only : tuple of str
        Data sets it belongs to; empty: all.
    """

    name: str
    what: str
    loss: dict[str, Any]
    size: Size = "light"
    sources: tuple[str, ...] | None = None
    combine: dict[str, Any] = msgspec.field(default_factory=dict)
    sampling: dict[str, Any] = msgspec.field(default_factory=dict)
    rate_of: str | None = None
    seeds: int = 5
    attention: str = "tokens"
    table_rate: float | None = None
    shared: bool = False
    only: tuple[str, ...] = ()


class Job(Config, frozen=True):
    """One training: a line, a learning rate, a seed."""

    data: str
    line: Line
    lr: float
    seed: int

    @property
    def key(self) -> str:
        """Name of the folder of its results; the same values give the same name."""
        values = msgspec.to_builtins(self)
        for name in ("what", "seeds", "only"):
            del values["line"][name]
        if self.line.table_rate is None:
            del values["line"]["table_rate"]
        text = msgspec.json.encode(values, order="deterministic")
        digest = hashlib.sha256(text).hexdigest()[:10]
        return f"{self.line.name}-lr{self.lr:g}-s{self.seed}-{digest}"


def _mixed(nce: float, bce: float, **values: Any) -> dict[str, Any]:
    return {"grouping": "mixed", "nce": nce, "bce": bce, **values}


def _grouped(nce: float, bce: float, **values: Any) -> dict[str, Any]:
    return {"grouping": "grouped", "nce": nce, "bce": bce, **values}


# A deeper dense part wants a lower rate than the light one's, its tables do not.
_HEAVY_TABLES = 600.0
# From the score-gradient shares that a prototype measured under a mixed loss, before this study.
_FIXED = {"exposed": 0.5, "rank": 0.8, "prerank": 2.3, "random": 5.0}
_STARVED = {"quotas": {"rank": 10, "prerank": 2, "random": 1.0}}
_FLOODED = {"quotas": {"rank": 10, "prerank": 40, "random": 8.0}}
_WORLD = ("world",)
_CHEAPEST = ("mind",)


def _sweep(name: str, of: str, what: str, **values: Any) -> Line:
    base = LINES_BY_NAME[of]
    changes = {"name": name, "rate_of": of, "seeds": 2, "only": _WORLD, **values}
    return msgspec.structs.replace(base, what=f"{base.what}; {what}", **changes)


_FIRST = (
    Line(name="mixed_bce", what="BCE over all candidates", loss=_mixed(0, 1)),
    Line(name="mixed_nce", what="one InfoNCE over all sources", loss=_mixed(1, 0)),
    Line(name="mixed_both", what="both, mixed", loss=_mixed(1, 1)),
    Line(name="grouped_nce", what="one InfoNCE per source", loss=_grouped(1, 0)),
    Line(name="ghcl", what="GHCL: one InfoNCE and BCE per source", loss=_grouped(1, 1)),
    Line(
        name="weighted_nce",
        what="control: one denominator, fixed source weights",
        loss=_mixed(1, 0, denominator_weights=_FIXED),
        rate_of="mixed_nce",
    ),
    Line(
        name="grouped_bce",
        what="control: BCE as means per source",
        loss=_grouped(0, 1),
        rate_of="mixed_bce",
        seeds=3,
    ),
    Line(
        name="ghcl_0.3",
        what="GHCL, BCE share 0.3",
        loss=_grouped(1, 0.3),
        rate_of="ghcl",
        seeds=3,
    ),
    Line(
        name="ghcl_0.1",
        what="GHCL, BCE share 0.1",
        loss=_grouped(1, 0.1),
        rate_of="ghcl",
        seeds=3,
        only=_WORLD,
    ),
    Line(
        name="harmonised",
        what="ours: GHCL with online weights for equal shares of the gradient",
        loss=_grouped(1, 1),
        combine={"name": "harmonised"},
        rate_of="ghcl",
    ),
    Line(
        name="harmonised_nce",
        what="ours: grouped InfoNCE with the same weights",
        loss=_grouped(1, 0),
        combine={"name": "harmonised"},
        rate_of="grouped_nce",
        seeds=3,
        only=_WORLD,
    ),
    Line(
        name="inverse_norm",
        what="mixed both, sources weighted by inverse gradient norm",
        loss=_mixed(1, 1),
        combine={"name": "inverse_norm"},
        rate_of="mixed_both",
        seeds=3,
        only=_WORLD,
    ),
    Line(
        name="ghm",
        what="mixed both, samples weighted by inverse gradient density",
        loss=_mixed(1, 1, density=30),
        rate_of="mixed_both",
        seeds=3,
        only=_WORLD,
    ),
    Line(
        name="focal",
        what="mixed BCE, focal",
        loss=_mixed(0, 1, focal=2.0),
        rate_of="mixed_bce",
        seeds=2,
        only=_WORLD,
    ),
    Line(
        name="pcgrad_mixed",
        what="mixed both, conflicting source gradients projected",
        loss=_mixed(1, 1),
        combine={"name": "pcgrad"},
        rate_of="mixed_both",
        seeds=2,
        only=_WORLD,
    ),
    Line(
        name="pcgrad_ghcl",
        what="GHCL, conflicting source gradients projected",
        loss=_grouped(1, 1),
        combine={"name": "pcgrad"},
        rate_of="ghcl",
        seeds=2,
        only=_WORLD,
    ),
    Line(
        name="medium",
        what="medium model, all sources",
        size="medium",
        loss=_grouped(1, 1),
        seeds=2,
        rate_of="ghcl",
    ),
    Line(
        name="heavy",
        what="expressive model, all sources",
        size="heavy",
        table_rate=_HEAVY_TABLES,
        loss=_grouped(1, 1),
    ),
    Line(
        name="heavy_hard",
        what="expressive model, exposed and rank only (HAP)",
        size="heavy",
        table_rate=_HEAVY_TABLES,
        sources=HARD,
        loss=_grouped(1, 1),
    ),
    Line(
        name="heavy_history",
        what="expressive model whose attention reads the history, all sources",
        size="heavy",
        table_rate=_HEAVY_TABLES,
        loss=_grouped(1, 1),
        attention="history",
        rate_of="heavy",
        seeds=2,
        only=("world", "ml1m"),
    ),
    Line(
        name="heavy_nce",
        what="expressive model, all sources, grouped InfoNCE",
        size="heavy",
        table_rate=_HEAVY_TABLES,
        loss=_grouped(1, 0),
        rate_of="heavy",
        seeds=3,
        only=_WORLD,
    ),
    Line(
        name="heavy_shared",
        what="expressive model over the light one's embeddings and states, all sources",
        size="heavy",
        table_rate=_HEAVY_TABLES,
        loss=_grouped(1, 1),
        rate_of="heavy",
        shared=True,
        seeds=3,
    ),
)
LINES_BY_NAME = {line.name: line for line in _FIRST}
LINES = (
    *_FIRST,
    *(
        _sweep(f"{of}@{name}", of, what, sampling=sampling)
        for name, what, sampling in (
            ("starved", "10 rank, 2 prerank, 1 random per positive", _STARVED),
            ("flooded", "10 rank, 40 prerank, 8 random per positive", _FLOODED),
        )
        for of in ("mixed_both", "ghcl")
    ),
    *(
        _sweep(
            f"{of}@tau{tau:g}",
            of,
            f"temperature {tau:g}",
            loss={**LINES_BY_NAME[of].loss, "temperature": tau},
            seeds=seeds,
        )
        for tau, seeds in ((0.1, 1), (0.3, 2), (3.0, 1))
        for of in ("mixed_nce", "grouped_nce")
    ),
    *(
        _sweep(name, of, "paper size", size=size, seeds=1, only=_CHEAPEST)
        for name, of, size in (
            ("paper_light", "ghcl", "paper_light"),
            ("paper_heavy", "heavy", "paper_heavy"),
            ("paper_heavy_hard", "heavy_hard", "paper_heavy"),
        )
    ),
)
"""Every line, in the order of the tables."""


def lines_of(data: str, names: Collection[str] = ()) -> tuple[Line, ...]:
    """Return the lines of a data set; if it names some, those alone.

    Examples
    --------
    >>> "ghm" in [line.name for line in lines_of("ml1m")]
    False
    >>> [line.name for line in lines_of("world_1", ("heavy", "ghcl"))]
    ['ghcl', 'heavy']
    """
    lines = (line for line in LINES if not line.only or data in line.only)
    return tuple(line for line in lines if not names or line.name in names)


def tuning_jobs(data: str, lines: tuple[Line, ...]) -> Iterator[Job]:
    """Yield what is trained to choose learning rates: every rate of every tuned line, seed 0."""
    for line in lines:
        if line.rate_of is None:
            for lr in RATES:
                yield Job(data=data, line=line, lr=lr, seed=0)


def final_jobs(
    data: str, lines: tuple[Line, ...], rates: Mapping[str, float], max_seeds: int = 5
) -> Iterator[Job]:
    """Yield every line with its chosen rate on all of its seeds, seed by seed.

    Parameters
    ----------
    data : str
        Data set.
    lines : tuple of Line
        Its lines.
    rates : mapping of str to float
        Chosen learning rate by tuned line.
    max_seeds : int
        At most so many seeds of any line.

    Examples
    --------
    >>> few = tuple(line for line in LINES if line.name in ("ghcl", "ghcl_0.1"))
    >>> [(job.line.name, job.seed) for job in final_jobs("world", few, {"ghcl": 0.01})][:3]
    [('ghcl', 0), ('ghcl_0.1', 0), ('ghcl', 1)]
    """
    for seed in range(max_seeds):
        for line in lines:
            if seed < line.seeds:
                lr = rates[line.rate_of or line.name]
                yield Job(data=data, line=line, lr=lr, seed=seed)
