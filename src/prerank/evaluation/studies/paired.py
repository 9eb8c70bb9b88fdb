"""Variants over seeds from stored values per request: one metric, paired by user and by seed.

Two things are random: which users a part has, and the seed of training. For a pair of variants the
values of each request are averaged over seeds and subtracted; resampling users tells the error of
that mean from users, the spread of the seeds' own differences that from seeds. Their variances add
up, as of crossed random effects without interaction; the interaction is in both, so p is rather too
large than too small (compare Owen, "The pigeonhole bootstrap", 2007). Degrees of freedom follow
Satterthwaite, "An approximate distribution of estimates of variance components", 1946. That
combination is our choice.

Shapes: ``Q`` requests (or users), ``S`` seeds, ``B`` resamples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from prerank.errors import InputError, did_you_mean
from prerank.evaluation.resampling import MeanStatistic, draw
from prerank.evaluation.statistics import mean_of
from prerank.evaluation.studies.seeds import Spread
from prerank.evaluation.studies.significance import holm, paired_t, student_two_sided
from prerank.evaluation.units import Units

__all__ = ["PairedClaim", "PairedStudy", "paired_over_seeds"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class PairedClaim(msgspec.Struct, frozen=True, kw_only=True):
    """A difference of two variants over users and seeds.

    Parameters
    ----------
    difference, low, high : float
        Seed-averaged, with its interval over users; NaN bounds for fewer than two users.
    sd_seeds : float
        Of the differences of equal seeds; NaN for one seed.
    p_users, p_seeds : float
        Two-sided, of each source alone: bootstrap of users, paired t test over seeds.
    p, p_holm : float
        Both together (users alone for one seed), and adjusted for all pairs of the call.
    num_users, num_units : int
        That count.
    """

    difference: float
    low: float
    high: float
    sd_seeds: float
    p_users: float
    p_seeds: float
    p: float
    p_holm: float
    num_users: int
    num_units: int


class PairedStudy(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of several variants.

    Parameters
    ----------
    variants : dict of str to Spread
        Mean, sd and values over each variant's seeds.
    claims : dict of str to PairedClaim
        ``"a - b"``, over the seeds that both have.
    """

    variants: dict[str, Spread]
    claims: dict[str, PairedClaim]


def paired_over_seeds(
    variants: Mapping[str, Mapping[int, Units]],
    pairs: Sequence[tuple[str, str]] | None = None,
    *,
    num_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> PairedStudy:
    """Summarise one metric of variants over seeds and test differences.

    Parameters
    ----------
    variants : mapping of str to mapping of int to Units
        Values by variant and seed, all of one metric and part
        (:func:`prerank.evaluation.load_units`).
    pairs : sequence of pairs of str, optional
        Claims; default: every pair.
    num_resamples, seed : int
        Of the user bootstrap.
    level : float
        Coverage of the intervals, in (0, 1).

    Returns
    -------
    PairedStudy
        A unit counts in a pair where all of its seeds define the metric.

    Raises
    ------
    InputError
        A pair of unknown variants or of variants without a common seed, units of different
        requests.

    Examples
    --------
    >>> user = row = np.arange(40)
    >>> a, b = (Units(user, row, user % 4 + shift) for shift in (0.5, 0.0))
    >>> study = paired_over_seeds({"a": {0: a, 1: a}, "b": {0: b, 1: b}})
    >>> study.variants["a"].mean, study.claims["a - b"].difference
    (2.0, 0.5)
    """
    chosen = list(itertools.combinations(variants, 2)) if pairs is None else list(pairs)
    spreads = {}
    for name, by_seed in variants.items():
        values = tuple(by_seed[s].mean() for s in sorted(by_seed))
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
        mean = float(np.mean(values)) if values else float("nan")
        spreads[name] = Spread(mean=mean, sd=sd, values=values)
    gaps = {pair: _Gap(variants, *pair) for pair in chosen}
    means = [gap.statistic for gap in gaps.values()]
    draws = draw(means, [num_resamples] * len(means), seed)
    found = {
        f"{a} - {b}": gap.claim(drawn, level)
        for ((a, b), gap), drawn in zip(gaps.items(), draws, strict=True)
    }
    adjusted = holm({name: claim.p for name, claim in found.items()})
    claims = {
        name: msgspec.structs.replace(claim, p_holm=adjusted[name]) for name, claim in found.items()
    }
    return PairedStudy(variants=spreads, claims=claims)


class _Gap:
    """The differences of two variants by seed and unit."""

    def __init__(self, variants: Mapping[str, Mapping[int, Units]], a: str, b: str) -> None:
        for name in (a, b):
            if name not in variants:
                raise InputError(
                    f"paired_over_seeds: no variant '{name}'; {did_you_mean(name, variants)}"
                )
        seeds = sorted(set(variants[a]) & set(variants[b]))
        if not seeds:
            raise InputError(f"paired_over_seeds: '{a}' and '{b}' have no seed in common")
        pairs = [(variants[a][s], variants[b][s]) for s in seeds]
        first = pairs[0][0]
        ids = np.unique(np.concatenate([u.unit for pair in pairs for u in pair]))
        table = np.stack([[_dense(u, ids, first) for u in pair] for pair in pairs])
        gap_SQ = table[:, 0] - table[:, 1]
        weights = [_dense(u, ids, first, weight=True) for pair in pairs for u in pair]
        user = np.zeros(ids.size, dtype=np.int64)
        for u in (u for pair in pairs for u in pair):
            user[np.searchsorted(ids, u.unit)] = u.user
        known = ~np.isnan(gap_SQ).any(axis=0)
        weight = np.nanmax(np.stack(weights), axis=0, initial=0.0)[known]
        gap_SQ = gap_SQ[:, known]
        self.by_seed = tuple(_mean(gap, weight) for gap in gap_SQ)
        self.num_units = int(known.sum())
        self.statistic: MeanStatistic = mean_of(gap_SQ.mean(axis=0), weight, user[known])

    def claim(self, draws: Floats, level: float) -> PairedClaim:
        nan = float("nan")
        difference, num_users = self.statistic.point(), self.statistic.num_clusters
        drawn = draws[~np.isnan(draws)]
        low = high = p_users = p = nan
        num_seeds = len(self.by_seed)
        sd = float(np.std(self.by_seed, ddof=1)) if num_seeds > 1 else nan
        if drawn.size > 1:
            low, high = np.quantile(drawn, [0.5 * (1 - level), 0.5 * (1 + level)]).tolist()
            none = 1e-12 * np.abs(drawn).max()
            one_side = min((drawn <= none).sum(), (drawn >= -none).sum())
            p = p_users = min(1.0, 2.0 * float(one_side + 1) / (drawn.size + 1))
            if num_seeds > 1:
                of_seeds = sd**2 / num_seeds
                p = _together(difference, float(drawn.var(ddof=1)), num_users, of_seeds, num_seeds)
        return PairedClaim(
            difference=difference,
            low=low,
            high=high,
            sd_seeds=sd,
            p_users=p_users,
            p_seeds=paired_t(self.by_seed, np.zeros(num_seeds)),
            p=p,
            p_holm=nan,
            num_users=num_users,
            num_units=self.num_units,
        )


def _together(
    difference: float, of_users: float, num_users: int, of_seeds: float, num_seeds: int
) -> float:
    """Return the p value of a difference whose error has two independent sources."""
    variance = of_users + of_seeds
    if variance <= 1e-24 * difference**2 or variance == 0:
        return 1.0 if difference == 0 else 0.0
    spread = of_users**2 / (num_users - 1) + of_seeds**2 / (num_seeds - 1)
    degrees = max(1, min(10_000, math.floor(variance**2 / spread)))
    return student_two_sided(difference / math.sqrt(variance), degrees)


def _dense(units: Units, ids: Ints, like: Units, *, weight: bool = False) -> Floats:
    """Return values or weights at ``ids``, NaN where they are missing."""
    if ((units.row < 0).all() != (like.row < 0).all()) or (
        not (units.row < 0).all() and units.unit.size != ids.size
    ):
        raise InputError(
            "paired_over_seeds: runs have values of different requests; evaluate all of them on "
            "the same part"
        )
    out = np.full(ids.size, np.nan)
    place = np.searchsorted(ids, units.unit)
    if weight:
        out[place] = 1.0 if units.weight is None else units.weight
    else:
        out[place] = units.value
    return out


def _mean(values: Floats, weight: Floats) -> float:
    total = weight.sum()
    return float(values @ weight / total) if total > 0 else float("nan")
