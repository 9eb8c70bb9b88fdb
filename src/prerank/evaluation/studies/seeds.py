"""Several seeds of the same thing as one result: mean, sd, and paired tests between things."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from prerank.evaluation.studies.significance import holm, paired_t

__all__ = ["Claim", "SeedStudy", "Spread", "over_seeds"]

Values = Mapping[str, float]


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """A metric over seeds: ``mean``, ``sd`` (ddof 1; NaN for one seed), ``values`` by seed."""

    mean: float
    sd: float
    values: tuple[float, ...]


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A difference over seeds.

    Parameters
    ----------
    mean, sd : float
        Of the differences of equal seeds.
    p : float
        Paired t test over seeds, two-sided.
    p_holm : float
        Adjusted for the claims made together, those of one metric.
    """

    mean: float
    sd: float
    p: float
    p_holm: float


class SeedStudy(msgspec.Struct, frozen=True, kw_only=True):
    """Groups over seeds.

    Parameters
    ----------
    seeds : tuple of int
        Seeds that every group has, ascending.
    groups : dict of str to dict of key to Spread
        By group and metric key.
    claims : dict of str to dict of key to Claim
        ``"a - b"`` by key.
    """

    seeds: tuple[int, ...]
    groups: dict[str, dict[str, Spread]]
    claims: dict[str, dict[str, Claim]]


def over_seeds(
    groups: Mapping[str, Mapping[int, Values]], pairs: Sequence[tuple[str, str]] | None = None
) -> SeedStudy:
    """Summarise metrics of several groups over the seeds that all of them have.

    Parameters
    ----------
    groups : mapping of str to mapping of int to mapping of str to float
        Metric values by group, seed and key; a key counts where every seed has it.
    pairs : sequence of pairs of str, optional
        Claims to test; default: every pair of groups.

    Examples
    --------
    >>> study = over_seeds({"a": {0: {"x": 0.75}, 1: {"x": 1.0}}, "b": {0: {"x": 0.5}, 1: {}}})
    >>> study.groups["a"]["x"].mean, study.groups["b"]
    (0.875, {})
    """
    common = set.intersection(*(set(of) for of in groups.values())) if groups else set()
    seeds = tuple(sorted(common))
    table = {name: _table(by_seed, seeds) for name, by_seed in groups.items()}
    summary = {
        name: {key: _spread(values) for key, values in found.items()}
        for name, found in table.items()
    }
    chosen = list(itertools.combinations(groups, 2)) if pairs is None else list(pairs)
    claims: dict[str, dict[str, Claim]] = {f"{a} - {b}": {} for a, b in chosen}
    keys = dict.fromkeys(key for a, _ in chosen for key in table[a])
    for key in keys:
        having = [(a, b) for a, b in chosen if key in table[a] and key in table[b]]
        p = {f"{a} - {b}": paired_t(table[a][key], table[b][key]) for a, b in having}
        adjusted = holm(p)
        for a, b in having:
            spread = _spread(tuple(np.subtract(table[a][key], table[b][key]).tolist()))
            name = f"{a} - {b}"
            claims[name][key] = Claim(
                mean=spread.mean, sd=spread.sd, p=p[name], p_holm=adjusted[name]
            )
    return SeedStudy(seeds=seeds, groups=summary, claims=claims)


def _table(by_seed: Mapping[int, Values], seeds: tuple[int, ...]) -> dict[str, tuple[float, ...]]:
    if not seeds:
        return {}
    keys = [key for key in by_seed[seeds[0]] if all(key in by_seed[seed] for seed in seeds)]
    return {key: tuple(by_seed[seed][key] for seed in seeds) for key in keys}


def _spread(values: tuple[float, ...]) -> Spread:
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return Spread(mean=float(np.mean(values)), sd=sd, values=values)
