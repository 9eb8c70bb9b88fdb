"""What an evaluation returns: metrics by run and key, differences, counts."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from prerank.errors import InputError, did_you_mean
from prerank.evaluation.cost import Cost
from prerank.evaluation.statistics import Difference, Estimate
from prerank.evaluation.units import Units

__all__ = ["Evaluation", "RunResult", "TierReport"]


class TierReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a cascade did beside ordering.

    Parameters
    ----------
    scored : tuple of float
        Candidates per request that each tier scored, on average.
    reserves : dict of rule to dict of str to float
        ``promoted``, ``demoted``, ``unmet`` per request, see :class:`prerank.cascade.Moves`.
    """

    scored: tuple[float, ...]
    reserves: dict[str, dict[str, float]] = {}


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """One scorer's row: metrics by key, cost where it is a model, what was skipped and why.

    Parameters
    ----------
    metrics, cost, skipped
        By key; None where it is no model or was not timed; reason by key.
    tiers : TierReport, optional
        Of a cascade.
    units : dict of str to Units
        What the means are made of, where that was asked for; not part of the JSON.
    """

    metrics: dict[str, Estimate]
    cost: Cost | None
    skipped: dict[str, str]
    tiers: TierReport | None = None
    units: dict[str, Units] = {}

    def per_request(self, key: str) -> Units:
        """Return the values behind a metric: ``user``, ``row`` and ``value``, each ``[Q]``.

        Raises
        ------
        InputError
            It was not asked for (``evaluate(..., per_request=True)``), or the metric is no mean.
        """
        if key not in self.units:
            what = "is no mean over requests or users" if self.units else "was not kept"
            raise InputError(
                f"per_request: '{key}' {what}; "
                + (
                    did_you_mean(key, tuple(self.units))
                    if self.units
                    else "evaluate with per_request=True"
                )
            )
        return self.units[key]


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Results of several scorers on the same part.

    Parameters
    ----------
    runs : dict of str to RunResult
        Models and cascades first, then baselines.
    differences : dict of str to dict of key to Difference
        ``"a - b"``: paired, same users resampled together; every run minus every other row.
    counts : dict of str to int
        ``requests``, ``candidates``, ``users``, ``positives`` (engaged exposures),
        ``requests_without_positive`` (they count in no metric of an order),
        ``users_of_one_class`` (exposures all engaged or none; they do not count in ``gauc/T1``),
        ``negatives:SOURCE``.
    log, part, seed
        What was evaluated.
    quota, top_m : int, optional
        What pre-ranking kept of a request, and ``m`` of the ranker's list.
    ranker : str, optional
        Which ranker: ``score:NAME`` or ``rank:STAGE`` of the log, or ``given``.
    """

    runs: dict[str, RunResult]
    differences: dict[str, dict[str, Difference]]
    counts: dict[str, int]
    log: str
    part: str
    seed: int
    quota: int | None = None
    top_m: int | None = None
    ranker: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values; a number that does not exist is null."""
        runs = {n: msgspec.structs.replace(run, units={}) for n, run in self.runs.items()}
        values: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(self, runs=runs))
        for run in values["runs"].values():
            del run["units"]
            if run["tiers"] is None:  # no cascade
                del run["tiers"]
        plain: dict[str, Any] = _without_nan(values)
        return plain

    def value(self, run: str, key: str) -> float:
        """Return one number, NaN where it was skipped."""
        found = self.runs[run].metrics.get(key)
        return found.value if found else float("nan")

    def __str__(self) -> str:
        from prerank.evaluation.show import as_text

        return as_text(self)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
