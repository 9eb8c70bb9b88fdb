"""Off-policy estimates: what another order would have earned, from logged propensities.

A request's candidates were shown with known probabilities. The expected engagement of the first
``k`` of another order is estimated without bias by weighting what was seen with one over its
propensity (inverse propensity scoring), where every candidate that the order puts first could have
been shown. Self-normalising trades a little bias for much variance; the doubly robust estimate
adds a model of the reward and is unbiased where either the model or the propensities are right.

Sources: Horvitz and Thompson, 1952; Swaminathan and Joachims, "The Self-Normalized Estimator for
Counterfactual Learning", 2015; Dudik, Langford and Li, "Doubly Robust Policy Evaluation and
Learning", 2011. The form per item of an order, which takes clicks on one item as independent of
the others shown, is that of Li et al., "Offline Evaluation of Ranking Policies with Click Models",
2018 (item-position model without positions).

Shapes: ``R`` requests, ``I`` candidates.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from prerank.metrics.segments import segment_ids

__all__ = ["doubly_robust", "importance_weights", "ips", "snips"]

Floats = npt.NDArray[np.float64]


def importance_weights(
    shown: npt.ArrayLike,
    propensity: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    largest: float | None = None,
) -> Floats:
    """Return ``target / propensity`` of the shown candidates ``[I]``, 0 for the rest.

    Parameters
    ----------
    shown : array ``[I]`` of bool
        Whether the logging policy showed the candidate.
    propensity : array ``[I]``
        Its probability of being shown, in (0, 1]; read where ``shown``.
    target : array ``[I]``
        Probability that the judged policy shows it: 1 for the first ``k`` of an order.
    largest : float, optional
        Clip weights at this value: less variance, some bias.

    Raises
    ------
    ValueError
        A propensity of a shown candidate that is not in (0, 1], columns of different lengths.

    Examples
    --------
    >>> importance_weights([True, True, False], [0.5, 0.25, 0.1], [1, 0, 1])
    array([2., 0., 0.])
    """
    seen = np.asarray(shown, dtype=np.bool_)
    p = np.asarray(propensity, dtype=np.float64)
    wanted = np.asarray(target, dtype=np.float64)
    if not seen.shape == p.shape == wanted.shape:
        raise ValueError(f"shapes {seen.shape}, {p.shape}, {wanted.shape} differ")
    if not ((p[seen] > 0) & (p[seen] <= 1)).all():
        raise ValueError("propensity: a shown candidate has one outside (0, 1]")
    weight = np.zeros(p.shape)
    weight[seen] = wanted[seen] / p[seen]
    return weight if largest is None else np.minimum(weight, largest)


def ips(reward: npt.ArrayLike, weight: npt.ArrayLike, offsets: npt.ArrayLike) -> Floats:
    """Return each request's estimated reward under the judged policy, ``[R]``.

    Its mean over requests is the Horvitz-Thompson estimate; rewards ``[I]`` of candidates with
    weight 0 are not read.

    Examples
    --------
    >>> ips([1.0, 1.0, 0.0], [2.0, 0.0, 4.0], [0, 2, 3])
    array([2., 0.])
    """
    w = np.asarray(weight, dtype=np.float64)
    r = np.where(w > 0, np.asarray(reward, dtype=np.float64), 0.0)
    bounds = np.asarray(offsets, dtype=np.int64)
    row = segment_ids(bounds, w.size)
    earned: Floats = np.bincount(row, weights=w * r, minlength=bounds.size - 1).astype(np.float64)
    return earned


def snips(reward: npt.ArrayLike, weight: npt.ArrayLike) -> float:
    """Return the self-normalised reward per shown candidate: ``sum(w r) / sum(w)``.

    NaN where the judged policy shows nothing that was shown.

    Examples
    --------
    >>> snips([1.0, 0.0, 1.0], [2.0, 2.0, 0.0])
    0.5
    """
    w = np.asarray(weight, dtype=np.float64)
    r = np.where(w > 0, np.asarray(reward, dtype=np.float64), 0.0)
    total = float(w.sum())
    return float((w * r).sum() / total) if total > 0 else float("nan")


def doubly_robust(
    reward: npt.ArrayLike,
    weight: npt.ArrayLike,
    target: npt.ArrayLike,
    predicted: npt.ArrayLike,
    offsets: npt.ArrayLike,
) -> Floats:
    """Return each request's doubly robust estimate ``[R]``.

    Parameters
    ----------
    reward, weight : array ``[I]``
        As in :func:`ips`.
    target : array ``[I]``
        Probability that the judged policy shows the candidate.
    predicted : array ``[I]``
        A model's expected reward of showing it, for every candidate.
    offsets : array of int ``[R + 1]``
        Where each request begins.

    Examples
    --------
    >>> doubly_robust([1.0, 0.0], [2.0, 0.0], [1.0, 1.0], [0.6, 0.1], [0, 2])
    array([1.5])
    """
    w = np.asarray(weight, dtype=np.float64)
    q = np.asarray(predicted, dtype=np.float64)
    bounds = np.asarray(offsets, dtype=np.int64)
    row = segment_ids(bounds, w.size)
    size = bounds.size - 1
    model = np.bincount(row, weights=np.asarray(target, np.float64) * q, minlength=size)
    residual = np.where(w > 0, np.asarray(reward, dtype=np.float64) - q, 0.0)
    corrected: Floats = (model + np.bincount(row, weights=w * residual, minlength=size)).astype(
        np.float64
    )
    return corrected
