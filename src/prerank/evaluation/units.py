"""What the mean of a metric is made of: one value per request or user, kept for later tests.

A study evaluates each model once and stores these values; paired tests over users and seeds are
then made from the files, see :mod:`prerank.evaluation.studies.paired`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from prerank.errors import InputError
from prerank.evaluation.estimators import MeanMeasure, Measure
from prerank.metrics.sorting import distinct

__all__ = ["Units", "load_units", "save_units", "units_of"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """The values behind a mean.

    Parameters
    ----------
    user : ndarray ``[Q]`` int64
        User index of each unit.
    row : ndarray ``[Q]`` int64
        Log row of its request; -1 throughout where the units are users.
    value : ndarray ``[Q]`` float64
        NaN where a unit does not define the metric.
    weight : ndarray ``[Q]`` float64, optional
        In the mean; default 1.
    """

    user: Ints
    row: Ints
    value: Floats
    weight: Floats | None = None

    @property
    def unit(self) -> Ints:
        """What names each unit: its row, or its user where units are users ``[Q]``."""
        return self.user if (self.row < 0).all() else self.row

    def mean(self) -> float:
        """Return the metric; NaN where no unit defines it."""
        known = ~np.isnan(self.value)
        weight = np.ones(self.value.size) if self.weight is None else self.weight
        total = weight[known].sum()
        return float(weight[known] @ self.value[known] / total) if total > 0 else float("nan")


def units_of(measures: Mapping[str, Measure], user: Ints, row: Ints) -> dict[str, Units]:
    """Return the units of every measure that is a mean.

    Parameters
    ----------
    measures : mapping of str to Measure
        Of one scorer.
    user, row : ndarray ``[R]`` int64
        Of the requests.

    Returns
    -------
    dict of str to Units
        Means over candidates become one weighted value per user. A pooled AUC, the mean or minimum
        of several measures, and a calibration error are no means.
    """
    found = {}
    for key, m in measures.items():
        if not isinstance(m, MeanMeasure):
            continue
        if m.user is user and m.weights is None:
            found[key] = Units(user, row, m.values)
            continue
        known = ~np.isnan(m.values)
        weight = np.ones(m.values.size) if m.weights is None else m.weights
        users, code = distinct(m.user[known])
        total = np.bincount(code, weights=weight[known], minlength=users.size)
        value = np.bincount(code, weights=(weight * m.values)[known], minlength=users.size)
        some = total > 0
        none = np.full(int(some.sum()), -1, dtype=np.int64)
        mean = value[some] / total[some]
        found[key] = Units(users[some], none, mean, total[some].astype(np.float64))
    return found


def save_units(path: str | Path, units: Mapping[str, Units]) -> None:
    """Write the units of one run as a compressed ``.npz`` of float32 values.

    Parameters
    ----------
    path : str or Path
        The file; ``.npz`` is appended where it is missing.
    units : mapping of key to Units
        All of one evaluation.

    Examples
    --------
    >>> import tempfile
    >>> user, row = np.array([4, 4, 9]), np.array([0, 1, 2])
    >>> units = {"mrr/T1": Units(user, row, np.array([1.0, 0.5, np.nan]))}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_units(f"{folder}/units.npz", units)
    ...     load_units(f"{folder}/units.npz")["mrr/T1"].mean()
    0.75
    """
    tables: dict[str, npt.NDArray[np.generic]] = {}
    for kind, of_users in (("request", False), ("user", True)):
        chosen = {k: u for k, u in units.items() if bool((u.row < 0).all()) == of_users}
        everyone = [u.unit for u in chosen.values()]
        ids = np.unique(np.concatenate([np.zeros(0, np.int64), *everyone]))
        user = np.zeros(ids.size, dtype=np.int64)
        value = np.full((len(chosen), ids.size), np.nan, dtype=np.float32)
        weight = np.ones((len(chosen) if of_users else 0, ids.size), dtype=np.float32)
        for k, u in enumerate(chosen.values()):
            place = np.searchsorted(ids, u.unit)
            user[place] = u.user
            value[k, place] = u.value
            if of_users and u.weight is not None:
                weight[k, place] = u.weight
        tables |= {f"{kind}_keys": np.array(list(chosen), dtype=np.str_), f"{kind}_id": ids}
        tables |= {f"{kind}_user": user, f"{kind}_value": value, f"{kind}_weight": weight}
    np.savez_compressed(path, allow_pickle=False, **tables)


def load_units(path: str | Path) -> dict[str, Units]:
    """Read what :func:`save_units` wrote; values have the precision of float32.

    Raises
    ------
    InputError
        No such file, or a damaged one.
    """
    found: dict[str, Units] = {}
    try:
        with Path(path).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            for kind in ("request", "user"):
                ids, user = file[f"{kind}_id"], file[f"{kind}_user"]
                value = file[f"{kind}_value"].astype(np.float64)
                weight = file[f"{kind}_weight"].astype(np.float64)
                row = ids if kind == "request" else np.full(ids.size, -1, dtype=np.int64)
                for k, key in enumerate(file[f"{kind}_keys"].tolist()):
                    weight_Q = weight[k] if kind == "user" else None
                    found[key] = Units(user, row, value[k], weight_Q)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a file of units ({error}); evaluate again") from None
    return found
