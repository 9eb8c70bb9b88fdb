"""Grouped AUC: the order within each user (or request), averaged over users."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from prerank.metrics.segments import Floats, column, segment_auc
from prerank.metrics.sorting import distinct

__all__ = ["GroupedAUC", "gauc"]


@dataclass(frozen=True, slots=True)
class GroupedAUC:
    """The result of :func:`gauc`.

    Parameters
    ----------
    value : float
        Weighted mean AUC; NaN when no group has both classes.
    auc : ndarray ``[G]`` float64
        AUC of each group that has both classes.
    group : ndarray ``[G]``
        Their ids, ascending.
    weight : ndarray ``[G]`` float64
        Their weights.
    num_dropped : int
        Groups left out because they have a single class.
    num_dropped_impressions : int
        Candidates in those groups.
    """

    value: float
    auc: Floats
    group: npt.NDArray[Any]
    weight: Floats
    num_dropped: int
    num_dropped_impressions: int


def gauc(
    score: npt.ArrayLike,
    label: npt.ArrayLike,
    group: npt.ArrayLike,
    weight: Literal["impressions", "uniform", "positives"] = "impressions",
) -> GroupedAUC:
    """Return the AUC within each group, averaged over groups.

    Source: Zhu et al., "Optimized Cost per Click in Taobao Display Advertising", 2017 (groups are
    users, weighted by impressions).

    Parameters
    ----------
    score, label : array ``[I]``
        Scores; labels, > 0 is positive.
    group : array ``[I]``
        Any ids, in any order.
    weight : {"impressions", "uniform", "positives"}
        Weight of a group in the mean.

    Returns
    -------
    GroupedAUC
        The mean, the groups behind it, and how much was left out.

    Raises
    ------
    ValueError
        A NaN, or columns of different lengths.

    Examples
    --------
    >>> result = gauc([1.0, 2.0, 5.0, 4.0, 9.0], [0, 1, 0, 1, 1], [7, 7, 8, 8, 9])
    >>> result.value, result.auc, result.num_dropped
    (0.5, array([1., 0.]), 1)
    """
    x = column(score, "score")
    y = column(label, "label", x.size)
    ids, group_of = distinct(group)
    if group_of.shape != x.shape:
        raise ValueError(f"group: has {group_of.size} values; expected {x.size}")
    value_G = segment_auc(x, y, group_of, ids.size)
    impressions_G = np.bincount(group_of, minlength=ids.size)
    match weight:
        case "impressions":
            weight_G = impressions_G.astype(np.float64)
        case "uniform":
            weight_G = np.ones(ids.size)
        case "positives":
            weight_G = np.bincount(group_of[y > 0], minlength=ids.size).astype(np.float64)
    kept = ~np.isnan(value_G)
    auc_K, weight_K = value_G[kept], weight_G[kept]
    return GroupedAUC(
        value=float(auc_K @ weight_K / weight_K.sum()) if kept.any() else float("nan"),
        auc=auc_K,
        group=ids[kept],
        weight=weight_K,
        num_dropped=int((~kept).sum()),
        num_dropped_impressions=int(impressions_G[~kept].sum()),
    )
