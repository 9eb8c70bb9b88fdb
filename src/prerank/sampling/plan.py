"""What a sampler's options mean for one log: a quota, a floor and an order for each source."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from prerank.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from prerank.log import Log
    from prerank.sampling.hap import HAPSampler
    from prerank.schema import Schema

__all__ = ["SourcePlan", "order_of", "plan_sources"]

Index = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SourcePlan:
    """How one source is sampled.

    Parameters
    ----------
    name : str
        The source.
    code : int
        Its code in ``evidence.source``.
    quota : int, float or None
        Per request, per positive, or all.
    floor : int
        Least rank in the order of ``order``; 0 for none.
    order : str
        A stage.
    is_drawn : bool
        Whether its members are drawn from all items.
    """

    name: str
    code: int
    quota: int | float | None
    floor: int
    order: str
    is_drawn: bool

    def wanted(self, num_positives: Index) -> Index:
        """Return how many members requests with so many positives ``[R]`` are to get."""
        assert self.quota is not None
        if isinstance(self.quota, float):
            # A product such as 1.1 * 10 may be a little more than what is meant.
            wanted: Index = np.ceil(num_positives * self.quota - 1e-9).astype(np.int64)
            return wanted
        return np.full(len(num_positives), self.quota, dtype=np.int64)


def order_of(source: str, schema: Schema) -> str:
    """Return the stage that turned the members of a source down: the one after its first.

    Examples
    --------
    >>> from prerank.schema import Label, Schema
    >>> schema = Schema(labels=(Label(name="click"),))
    >>> order_of("prerank", schema), order_of("rank", schema)
    ('prerank', 'rank')
    """
    first = min(schema.stages.index(stage) for stage in schema.sources[source])
    return schema.stages[min(first + 1, len(schema.stages) - 1)]


def plan_sources(config: HAPSampler.Config, log: Log) -> tuple[SourcePlan, ...]:
    """Check a sampler's options against a log.

    Raises
    ------
    InputError
        A source, stage or rank that the log does not have; a number out of range.
    """
    schema, where = log.schema, f"{log.path}: sampling"
    for option in ("quotas", "floors", "orders"):
        _check_names(f"{where}: {option}", getattr(config, option), schema.source_names)
    for name, quota in config.quotas.items():
        if quota is not None and not 0 <= quota < math.inf:
            raise InputError(f"{where}: quota of '{name}' is {quota}; expected 0 or more, or null")
    for name, floor in config.floors.items():
        if floor < 0:
            raise InputError(f"{where}: floor of '{name}' is {floor}; expected a rank, 0 or more")
    if not 0.0 <= config.floor_share <= 1.0:
        raise InputError(
            f"{where}: floor_share is {config.floor_share}; expected a share from 0 to 1"
        )
    if not 0.0 <= config.power < math.inf:
        raise InputError(f"{where}: power is {config.power}; expected 0 or more")
    for name, stage in config.orders.items():
        if stage not in schema.stages:
            hint = did_you_mean(stage, schema.stages)
            raise InputError(f"{where}: orders: '{name}' names stage '{stage}'; {hint}")
    return tuple(
        _plan(config, name, schema, where) for name in schema.source_names if name in config.quotas
    )


def _plan(config: HAPSampler.Config, name: str, schema: Schema, where: str) -> SourcePlan:
    quota, floor = config.quotas[name], config.floors.get(name, 0)
    order = config.orders.get(name) or order_of(name, schema)
    is_drawn = name == config.drawn
    if is_drawn and schema.stages[-1] in schema.sources[name]:
        raise InputError(
            f"{where}: source '{name}' cannot be drawn from all items, as its members were shown; "
            "set drawn to another source, or to null"
        )
    if is_drawn and quota is None:
        raise InputError(
            f"{where}: quota of '{name}' is null, which would take all items; give a number, or "
            "set drawn to null to take the stored ones"
        )
    if is_drawn and floor:
        raise InputError(
            f"{where}: floor of '{name}' is {floor}, but it is drawn from all items, which have "
            "no rank; remove it"
        )
    if floor and quota != 0 and order not in schema.ranks:
        known = ", ".join(schema.ranks) or "none"
        raise InputError(
            f"{where}: floor of '{name}' needs ranks of stage '{order}', which the log does not "
            f"have (ranks: {known}); set floors.{name} to 0, or orders.{name} to a stage that has"
        )
    return SourcePlan(name, schema.source_names.index(name), quota, floor, order, is_drawn)


def _check_names(where: str, names: Iterable[str], known: tuple[str, ...]) -> None:
    for name in names:
        if name not in known:
            raise InputError(f"{where}: no source '{name}'; {did_you_mean(name, known)}")
