"""Metrics of a binary prediction over all impressions: order, likelihood, calibration."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from prerank.metrics.segments import Floats, column, segment_auc

__all__ = [
    "auc",
    "calibration_error",
    "calibration_ratio",
    "log_loss",
    "normalized_entropy",
    "sigmoid",
]


def sigmoid(logit: npt.ArrayLike) -> Floats:
    """Return probabilities of logits, exact in both tails, float64 of the same shape.

    Examples
    --------
    >>> sigmoid([-800.0, 0.0, 800.0])
    array([0. , 0.5, 1. ])
    """
    x = np.asarray(logit, dtype=np.float64)
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


def auc(score: npt.ArrayLike, label: npt.ArrayLike, weight: npt.ArrayLike | None = None) -> float:
    """Return the area under the ROC curve: P(positive above negative), ties counting one half.

    Parameters
    ----------
    score : array ``[I]``
        Any numbers; only their order matters. Infinite scores are allowed.
    label : array ``[I]``
        1 or 0 (> 0 is positive).
    weight : array ``[I]``, optional
        Non-negative weights; default 1.

    Returns
    -------
    float
        In [0, 1]; NaN when there is a single class.

    Raises
    ------
    ValueError
        A NaN, a negative weight, or columns of different lengths.

    Examples
    --------
    >>> auc([0.1, 0.4, 0.4, 0.8], [0, 0, 1, 1])
    0.875
    >>> auc([0.1, 0.4], [1, 1])
    nan
    """
    x = column(score, "score")
    y = column(label, "label", x.size)
    w = None if weight is None else _weight(weight, x.size)
    return float(segment_auc(x, y, np.zeros(x.size, dtype=np.int64), 1, w)[0])


def log_loss(
    logit: npt.ArrayLike, label: npt.ArrayLike, weight: npt.ArrayLike | None = None
) -> float:
    """Return the mean negative log-likelihood in nats, from logits.

    Parameters
    ----------
    logit : array ``[I]``
        Log odds; +-inf is a certain prediction and costs inf only where it is wrong.
    label : array ``[I]``
        Targets in [0, 1].
    weight : array ``[I]``, optional
        Non-negative weights; default 1.

    Returns
    -------
    float
        NaN without candidates (or weight).

    Raises
    ------
    ValueError
        A NaN, a label outside [0, 1], a negative weight, or columns of different lengths.

    Examples
    --------
    >>> round(log_loss([0.0, 1000.0], [1, 1]), 4)
    0.3466
    """
    x = column(logit, "logit")
    y = _target(label, x.size)
    # 0 * inf is not a number, so a side that does not count is not computed.
    lost = np.where(y > 0, y * np.logaddexp(0.0, np.where(y > 0, -x, 0.0)), 0.0)
    lost += np.where(y < 1, (1.0 - y) * np.logaddexp(0.0, np.where(y < 1, x, 0.0)), 0.0)
    return _mean(lost, _weight(weight, x.size))


def normalized_entropy(
    logit: npt.ArrayLike,
    label: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    *,
    base_rate: float | None = None,
) -> float:
    """Return log loss over the log loss of always predicting the base rate.

    Source: He et al., "Practical Lessons from Predicting Clicks on Ads at Facebook", 2014,
    section 3.1.

    Parameters
    ----------
    logit, label, weight
        As in :func:`log_loss`.
    base_rate : float, optional
        Rate of the constant prediction, in (0, 1), for example that of the training rows.
        Default: the rate of these labels, so that 1 is the best any constant can do.

    Returns
    -------
    float
        Below 1 is better than the constant; NaN for a single class.

    Raises
    ------
    ValueError
        As in :func:`log_loss`, and a base rate outside (0, 1).

    Examples
    --------
    >>> normalized_entropy([0.0, 0.0], [0, 1])
    1.0
    """
    loss = log_loss(logit, label, weight)
    y = _target(label)
    w = _weight(weight, y.size)
    if base_rate is not None and not 0 < base_rate < 1:
        raise ValueError(f"base_rate: is {base_rate}; expected a number between 0 and 1")
    observed = _mean(y, w)
    rate = observed if base_rate is None else base_rate
    if not 0 < rate < 1:
        return float("nan")
    entropy = -(observed * np.log(rate) + (1.0 - observed) * np.log1p(-rate))
    return float(loss / entropy)


def calibration_error(
    probability: npt.ArrayLike,
    label: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    *,
    num_bins: int = 20,
    bins: Literal["mass", "width"] = "mass",
) -> float:
    """Return the expected calibration error: mean |predicted - observed| over bins.

    Source: Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", 2015.

    Parameters
    ----------
    probability : array ``[I]``
        Predictions in [0, 1].
    label, weight
        As in :func:`log_loss`.
    num_bins : int
        Number of bins, at least 1.
    bins : {"mass", "width"}
        Bins of equal weight (rare events crowd near 0, so equal widths would see one bin), or of
        equal width. Equal predictions always share a bin.

    Returns
    -------
    float
        In [0, 1]; NaN without candidates (or weight).

    Raises
    ------
    ValueError
        As in :func:`log_loss`, and a probability outside [0, 1] or fewer than one bin.

    Examples
    --------
    >>> calibration_error([0.2, 0.2, 0.2, 0.2, 0.2], [0, 0, 0, 0, 1])
    0.0
    >>> calibration_error([0.25, 0.75], [0, 1], num_bins=2)
    0.25
    """
    p = _probability(probability)
    y = _target(label, p.size)
    w = _weight(weight, p.size)
    if num_bins < 1:
        raise ValueError(f"num_bins: is {num_bins}; expected at least 1")
    total = w.sum()
    if total == 0:
        return float("nan")
    if bins == "width":
        bin_of = (p * num_bins).astype(np.int64)
    else:
        values, value_of = np.unique(p, return_inverse=True)
        mass = np.bincount(value_of, weights=w, minlength=values.size)
        # A prediction's bin is that of the middle of its weight: no order among ties can matter.
        middle = (np.cumsum(mass) - 0.5 * mass) / total
        bin_of = (middle * num_bins).astype(np.int64)[value_of]
    gap = np.bincount(np.minimum(bin_of, num_bins - 1), weights=w * (p - y), minlength=num_bins)
    return float(np.abs(gap).sum() / total)


def calibration_ratio(
    probability: npt.ArrayLike, label: npt.ArrayLike, weight: npt.ArrayLike | None = None
) -> float:
    """Return predicted over observed positives; 1 is calibrated on average.

    Returns
    -------
    float
        NaN without positives.

    Raises
    ------
    ValueError
        As in :func:`calibration_error`.

    Examples
    --------
    >>> calibration_ratio([0.5, 0.5, 0.5, 0.5], [0, 1, 0, 0])
    2.0
    """
    p = _probability(probability)
    y = _target(label, p.size)
    w = _weight(weight, p.size)
    observed = float(w @ y)
    return float(w @ p) / observed if observed > 0 else float("nan")


def _mean(values: Floats, weight: Floats) -> float:
    total = float(weight.sum())
    counted = weight > 0  # an infinite loss of no weight is no loss
    return float(weight[counted] @ values[counted]) / total if total > 0 else float("nan")


def _weight(weight: npt.ArrayLike | None, num_candidates: int) -> Floats:
    if weight is None:
        return np.ones(num_candidates)
    w = column(weight, "weight", num_candidates)
    if (w < 0).any():
        raise ValueError(f"weight: the smallest is {w.min()}; expected none below 0")
    return w


def _target(label: npt.ArrayLike, num_candidates: int | None = None) -> Floats:
    return _unit(column(label, "label", num_candidates), "label")


def _probability(probability: npt.ArrayLike) -> Floats:
    return _unit(column(probability, "probability"), "probability")


def _unit(values: Floats, name: str) -> Floats:
    if values.size and not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(
            f"{name}: values run from {values.min()} to {values.max()}; expected 0 to 1"
        )
    return values
