"""Who is served by models that were fitted on what: cross-fitting over users, or refits in time.

Shapes: ``R`` requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from prerank import rng
from prerank.errors import InputError
from prerank.funnel.config import FunnelConfig
from prerank.funnel.exposures import Exposures
from prerank.log import Log
from prerank.log.split import load_splits

__all__ = ["Plan", "Stint", "clock_of", "make_plan", "user_fold"]

Index = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Stint:
    """One set of models.

    Parameters
    ----------
    name : str
        ``fold-0`` or ``refit-0``.
    rows : ndarray int64
        Requests it is fitted on.
    record : dict
        The fitting range in words and numbers, for the manifest.
    """

    name: str
    rows: Index
    record: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """The sets of models and which of them serves each request.

    Parameters
    ----------
    clock : {"user", "global"}
        How times compare.
    stints : tuple of Stint
        The sets of models.
    stint_of : ndarray ``[R]`` int64
        Position in ``stints``; -1 for requests that are not written.
    """

    clock: Literal["user", "global"]
    stints: tuple[Stint, ...]
    stint_of: Index


def clock_of(log: Log, config: FunnelConfig) -> Literal["user", "global"]:
    """Return the clock of a log: ``user`` where it was split user by user.

    Raises
    ------
    InputError
        A global clock is asked for, but the parts do not follow one another in time.
    """
    rule = load_splits(log.path).rule
    by_user = rule.startswith(("per user", "user"))
    if config.clock == "global" and log.parts and by_user:
        raise InputError(
            f"{log.path}: clock is global, but its parts are cut user by user ('{rule}'), so the "
            "first one would hold requests later than the last; split it first: prerank data "
            f"split {log.path} --by time"
        )
    if config.clock != "auto":
        return config.clock
    return "user" if by_user else "global"


def user_fold(user: npt.ArrayLike, seed: int, folds: int) -> Index:
    """Return the fold of each user, the same at every call.

    Examples
    --------
    >>> folds = user_fold(np.arange(1000), seed=0, folds=2)
    >>> bool((folds == user_fold(np.arange(1000), 0, 2)).all()), sorted(set(folds.tolist()))
    (True, [0, 1])
    """
    drawn = rng.hash64(seed, rng.stream("funnel/fold"), user)
    return np.asarray(drawn % np.uint64(folds)).astype(np.int64)


def make_plan(log: Log, exposures: Exposures, config: FunnelConfig) -> Plan:
    """Decide what every set of models is fitted on.

    With clock ``user``, users are drawn into folds; the models that serve a fold are fitted on
    the first part (train) of all other folds, so never on the user's own requests. With clock
    ``global``, the requests after the warm-up are cut into equal runs; each is served by models
    fitted on everything strictly earlier.

    Raises
    ------
    InputError
        Too few users or moments to fit on something else than what is served.
    """
    clock = clock_of(log, config)
    rows = np.arange(exposures.num_requests)
    stints: list[Stint] = []
    stint_of = np.full(len(rows), -1, dtype=np.int64)
    if clock == "user":
        fold = user_fold(exposures.user, config.seed, config.folds)
        part = log.parts[0] if log.parts else "all requests"
        fitted = np.zeros(len(rows), dtype=np.bool_)
        whole = log[part].rows if log.parts else log.all().rows
        fitted[whole.within(0, len(rows))] = True
        for k in range(config.folds):
            chosen = rows[fitted & (fold != k)]
            record = {
                "fitted_on": f"part '{part}' of the users outside fold {k} of {config.folds}",
                "serves": f"users of fold {k}",
                "num_fit_requests": len(chosen),
                "num_fit_users": len(np.unique(exposures.user[chosen])),
            }
            stints.append(Stint(f"fold-{k}", chosen, record))
        stint_of = fold
    else:
        first = round(len(rows) * config.warm_up)
        marks = np.linspace(first, len(rows), config.refits + 1)[:-1].round().astype(np.int64)
        # All requests of one moment on one side, so that what is fitted on is strictly earlier.
        edges = np.unique(np.searchsorted(exposures.time, exposures.time[marks]))
        edges = edges[edges > 0]
        for k, edge in enumerate(edges):
            record = {
                "fitted_on": "all requests before the first one served",
                "num_fit_requests": int(edge),
                "from_ms": int(exposures.time[0]),
                "before_ms": int(exposures.time[edge]),
            }
            stints.append(Stint(f"refit-{k}", rows[:edge], record))
            stint_of[edge:] = k
    if not stints or any(not len(stint.rows) for stint in stints):
        raise InputError(
            f"{log.path}: nothing to fit the funnel on ({clock} clock, "
            f"{exposures.num_requests} requests); it needs more users or more moments"
        )
    if config.max_requests is not None:
        served = rows[stint_of >= 0]
        drawn = rng.hash64(config.seed, rng.stream("funnel/requests"), served)
        stint_of[served[np.argsort(drawn, kind="stable")[config.max_requests :]]] = -1
    return Plan(clock, tuple(stints), stint_of)
